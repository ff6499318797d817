"""Published energy networks: their sizes, and the conversion of files of their layout, whole and broken."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vaebm.config import EBMSettings
from vaebm.config.yaml_files import parse_yaml
from vaebm.energy.network import EnergyNetwork, load_energy
from vaebm.energy.published_checkpoint import (
    PUBLISHED_ENERGIES,
    convert_published_energy,
    published_name,
    read_published_energy,
)
from vaebm.system.checkpoint import load_model
from vaebm.system.errors import UserError


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions", "last"),
    [
        ("mnist", 679_553, 11, 8),
        ("cifar32", 5_137_921, 16, 4),
        ("celeba64", 4_337_537, 22, 4),
        ("lsun64", 5_813_633, 26, 4),
        ("celeba256", 14_207_105, 31, 4),
    ],
)
def test_published_networks_have_the_published_sizes(name: str, parameters: int, convolutions: int, last: int) -> None:
    """Counted on the published program's modules, with three channels of the images; `last`: rows of the last block's
    features.
    """
    network, side = PUBLISHED_ENERGIES[name]
    with torch.device("meta"):
        energy = EnergyNetwork(network, 3)
    rows = []
    energy.blocks[-1].register_forward_hook(lambda block, inputs, output: rows.append(output.shape[2]))
    assert energy(torch.empty(2, 3, side, side, device="meta")).shape == (2,)
    assert sum(parameter.numel() for parameter in energy.parameters()) == parameters
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in energy.modules()) == convolutions
    assert rows == [last]


def published(name: str, channels: int = 4) -> tuple[EnergyNetwork, dict[str, Tensor]]:
    """A random network, and its weights under the published names."""
    torch.manual_seed(0)
    energy = EnergyNetwork(PUBLISHED_ENERGIES[name].network.model_copy(update={"channels": channels}), 3)
    return energy, OrderedDict((published_name(ours), value) for ours, value in energy.state_dict().items())


def save(path: Path, state: dict[str, Tensor]) -> Path:
    """A checkpoint of the published layout, with the state of an optimiser that has made a step."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    torch.save({"model": state, "optimizer": optimizer.state_dict()}, path)
    return path


@pytest.mark.parametrize("name", PUBLISHED_ENERGIES)
def test_conversion_keeps_the_function(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each network is recognised at another number of channels, and the model file gives the same energies."""
    energy, state = published(name)
    convert_published_energy(save(tmp_path / "EBM_100.pth", state), tmp_path / "model.pt")
    line, section = capsys.readouterr().out.split("\n", 1)
    assert (
        f"the energy network {name} with 4 channels "
        f"for 3×{PUBLISHED_ENERGIES[name].side}×{PUBLISHED_ENERGIES[name].side} images" in line
    )
    stage = EBMSettings.model_validate(
        parse_yaml(section, "section")["ebm"] | {"chain": {"steps": 1, "step_size": 1.0}}
    )
    assert stage.network == PUBLISHED_ENERGIES[name].network.model_copy(update={"channels": 4})
    assert stage.potential == "density" and stage.checkpoint.source == str(tmp_path / "EBM_100.pth")
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(
        load_energy(tmp_path / "model.pt").double()(x), energy.double()(x), rtol=1e-12, atol=0
    )  # layouts differ, and so the rounding
    content = load_model(tmp_path / "model.pt")
    assert (
        content["shape"] == [3, PUBLISHED_ENERGIES[name].side, PUBLISHED_ENERGIES[name].side]
        and content["potential"] == "density"
    )


def test_weights_alone_and_weights_of_several_gpus_are_read(tmp_path: Path) -> None:
    _, state = published("mnist")
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "parallel.pth")
    for path in tmp_path.iterdir():
        assert all(
            torch.equal(value, state[published_name(name)])
            for name, value in read_published_energy(path).weights.items()
        )


def without(name: str):  # type: ignore[no-untyped-def]
    return lambda state: {key: value for key, value in state.items() if key != name}


def instead(name: str, value: Any):  # type: ignore[no-untyped-def]
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("conv1.weight"), "conv1.weight: expected this weight"),
        (without("blocks.2.conv1.weight"), "blocks.2.conv1.weight: expected this weight"),
        (without("blocks.7.conv2.log_weight_norm"), "blocks.7.conv2.log_weight_norm: expected this weight"),
        (without("linear.bias"), "linear.bias: expected this weight"),
        (
            without("blocks.0.skip.0.weight"),
            r"found blocks of 4, 4, 8, 8, 8, 16, 16, 16 channels after a stem of 4, "
            r"with skip connections in \[2, 4, 5, 6\]",
        ),
        (
            instead("blocks.1.skip.0.weight", torch.zeros(4, 4, 1, 1)),
            r"expected the blocks of a published energy network .*\[0, 1, 2, 4, 5, 6\]",
        ),
        (instead("blocks.3.conv1.weight", torch.zeros(12, 8, 3, 3)), "found blocks of 4, 4, 8, 12, 8"),
        (
            instead("blocks.0.skip.0.bias", torch.zeros(4)),
            "blocks.0.skip.0.bias: a weight that the network celeba64 does not have",
        ),
        (instead("conv1.bias", torch.zeros(5)), r"conv1.bias: expected the shape \(4,\), found \(5,\)"),
        (
            instead("linear.weight", torch.zeros(1, 16, dtype=torch.float16)),
            "linear.weight: expected the type float32, found float16",
        ),
        (instead("conv1.bias", [0.0]), "expected a published energy network"),
    ],
)
def test_any_other_weights_are_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "EBM_100.pth", change(published("celeba64")[1]))
    with pytest.raises(UserError, match=message) as error:
        convert_published_energy(path, tmp_path / "model.pt")
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "model.pt").exists()


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    """A whole model as an object could run any program when it is read: it is not."""
    contents: dict[str, Any] = {"object": torch.nn.Linear(1, 1), "list": [1, 2], "empty": {}, "settings": {"lr": 1.0}}
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "damaged").write_bytes((tmp_path / "object").read_bytes()[:-100])
    messages = {
        "object": "found an object of torch.nn.modules.linear.Linear in it",
        "list": "found list",
        "empty": "found dict",
        "settings": "found the keys lr",
        "damaged": "found a damaged file",
        "missing": "found no file",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message) as error:
            read_published_energy(tmp_path / name)
        assert str(error.value).startswith(
            f"{tmp_path / name}: expected a published energy network"
        ) and "\n" not in str(error.value)
