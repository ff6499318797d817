"""Published NVAE checkpoints: their names by a literal list, every architecture and every setting there and back."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaebm.config import NVAENetworkSettings
from vaebm.config.nvae import Architecture
from vaebm.nvae.cells import ARCHITECTURES, ResidualCell
from vaebm.nvae.layers import BatchNorm, BatchNormSwish, PlainConv2d
from vaebm.nvae.model import NVAE, load_nvae
from vaebm.nvae.published_checkpoint import adaptive_groups, convert_published_nvae, read_published_nvae

RECORDED = Path(__file__).parents[1] / "parity" / "data"


# --- our state under published names
def published(nvae: NVAE) -> dict[str, Tensor]:
    """Our state in the published layout, name by name and in the published order of modules."""
    single = nvae.settings.single_group
    up, down = list(reversed(nvae.groups)), list(nvae.groups)  # the encoder's order of the groups, and the decoder's
    state: dict[str, Tensor] = {
        "prior_ftr0": torch.rand(8, *nvae.prior_constant.shape[1:]) if single else nvae.prior_constant
    }

    def add(name: str, module: nn.Module) -> None:
        state.update({f"{name}.{leaf}": value for leaf, value in module.state_dict().items()})
        if isinstance(module, PlainConv2d):
            state[f"{name}.weight_normalized"] = state[f"{name}.weight"]

    add("stem", nvae.stem)
    for number, cell in enumerate(nvae.preprocess):
        add_cell(add, f"pre_process.{number}", cell)
    tower: list[nn.Module] = []
    for cells, group in zip(nvae.encoder_groups, up, strict=True):
        tower += [*cells] if group.first else [*cells, group.combine_encoder]  # type: ignore[misc]
    for number, module in enumerate(tower):
        add_cell(add, f"enc_tower.{number}", module) if isinstance(module, ResidualCell) else add(
            f"enc_tower.{number}.conv", module
        )
    add("enc0.1", nvae.encoder_top[1])
    for number, group in enumerate(down):
        add(f"enc_sampler.{number}", group.posterior_parameters)
    for number, group in enumerate(down[1:]):
        add(f"dec_sampler.{number}.1", group.prior_parameters[1])
    for number, pair in enumerate(pair for group in down for pair in group.flows):
        for half, cell in enumerate(pair, start=1):
            for name, layer in (
                ("conv.convz.0", cell.expand),
                ("conv.convz.2", cell.depthwise),
                ("mu.conv_0", cell.shift),
            ):
                add(f"nf_cells.{number}.cell{half}.{name}", layer)
    tower = [module for group in down for module in (*group.cells, group.combine_decoder)]
    for number, module in enumerate(tower):
        if isinstance(module, ResidualCell):
            add_cell(add, f"dec_tower.{number}", module)
        else:
            add("stem_decoder" if single else f"dec_tower.{number}.conv", module)
    for number, cell in enumerate(nvae.postprocess):
        add_cell(add, f"post_process.{number}", cell)
    add("image_conditional.1", nvae.pixel_parameters[1])
    return state


def add_cell(add: Callable[[str, nn.Module], None], name: str, cell: ResidualCell) -> None:
    """The skip connection, the operations, the gate, in this order."""
    for number, conv in enumerate(getattr(cell.skip, "convs", [])):
        add(f"{name}.skip.conv_{number + 1}", conv)
    if hasattr(cell.skip, "conv"):
        add(f"{name}.skip.1", cell.skip.conv)
    operations = list(cell.branch)
    gate = operations.pop() if hasattr(operations[-1], "gate") else None
    for number, operation in enumerate(operations):
        layers = list(operation)
        names = mobile(layers) if any(isinstance(layer, PlainConv2d) for layer in layers) else plain(layers)
        for layer, inner in names:
            add(f"{name}._ops.{number}.{inner}", layer)
    if gate is not None:
        add(f"{name}.se.se.0", gate.gate[0])
        add(f"{name}.se.se.2", gate.gate[2])


def mobile(layers: list[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """An inverted residual: the numbers stand one higher where an upsampling comes first."""
    first = 1 if isinstance(layers[0], nn.Upsample) else 0
    norm, expand, second, depthwise, third, project, last = layers[first:]
    yield norm, f"conv.{first}.bn"
    for number, (conv, after) in enumerate(((expand, second), (depthwise, third)), start=first + 1):
        yield conv, f"conv.{number}.conv.0"
        yield after, f"conv.{number}.conv.1"
    yield project, f"conv.{first + 3}"
    yield last, f"conv.{first + 4}.bn"


def plain(layers: list[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """`res_bnswish`, and alike the two with ELU; that of a batch norm without swish is our guess: names in a cell are
    free, their order counts.
    """
    for layer in layers:
        if isinstance(layer, BatchNorm):
            yield layer, "bn_act" if isinstance(layer, BatchNormSwish) else "bn.bn"
        elif isinstance(layer, nn.Conv2d):
            yield layer, "conv_0"


def network(**changes: Any) -> NVAE:
    """A random network of 8 channels for 3×16×16 images, no value of which is special."""
    base = {
        "channels_encoder": 8,
        "channels_decoder": 8,
        "groups": [2, 1],
        "latents": 2,
        "preprocess_blocks": 1,
        "preprocess_cells": 2,
        "postprocess_cells": 2,
    }
    torch.manual_seed(0)
    nvae = NVAE(
        NVAENetworkSettings.model_validate(base | {"cells_encoder": 1, "cells_decoder": 1} | changes), (3, 16, 16)
    )
    with torch.no_grad():
        for value in nvae.state_dict().values():
            value.uniform_(0.5, 1.5) if value.is_floating_point() else value.fill_(7)
    return nvae


def arguments(settings: NVAENetworkSettings, groups: int, **changes: Any) -> argparse.Namespace:
    """The published program's command line for these settings; `groups` of the finest scale."""
    known = {
        "dataset": {"bernoulli": "mnist"}.get(settings.decoder, "cifar10"),
        "num_channels_enc": settings.channels_encoder,
        "num_channels_dec": settings.channels_decoder,
        "num_latent_scales": len(settings.groups),
        "num_groups_per_scale": groups,
        "ada_groups": False,
        "min_groups_per_scale": 1,
        "num_latent_per_group": settings.latents,
        "num_preprocess_blocks": settings.preprocess_blocks,
        "num_postprocess_blocks": settings.preprocess_blocks,
        "num_preprocess_cells": settings.preprocess_cells,
        "num_postprocess_cells": settings.postprocess_cells,
        "num_cell_per_cond_enc": settings.cells_encoder,
        "num_cell_per_cond_dec": settings.cells_decoder,
        "num_nf": settings.flows,
        "num_x_bits": settings.bits,
        "num_mixture_dec": settings.mixtures if settings.decoder == "logistic_mixture" else 1,
        "use_se": settings.squeeze_excitation,
        "res_dist": settings.residual_posterior,
        "arch_instance": settings.architecture,
    }
    return argparse.Namespace(**known | changes)


