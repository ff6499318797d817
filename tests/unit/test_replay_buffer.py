"""The replay buffer against a list of entries, and its draws against their law."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaebm.config.ebm import ReplaySettings
from vaebm.ebm.replay_buffer import ReplayBuffer
from vaebm.system.errors import UserError

SHAPES = [(2, 4, 4), (3, 2, 2)]


def buffer(capacity: int = 10, seed: int = 0, anneal_iterations: int = 5) -> ReplayBuffer:
    settings = ReplaySettings(capacity=capacity, probability=0.6, anneal_iterations=anneal_iterations)
    return ReplayBuffer(settings, SHAPES, seed, torch.float32)


def marked(first: int, count: int) -> list[Tensor]:
    """Noise of `count` chains that can be told apart: chain k of every group is full of k."""
    return [
        torch.arange(first, first + count, dtype=torch.float32)[:, None, None, None].expand(count, *shape).clone()
        for shape in SHAPES
    ]


def marks(eps: list[Tensor]) -> list[int]:
    """Which chains these are; every value of every group has to say the same."""
    values = eps[0][:, 0, 0, 0]
    assert all(torch.equal(part, values[:, None, None, None].expand_as(part)) for part in eps)
    return [int(value) for value in values]


def test_it_is_a_list_that_forgets_its_first_entries() -> None:
    """The specification on a Python list; the capacity is no multiple of the batch, so the ring wraps inside one."""
    batch, capacity, ours, entries = 4, 10, buffer(10), list[int]()
    replays = 0
    for step in range(40):
        fresh = range(10_000 + 10 * step, 10_000 + 10 * step + batch)
        chosen = ours.draw(step, batch).tolist()
        started = marks(ours.start(marked(fresh.start, batch), step))
        assert started == [entries[index] for index in chosen] + list(fresh[len(chosen) :])
        assert len(set(started)) == batch  # distinct entries
        assert step > 0 or not chosen
        replays += len(chosen)
        ours.insert(marked(100 * step, batch))
        entries = (entries + list(range(100 * step, 100 * step + batch)))[-capacity:]
        assert len(ours) == len(entries)
    assert replays > 60


@pytest.mark.parametrize(("step", "probability"), [(0, 0.0), (500, 0.3), (1000, 0.6), (50_000, 0.6)])
def test_how_many_are_replayed_and_which(step: int, probability: float) -> None:
    """The number is binomial with p = min(max, max · step / anneal); entries are distinct and equally likely."""
    batch, capacity, draws = 8, 20, 400
    drawn = []
    for seed in range(draws):
        ours = buffer(capacity, seed=seed, anneal_iterations=1000)
        assert len(ours.draw(step, batch)) == 0  # nothing to replay
        ours.insert(marked(0, capacity))
        drawn.append(ours.draw(step, batch))
    counts = torch.tensor([len(entries) for entries in drawn], dtype=torch.float64)
    variance = batch * probability * (1 - probability)
    assert abs(float(counts.mean()) - batch * probability) <= 4 * math.sqrt(variance / draws)
    assert abs(float(counts.var()) - variance) <= 4 * variance * math.sqrt(2 / draws)
    assert all(len(entries.unique()) == len(entries) for entries in drawn)
    often = torch.cat(drawn).bincount(minlength=capacity).double()
    assert len(often) == capacity and ((often - often.mean()).abs() <= 4 * often.mean().sqrt()).all()


def test_draws_are_a_function_of_seed_and_step() -> None:
    """Two buffers agree, other seeds (those of other processes) and steps do not."""

    def draws(seed: int) -> list[list[int]]:
        ours = buffer(seed=seed)
        ours.insert(marked(0, 10))
        return [ours.draw(step, 6).tolist() for step in range(5, 25)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert len({tuple(entries) for entries in draws(0)}) > 10


def test_resumed_training_goes_on_exactly(tmp_path: Path) -> None:
    def iterate(ours: ReplayBuffer, steps: range) -> list[Tensor]:
        started: list[Tensor] = []
        for step in steps:
            eps = ours.start(marked(1000 * step, 4), step)
            started += eps
            ours.insert([part + 1 for part in eps])
        return started

    whole, first = buffer(), buffer()
    iterate(whole, range(9))
    iterate(first, range(9))
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    again = buffer()
    again.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    for left, right in zip(iterate(whole, range(9, 20)), iterate(again, range(9, 20)), strict=True):
        assert torch.equal(left, right)


def test_chains_start_in_the_type_of_the_fresh_noise() -> None:
    ours = buffer()
    ours.insert(marked(0, 10))
    assert {part.dtype for part in ours.start([part.double() for part in marked(50, 4)], step=10)} == {torch.float64}


def test_a_buffer_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match="capacity of at least the 11 chains of an iteration, found 10"):
        buffer(10).start(marked(0, 11), step=0)
