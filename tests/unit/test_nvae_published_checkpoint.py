"""Published NVAE checkpoints: their names by a literal list, every architecture and every setting there and back."""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import EXPERIMENTS
from published_files import network, published, write_published

from vaebm.config import Experiment
from vaebm.config.nvae import Architecture
from vaebm.config.yaml_files import parse_yaml, read_experiment
from vaebm.nvae.cells import ARCHITECTURES
from vaebm.nvae.model import NVAE, load_nvae
from vaebm.nvae.published_checkpoint import adaptive_groups, convert_published_nvae, read_published_nvae

RECORDED = Path(__file__).parents[1] / "parity" / "data"


def recorded(name: str = "cifar") -> dict[str, Any]:
    """A recorded checkpoint, of the published program."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: dict[str, Any] = torch.load(RECORDED / f"nvae_{name}_checkpoint.pt", weights_only=True)
    return content


# --- round trips
@pytest.mark.parametrize("name", ["cifar", "discrete"])
def test_the_literal_names_are_those_of_a_recorded_checkpoint(name: str) -> None:
    """So that the round trips below go through the published layout, duplicates and order included."""
    converted = read_published_nvae(RECORDED / f"nvae_{name}_checkpoint.pt")
    nvae = NVAE(converted.settings, converted.shape)
    nvae.load_state_dict(converted.weights)
    state, theirs = published(nvae), recorded(name)["state_dict"]
    assert list(state) == list(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in state.items())


def same(path: Path, nvae: NVAE) -> None:
    """The file holds this network, each tensor by itself."""
    converted = read_published_nvae(path)
    assert converted.settings == nvae.settings and converted.shape == nvae.shape
    assert list(converted.weights) == list(nvae.state_dict())
    assert not [name for name, value in nvae.state_dict().items() if not torch.equal(value, converted.weights[name])]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_there_and_back(architecture: Architecture, tmp_path: Path) -> None:
    nvae = network(architecture=architecture, groups=[2, 2])
    same(write_published(tmp_path / "checkpoint.pt", nvae), nvae)


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": [1]},
        {"groups": [1], "flows": 2, "squeeze_excitation": False},
        {"groups": [4, 2, 2], "flows": 2},
        {"groups": [3, 1], "residual_posterior": False, "bits": 5},
        {"groups": [2, 2], "squeeze_excitation": False, "decoder": "logistic_mixture", "mixtures": 3}
        | {"cells_encoder": 2, "cells_decoder": 3},
        {"preprocess_blocks": 2, "groups": [2], "preprocess_cells": 1, "postprocess_cells": 3, "channels_encoder": 6},
        {"decoder": "bernoulli", "groups": [1, 1], "crop": 2, "channels_encoder": 5},
    ],
)
def test_every_setting_there_and_back(changes: dict[str, Any], tmp_path: Path) -> None:
    nvae = network(**changes)
    dataset = "mnist" if nvae.settings.crop else "cifar10"
    same(write_published(tmp_path / "checkpoint.pt", nvae, dataset=dataset), nvae)


def test_conversion_gives_a_model_file_and_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nvae = network(flows=1)
    path = write_published(tmp_path / "checkpoint.pt", nvae)
    convert_published_nvae(path, tmp_path / "model.pt")
    parameters = sum(parameter.numel() for parameter in nvae.parameters())
    line, *section = capsys.readouterr().out.splitlines()
    assert (
        line == f"{tmp_path / 'model.pt'}: NVAE of 3×16×16 images, {parameters:,} parameters "
        f"in {len(nvae.state_dict())} tensors"
    )
    assert section[:3] == ["# For an experiment file:", "nvae:", "  network:"]
    assert section[5] == "    groups: [2, 1]" and section[-1] == f"  checkpoint: {path}"
    assert len(section) == 4 + len(nvae.settings.model_dump())  # also the defaults, which a base may have changed
    again = load_nvae(tmp_path / "model.pt")
    assert not again.training and not [parameter for parameter in again.parameters() if parameter.requires_grad]
    assert all(torch.equal(value, nvae.state_dict()[name]) for name, value in again.state_dict().items())


def test_printed_section_gives_the_settings_of_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In an experiment with other sections; the path has characters that YAML gives a meaning."""
    nvae = network(groups=[4, 2], residual_posterior=False, architecture="res_elu", bits=5)
    path = write_published(tmp_path / "epoch: 1 #'é.pt", nvae)
    convert_published_nvae(path, tmp_path / "model.pt")
    others = read_experiment(EXPERIMENTS / "tiny.yaml").model_dump(exclude={"nvae"})
    experiment = Experiment.model_validate(others | parse_yaml(capsys.readouterr().out.split("\n", 1)[1], "section"))
    assert experiment.nvae.network == nvae.settings
    assert experiment.nvae.checkpoint is not None and experiment.nvae.checkpoint.source == str(path)


@pytest.mark.parametrize(("legacy", "prefix", "old"), [(True, "", False), (False, "module.", True)])
def test_files_of_other_versions_and_of_several_gpus(legacy: bool, prefix: str, old: bool, tmp_path: Path) -> None:
    nvae = network(groups=[2, 2], flows=1)
    path = write_published(tmp_path / "checkpoint.pt", nvae, legacy=legacy, prefix=prefix, old=old, epoch=399)
    assert zipfile.is_zipfile(path) != legacy
    same(path, nvae)
    assert read_published_nvae(path)[-2:] == ("cifar10", 399)


def test_adaptive_groups_are_those_of_the_published_program() -> None:
    assert adaptive_groups(5, 16, 4) == [16, 8, 4, 4, 4]
    assert adaptive_groups(3, 20, 1) == [20, 10, 5]
    assert adaptive_groups(3, 1, 1) == [1, 1, 1] and adaptive_groups(3, 5, 5) == [5, 5, 5]


def test_older_files_lack_duplicates_and_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The value for a missing argument is printed with its name; the mixtures are counted in the weights."""
    nvae = network(groups=[2, 2], decoder="logistic_mixture", mixtures=3)
    path = write_published(tmp_path / "checkpoint.pt", nvae, old=True)
    same(path, nvae)
    convert_published_nvae(path, tmp_path / "model.pt")
    assert capsys.readouterr().out.splitlines()[:3] == [
        f"{path}: args.ada_groups: not in the file, taken as False",
        f"{path}: args.min_groups_per_scale: not in the file, taken as 1",
        f"{path}: args.num_mixture_dec: not in the file, taken as 3",
    ]


@pytest.mark.parametrize("first", ["", "pre_process.0._ops.1", "pre_process.1.skip.conv_4"])
def test_order_of_the_names_does_not_matter(first: str, tmp_path: Path) -> None:
    """Two operations of a cell have layers of the same shapes, and so have the four of a skip connection: their numbers
    tell them apart.
    """
    content = recorded()
    names = sorted(content["state_dict"], key=lambda name: (not name.startswith(first), name))
    content["state_dict"] = {name: content["state_dict"][name] for name in names}
    torch.save(content, tmp_path / "checkpoint.pt")
    weights = read_published_nvae(tmp_path / "checkpoint.pt").weights
    expected = read_published_nvae(RECORDED / "nvae_cifar_checkpoint.pt").weights
    assert not [name for name, value in expected.items() if not torch.equal(value, weights[name])]
