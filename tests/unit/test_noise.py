"""Noise is a function of (seed, purpose, step, index), and standard normal or uniform."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from vaebm.noise import NoiseSource, derive

SHAPES = [(2, 3, 3), (5,)]


@given(
    seed=st.integers(0, 2**31),
    first=st.integers(0, 10**9),
    size=st.integers(1, 6),
    cut=st.integers(0, 6),
    step=st.integers(0, 10**6),
)
def test_batches_do_not_matter(seed: int, first: int, size: int, cut: int, step: int) -> None:
    """Drawn at once or in two parts, each sample sees the same bits."""
    cut = min(cut, size)
    sources = [
        NoiseSource(seed, "samples", index)
        for index in (range(first, first + size), range(first, first + cut), range(first + cut, first + size))
    ]
    for law in (NoiseSource.normal, NoiseSource.uniform):
        whole, *parts = [law(source, SHAPES, step=step) for source in sources]
        for number, tensor in enumerate(whole):
            assert torch.equal(tensor, torch.cat([part[number] for part in parts]))


@pytest.mark.parametrize(
    "other",
    [
        NoiseSource(1, "samples", range(4)),
        NoiseSource(0, "chain", range(4)),
        NoiseSource(0, "samples", range(4, 8)),
        NoiseSource(2**32, "samples", range(4)),  # torch's own generator would repeat the noise of seed 0
    ],
)
def test_another_seed_purpose_or_index_is_other_noise(other: NoiseSource) -> None:
    here = NoiseSource(0, "samples", range(4)).normal([(64,)])[0]
    there = other.normal([(64,)])[0]
    assert not torch.isclose(here, there).any(dim=1).all()
    assert abs(float((here * there).mean())) < 4 / 16  # four standard errors of the mean of 256 products


def test_another_step_is_other_noise_and_the_source_keeps_no_state() -> None:
    source = NoiseSource(0, "samples", range(3))
    first, second, again = (source.normal([(8,)], step=step)[0] for step in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_values_are_standard_normal() -> None:
    values = NoiseSource(7, "test", range(200)).normal([(100,)])[0]
    assert kstest(values.flatten().numpy(), "norm").pvalue > 1e-3  # one seed: passes or fails for ever


def test_uniform_values_fill_the_unit_interval() -> None:
    """1 never comes, so that 1 − u has a logarithm; the places of an image are as independent as its images."""
    values = NoiseSource(7, "test", range(200)).uniform([(100,)])[0]
    assert values.min() >= 0 and values.max() < 1 and (values * 2**24).frac().eq(0).all()
    assert kstest(values.flatten().numpy(), "uniform").pvalue > 1e-3  # one seed: passes or fails for ever
    correlations = torch.corrcoef(values.T)[0, 1:]
    assert correlations.abs().max() < 5 / math.sqrt(200)  # five standard errors of one correlation, of 99


def test_another_step_or_index_is_other_uniform_noise() -> None:
    source = NoiseSource(0, "samples", range(3))
    first, second, again = (source.uniform([(64,)], step=step)[0] for step in (0, 1, 0))
    assert torch.equal(first, again) and not torch.isclose(first, second).any(dim=1).all()
    assert not torch.isclose(first[0], first[1]).all()


def test_double_precision_sees_the_same_noise() -> None:
    source = NoiseSource(0, "samples", range(3))
    for law in (source.normal, source.uniform):
        assert torch.equal(law(SHAPES)[0].double(), law(SHAPES, dtype=torch.float64)[0])


def test_like_takes_shapes_and_type() -> None:
    tensors = [torch.zeros(3, 2, 2, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.float64)]
    drawn = NoiseSource(0, "samples", range(3)).like(tensors, step=4)
    assert [(part.shape, part.dtype) for part in drawn] == [(part.shape, part.dtype) for part in tensors]


def test_derived_seeds_differ_and_stay() -> None:
    assert derive(0, "nvae") == derive(0, "nvae")
    assert (
        len({derive(seed, purpose, epoch) for seed in range(3) for purpose in ("order", "nvae") for epoch in range(3)})
        == 18
    )
    assert 0 <= derive(3, "x") < 2**63