def save(path: Path, state: dict[str, Any], args: Any) -> Path:
    """A checkpoint of the published layout, with an optimiser's state in it."""
    optimizer = torch.optim.Adamax([nn.Parameter(torch.zeros(2))])
    torch.save(
        {
            "epoch": 3,
            "state_dict": state,
            "optimizer": optimizer.state_dict(),
            "global_step": 9,
            "args": args,
            "scheduler": {"T_max": 5},
        },
        path,
    )
    return path


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
    same(save(tmp_path / "checkpoint.pt", published(nvae), arguments(nvae.settings, 2)), nvae)


@pytest.mark.parametrize(
    ("changes", "groups", "args"),
    [
        ({"groups": [1]}, 1, {}),
        ({"groups": [1], "flows": 2, "squeeze_excitation": False}, 1, {}),
        ({"groups": [4, 2, 2], "flows": 2}, 4, {"ada_groups": True, "min_groups_per_scale": 2}),
        ({"groups": [3, 1], "residual_posterior": False, "bits": 5}, 3, {"ada_groups": True}),
        (
            {
                "groups": [2, 2],
                "squeeze_excitation": False,
                "decoder": "logistic_mixture",
                "mixtures": 3,
                "cells_encoder": 2,
                "cells_decoder": 3,
            },
            2,
            {},
        ),
        (
            {
                "preprocess_blocks": 2,
                "groups": [2],
                "preprocess_cells": 1,
                "postprocess_cells": 3,
                "channels_encoder": 6,
            },
            2,
            {},
        ),
        ({"decoder": "bernoulli", "groups": [1, 1], "crop": 2, "channels_encoder": 5}, 1, {}),
    ],
)
def test_every_setting_there_and_back(
    changes: dict[str, Any], groups: int, args: dict[str, Any], tmp_path: Path
) -> None:
    nvae = network(**changes)
    same(save(tmp_path / "checkpoint.pt", published(nvae), arguments(nvae.settings, groups, **args)), nvae)


def test_conversion_gives_a_model_file_and_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nvae = network(flows=1)
    path = save(tmp_path / "checkpoint.pt", published(nvae), arguments(nvae.settings, 2, ada_groups=True))
    convert_published_nvae(path, tmp_path / "model.pt")
    parameters = sum(parameter.numel() for parameter in nvae.parameters())
    (line,) = capsys.readouterr().out.splitlines()
    assert (
        line == f"{tmp_path / 'model.pt'}: NVAE of 3×16×16 images, {parameters:,} parameters "
        f"in {len(nvae.state_dict())} tensors"
    )
    again = load_nvae(tmp_path / "model.pt")
    assert not again.training and not [parameter for parameter in again.parameters() if parameter.requires_grad]
    assert all(torch.equal(value, nvae.state_dict()[name]) for name, value in again.state_dict().items())


def test_adaptive_groups_are_those_of_the_published_program() -> None:
    assert adaptive_groups(5, 16, 4) == [16, 8, 4, 4, 4]
    assert adaptive_groups(3, 20, 1) == [20, 10, 5]
    assert adaptive_groups(3, 1, 1) == [1, 1, 1] and adaptive_groups(3, 5, 5) == [5, 5, 5]


def test_older_files_lack_duplicates_and_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The value for a missing argument is printed with its name; the mixtures are counted in the weights."""
    nvae = network(groups=[2, 2], decoder="logistic_mixture", mixtures=3)
    args = arguments(nvae.settings, 2)
    for name in ("ada_groups", "min_groups_per_scale", "num_mixture_dec"):
        delattr(args, name)
    path = save(
        tmp_path / "checkpoint.pt",
        {name: value for name, value in published(nvae).items() if not name.endswith("weight_normalized")},
        args,
    )
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
    weights = read_published_nvae(
        save(tmp_path / "checkpoint.pt", {name: content["state_dict"][name] for name in names}, content["args"])
    ).weights
    expected = read_published_nvae(RECORDED / "nvae_cifar_checkpoint.pt").weights
    assert not [name for name, value in expected.items() if not torch.equal(value, weights[name])]
