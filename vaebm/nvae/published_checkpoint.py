"""Published NVAE checkpoints: reading their layout, key by key (`vaebm convert nvae`).

The published program saves a dictionary with its weights (`state_dict`) and its command line (`args`, an
`argparse.Namespace`). Its modules are found here in the order in which it walks them; inside a residual cell the layers
are matched by their numbers, since their names differ between architectures. Every key is used once or is known to be idle, and every
shape is compared.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vaebm.config import NVAENetworkSettings
from vaebm.nvae.cells import ARCHITECTURES, ResidualCell
from vaebm.nvae.layers import SqueezeExcitation
from vaebm.nvae.model import NVAE
from vaebm.system.checkpoint import load_plain, save_model
from vaebm.system.errors import UserError

PADDING = {"mnist": 2, "omniglot": 2, "stacked_mnist": 2}
"""Data sets whose 28×28 images are padded to 32×32, and the rows and columns at each border that do so."""

FILLED: dict[str, int | bool] = {"ada_groups": False, "min_groups_per_scale": 1, "num_nf": 0, "num_x_bits": 8}
"""Arguments that checkpoints of older versions lack, and the value that those versions had; `num_mixture_dec` follows from the weights."""


class Converted(NamedTuple):
    """A published checkpoint in our terms."""

    settings: NVAENetworkSettings
    shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    weights: dict[str, Tensor]
    """State of `NVAE(settings, shape)`."""
    filled: dict[str, Any]
    """Arguments that the file lacked, with the values that were put in."""
    names: dict[str, str]
    """Published name of every tensor that is used → ours, in the file's order."""


def adaptive_groups(scales: int, groups: int, smallest: int) -> list[int]:
    """Latent groups of each scale, finest first: halved from scale to scale, never below `smallest`."""
    counts = [groups]
    for _ in range(scales - 1):
        counts.append(max(smallest, counts[-1] // 2))
    return counts


def convert(path: Path, output: Path) -> None:
    """Write the NVAE of the published checkpoint `path` as the model file `output`, and say what was found.

    Raises:
        UserError: no such file, not a published NVAE, or weights that do not fit its own arguments.
    """
    converted = read(path)
    save_model(output, "nvae", converted.settings.model_dump(), converted.weights, shape=list(converted.shape))
    for name, value in converted.filled.items():
        print(f"{path}: args.{name}: not in the file, taken as {value!r}")
    trainable = sum(
        tensor.numel()
        for name, tensor in converted.weights.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    channels, height, width = converted.shape
    print(
        f"{output}: NVAE of {channels}×{height}×{width} images, {trainable:,} parameters in {len(converted.weights)} tensors"
    )


def read(path: Path) -> Converted:
    """A published checkpoint.

    Raises:
        UserError: as `convert`.
    """
    content = load_plain(path, "a published NVAE checkpoint", [argparse.Namespace])
    parts = content if isinstance(content, dict) else {}
    for key, kind in (("state_dict", dict), ("args", argparse.Namespace)):
        if not isinstance(parts.get(key), kind):
            found = (
                type(parts[key]).__name__
                if key in parts
                else f"the keys {', '.join(map(str, parts))}"
                if parts
                else type(content).__name__
            )
            raise UserError(
                f"{path}: expected a published NVAE checkpoint with a {kind.__name__} under the key {key}, found {found}"
            )
    state: dict[str, Tensor] = {
        name: value for name, value in parts["state_dict"].items() if not str(name).endswith(".weight_normalized")
    }
    _check(path, state)
    settings, shape, filled = _settings(path, dict(vars(parts["args"])), state)
    try:
        with torch.device("meta"):
            nvae = NVAE(settings, shape)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"{path}: args: expected arguments that describe a network, found some that do not ({error})"
        ) from None
    known = _Names(path, nvae, state).all()
    if idle := {"prior_ftr0"} & set(state) if settings.single_group else set():
        state = {name: value for name, value in state.items() if name not in idle}
    if unknown := sorted(set(state) - set(known)):
        raise UserError(
            f"{path}: {unknown[0]}: a weight that the network of these arguments does not have ({len(unknown)} such in all)"
        )
    names = {theirs: known[theirs] for theirs in state}
    expected = nvae.state_dict()
    for theirs, ours in names.items():
        if state[theirs].shape != expected[ours].shape:
            raise UserError(
                f"{path}: {theirs}: expected the shape {tuple(expected[ours].shape)}, found {tuple(state[theirs].shape)}"
            )
    weights = {ours: state[theirs] for theirs, ours in names.items()}
    if settings.single_group:
        weights["prior_constant"] = torch.zeros(expected["prior_constant"].shape)
    return Converted(settings, shape, {name: weights[name] for name in expected}, filled, names)


def _check(path: Path, state: dict[str, Tensor]) -> None:
    """Every weight is a tensor of finite numbers in single or double precision; those that tell the images' shape are there."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {name}: expected a tensor, found {type(value).__name__}")
        if name.endswith("num_batches_tracked"):
            continue
        if value.dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"{path}: {name}: expected the type float32, found {str(value.dtype).removeprefix('torch.')}"
            )
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {name}: expected finite numbers, found others: the training had diverged")
    for name, dimensions in (("stem.weight", 4), ("prior_ftr0", 3), ("image_conditional.1.weight", 4)):
        if name not in state:
            raise UserError(f"{path}: {name}: expected this weight of every published NVAE, found none")
        if state[name].ndim != dimensions:
            raise UserError(
                f"{path}: {name}: expected {dimensions} dimensions, found the shape {tuple(state[name].shape)}"
            )


def _settings(
    path: Path, args: dict[str, Any], state: dict[str, Tensor]
) -> tuple[NVAENetworkSettings, tuple[int, int, int], dict[str, Any]]:
    """Settings, shape of the images, and the arguments that were filled in."""
    defaults = {**FILLED, "num_mixture_dec": max(state["image_conditional.1.weight"].shape[0] // 10, 1)}
    filled = {name: value for name, value in defaults.items() if name not in args}
    args = {**defaults, **args}

    def argument(name: str, kind: type = int) -> Any:
        if name not in args:
            raise UserError(f"{path}: args.{name}: expected this argument of the published program, found none")
        if type(args[name]) is not kind:
            raise UserError(f"{path}: args.{name}: expected a value of type {kind.__name__}, found {args[name]!r}")
        return args[name]

    architecture, dataset = argument("arch_instance", str), argument("dataset", str)
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{path}: args.arch_instance: expected one of {', '.join(ARCHITECTURES)}, found {architecture!r}"
        )
    if argument("num_preprocess_blocks") != argument("num_postprocess_blocks"):
        raise UserError(
            f"{path}: args.num_postprocess_blocks: expected num_preprocess_blocks ({argument('num_preprocess_blocks')}), "
            f"so that the images keep their size, found {argument('num_postprocess_blocks')}"
        )
    scales, groups = argument("num_latent_scales"), argument("num_groups_per_scale")
    if not 1 <= scales <= 16:
        raise UserError(
            f"{path}: args.num_latent_scales: expected 1 or more, as far as images can be halved, found {scales}"
        )
    smallest = argument("min_groups_per_scale") if argument("ada_groups", bool) else groups
    binary = dataset in ("mnist", "omniglot")
    mixtures = argument("num_mixture_dec")
    try:
        settings = NVAENetworkSettings(
            channels_encoder=argument("num_channels_enc"),
            channels_decoder=argument("num_channels_dec"),
            groups=adaptive_groups(scales, groups, smallest),
            latents=argument("num_latent_per_group"),
            preprocess_blocks=argument("num_preprocess_blocks"),
            preprocess_cells=argument("num_preprocess_cells"),
            postprocess_cells=argument("num_postprocess_cells"),
            cells_encoder=argument("num_cell_per_cond_enc"),
            cells_decoder=argument("num_cell_per_cond_dec"),
            architecture=architecture,
            squeeze_excitation=argument("use_se", bool),
            residual_posterior=argument("res_dist", bool),
            flows=argument("num_nf"),
            decoder="bernoulli" if binary else "logistic_mixture" if mixtures > 1 else "normal",
            **({"mixtures": mixtures} if mixtures > 1 and not binary else {}),
            bits=argument("num_x_bits"),
            crop=PADDING.get(dataset, 0),
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(
            f"{path}: args: {'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
        ) from None
    _, height, width = state["prior_ftr0"].shape
    shape = (state["stem.weight"].shape[1], height * 2**settings.halvings, width * 2**settings.halvings)
    return settings, shape, filled


class _Names:
    """Pairs of the published name and ours for every tensor of a network, in the published program's order of modules."""

    def __init__(self, path: Path, nvae: NVAE, state: dict[str, Tensor]):
        self.path, self.nvae, self.state = path, nvae, state
        self.ours = {module: name for name, module in nvae.named_modules()}

    def all(self) -> dict[str, str]:
        """Published name → ours, for every tensor.

        Raises:
            UserError: a tensor is missing.
        """
        return dict(self._walk())

    def _walk(self) -> Iterator[tuple[str, str]]:
        nvae, single = self.nvae, self.nvae.settings.single_group
        if not single:
            yield "prior_ftr0", "prior_constant"
        yield from self._layer("stem", nvae.stem)
        yield from self._cells("pre_process", nvae.preprocess)
        towards = list(reversed(nvae.groups))  # the encoder meets the groups from the finest to the coarsest
        number = 0
        for cells, group in zip(nvae.encoder_groups, towards, strict=True):
            for cell in cells:  # type: ignore[attr-defined]  # torch's lists know no type of element
                yield from self._cell(f"enc_tower.{number}", cell)
                number += 1
            if not group.first:
                yield from self._layer(f"enc_tower.{number}.conv", group.combine_encoder)
                number += 1
        yield from self._layer("enc0.1", nvae.encoder_top[1])
        number = flow = 0
        for position, group in enumerate(nvae.groups):
            yield from self._layer(f"enc_sampler.{position}", group.posterior_parameters)
            if not group.first:
                yield from self._layer(f"dec_sampler.{position - 1}.1", group.prior_parameters[1])
            for pair in group.flows:
                for half, cell in enumerate(pair, start=1):  # type: ignore[arg-type]
                    published = f"nf_cells.{flow}.cell{half}"
                    yield from self._layer(f"{published}.conv.convz.0", cell.expand)
                    yield from self._layer(f"{published}.conv.convz.2", cell.depthwise)
                    yield from self._layer(f"{published}.mu.conv_0", cell.shift)
                flow += 1
            for cell in group.cells:  # type: ignore[attr-defined]
                yield from self._cell(f"dec_tower.{number}", cell)
                number += 1
            yield from self._layer("stem_decoder" if single else f"dec_tower.{number}.conv", group.combine_decoder)
            number += 1
        yield from self._cells("post_process", nvae.postprocess)
        yield from self._layer("image_conditional.1", nvae.pixel_parameters[1])

    def _layer(self, published: str, layer: nn.Module) -> Iterator[tuple[str, str]]:
        for leaf in layer.state_dict():
            if f"{published}.{leaf}" not in self.state:
                raise UserError(
                    f"{self.path}: {published}.{leaf}: expected this weight by the file's own arguments, found none"
                )
            yield f"{published}.{leaf}", f"{self.ours[layer]}.{leaf}"

    def _cells(self, published: str, cells: nn.Sequential) -> Iterator[tuple[str, str]]:
        for number, cell in enumerate(cells):
            yield from self._cell(f"{published}.{number}", cell)

    def _cell(self, published: str, cell: nn.Module) -> Iterator[tuple[str, str]]:
        """A residual cell: its skip connection, its gate, its operations; within each the layers in their order."""
        assert isinstance(cell, ResidualCell)
        gate = [part for part in cell.branch if isinstance(part, SqueezeExcitation)]
        operations = [part for part in cell.branch if not isinstance(part, SqueezeExcitation)]
        for part, modules in (("skip", [cell.skip]), ("se", gate), ("_ops", operations)):
            theirs = self._layers(f"{published}.{part}.")
            layers = [
                layer
                for module in modules
                for layer in module.modules()
                if layer.state_dict() and not list(layer.children())
            ]
            if len(theirs) != len(layers):
                raise UserError(
                    f"{self.path}: {published}.{part}: expected {len(layers)} layers with weights, found {len(theirs)}: {', '.join(theirs) or 'none'}"
                )
            for name, layer in zip(theirs, layers, strict=True):
                yield from self._layer(name, layer)

    def _layers(self, prefix: str) -> list[str]:
        """Names of the published layers with weights under a prefix, by their numbers, which are in the order of their construction."""
        names = {name.rpartition(".")[0] for name in self.state if name.startswith(prefix)}
        return sorted(
            names,
            key=lambda name: [
                (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[._]", name)
            ],
        )
