"""Reader of published NVAE checkpoints (`vaebm convert nvae`).

The published program saves a dictionary with its weights (`state_dict`) and its command line (`args`, an
`argparse.Namespace`). Modules are matched in the order of its forward pass. Inside a residual cell, layers are matched
by number, since their names differ between architectures. Every key is used once or known to be idle, and all shapes
are checked.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vaebm.config import NVAENetworkSettings
from vaebm.config.yaml_files import checkpoint_section
from vaebm.nvae.cells import ARCHITECTURES, ResidualCell
from vaebm.nvae.layers import SqueezeExcitation
from vaebm.nvae.model import NVAE
from vaebm.system.allocator import return_freed_memory
from vaebm.system.checkpoint import load_plain, save_model
from vaebm.system.errors import UserError, brief

DATASET_PADDING = {"mnist": 2, "omniglot": 2, "stacked_mnist": 2}
"""Data sets with 28×28 images padded to 32×32 → rows and columns of padding at each border."""

FILLED: dict[str, int | bool] = {"ada_groups": False, "min_groups_per_scale": 1, "num_nf": 0, "num_x_bits": 8}
"""Arguments missing in checkpoints of older versions → their value; `num_mixture_dec` is derived from the weights."""


def refuse(path: Path, key: str, expected: str, found: object) -> NoReturn:
    """Raise the UserError of a key in a checkpoint."""
    raise UserError(f"{path}: {key}: expected {expected}, found {found}")


def unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Weights without the prefix that DistributedDataParallel puts before every name."""
    wrapped = all(str(name).startswith("module.") for name in state)
    return {name.removeprefix("module."): value for name, value in state.items()} if wrapped else state


class ConvertedNVAE(NamedTuple):
    """A published checkpoint, converted."""

    settings: NVAENetworkSettings
    shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    weights: dict[str, Tensor]
    """State of `NVAE(settings, shape)`."""
    filled: dict[str, Any]
    """Arguments missing in the file → the values used."""
    names: dict[str, str]
    """Published name of every tensor used → our name, in the file's order."""
    dataset: str
    """The published program's name of the data set."""
    epoch: int | None
    """Epoch of the training; None: not in the file."""


def adaptive_groups(scales: int, groups: int, smallest: int) -> list[int]:
    """Latent groups of each scale, finest first: halved from scale to scale, at least `smallest`."""
    counts = [groups]
    for _ in range(scales - 1):
        counts.append(max(smallest, counts[-1] // 2))
    return counts


def convert_published_nvae(path: Path, output: Path) -> None:
    """Convert the published checkpoint `path` to the model file `output`, and print a summary and its section.

    Raises:
        UserError: as `read_published_nvae`.
    """
    converted = read_published_nvae(path)
    return_freed_memory()  # of the optimiser's state
    save_model(output, "nvae", converted.settings.model_dump(), converted.weights, shape=list(converted.shape))
    for name, value in converted.filled.items():
        print(f"{path}: args.{name}: not in the file, taken as {value!r}")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    trainable = sum(tensor.numel() for name, tensor in converted.weights.items() if not name.endswith(buffers))
    channels, height, width = converted.shape
    print(
        f"{output}: NVAE of {channels}×{height}×{width} images, {trainable:,} parameters "
        f"in {len(converted.weights)} tensors"
    )
    print(checkpoint_section("nvae", converted.settings, path))


def read_published_nvae(path: Path) -> ConvertedNVAE:
    """Read and check a published checkpoint.

    Raises:
        UserError: the file is missing, not a published NVAE, or its weights do not fit its arguments.
    """
    content = load_plain(path, "a published NVAE checkpoint", [argparse.Namespace], mapped=True)
    parts = content if isinstance(content, dict) else {}
    for key, kind in (("state_dict", dict), ("args", argparse.Namespace)):
        if not isinstance(parts.get(key), kind):
            found = f"the keys {', '.join(map(str, parts))}" if parts else type(content).__name__
            if key in parts:
                found = type(parts[key]).__name__
            wanted = f"a published NVAE checkpoint with a {kind.__name__} under the key {key}"
            raise UserError(f"{path}: expected {wanted}, found {found}")
    given: dict[str, Tensor] = unwrapped(parts["state_dict"])
    state = {name: value for name, value in given.items() if not str(name).endswith(".weight_normalized")}
    _check(path, state)
    settings, shape, filled = _settings(path, dict(vars(parts["args"])), state)
    try:
        with torch.device("meta"):
            nvae = NVAE(settings, shape)
    except Exception as error:  # of any other arguments
        raise UserError(
            f"{path}: args: expected arguments that describe a network, found some that do not ({brief(error)})"
        ) from None
    known = dict(_Names(path, nvae, state))
    if settings.single_group:
        del state["prior_ftr0"]  # not used by the published program either
    if unknown := sorted(set(state) - set(known)):
        raise UserError(
            f"{path}: {unknown[0]}: a weight that the network of these arguments does not have "
            f"({len(unknown)} such in all)"
        )
    names = {theirs: known[theirs] for theirs in state}
    expected = nvae.state_dict()
    for theirs, ours in names.items():
        if state[theirs].shape != expected[ours].shape:
            refuse(path, theirs, f"the shape {tuple(expected[ours].shape)}", tuple(state[theirs].shape))
    weights = {ours: state[theirs] for theirs, ours in names.items()}
    dataset, epoch = parts["args"].dataset, parts.get("epoch") if type(parts.get("epoch")) is int else None
    if settings.single_group:
        weights["prior_constant"] = torch.zeros(expected["prior_constant"].shape)
    return ConvertedNVAE(settings, shape, {name: weights[name] for name in expected}, filled, names, dataset, epoch)


def _check(path: Path, state: dict[str, Tensor]) -> None:
    """Check that weights are finite float32 or float64 tensors, and that those that give the images' shape exist."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            refuse(path, name, "a tensor", type(value).__name__)
        if name.endswith("num_batches_tracked"):
            continue
        if value.dtype not in (torch.float32, torch.float64):
            refuse(path, name, "the type float32", str(value.dtype).removeprefix("torch."))
        if not torch.isfinite(value).all():
            refuse(path, name, "finite numbers", "others: the training had diverged")
    for name, dimensions in (("stem.weight", 4), ("prior_ftr0", 3), ("image_conditional.1.weight", 4)):
        if name not in state:
            refuse(path, name, "this weight of every published NVAE", "none")
        if state[name].ndim != dimensions:
            refuse(path, name, f"{dimensions} dimensions", f"the shape {tuple(state[name].shape)}")


def _settings(
    path: Path, args: dict[str, Any], state: dict[str, Tensor]
) -> tuple[NVAENetworkSettings, tuple[int, int, int], dict[str, Any]]:
    """Settings, shape of the images, and the missing arguments with the values used."""
    defaults = {**FILLED, "num_mixture_dec": max(state["image_conditional.1.weight"].shape[0] // 10, 1)}
    filled = {name: value for name, value in defaults.items() if name not in args}
    args = {**defaults, **args}

    def argument(name: str, kind: type = int) -> Any:
        if name not in args:
            refuse(path, f"args.{name}", "this argument of the published program", "none")
        if type(args[name]) is not kind:
            refuse(path, f"args.{name}", f"a value of type {kind.__name__}", repr(args[name]))
        return args[name]

    architecture, dataset = argument("arch_instance", str), argument("dataset", str)
    if architecture not in ARCHITECTURES:
        refuse(path, "args.arch_instance", f"one of {', '.join(ARCHITECTURES)}", repr(architecture))
    before, after = argument("num_preprocess_blocks"), argument("num_postprocess_blocks")
    if before != after:
        wanted = f"num_preprocess_blocks ({before}), so that the images keep their size"
        refuse(path, "args.num_postprocess_blocks", wanted, after)
    scales, groups = argument("num_latent_scales"), argument("num_groups_per_scale")
    if not 1 <= scales <= 16:
        refuse(path, "args.num_latent_scales", "1 or more, as far as images can be halved", scales)
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
            crop=DATASET_PADDING.get(dataset, 0),
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
    """Pairs of published name and ours for every tensor, in the published program's order; raises if one is missing."""

    def __init__(self, path: Path, nvae: NVAE, state: dict[str, Tensor]):
        self.path, self.nvae, self.state = path, nvae, state
        self.ours = {module: name for name, module in nvae.named_modules()}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        nvae, single = self.nvae, self.nvae.settings.single_group
        if not single:
            yield "prior_ftr0", "prior_constant"
        yield from self._layer("stem", nvae.stem)
        yield from self._cells("pre_process", nvae.preprocess)
        towards = list(reversed(nvae.groups))  # the encoder runs from the finest group to the coarsest
        number = 0
        for cells, group in zip(nvae.encoder_groups, towards, strict=True):
            for cell in cells:
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
            for cell in group.cells:
                yield from self._cell(f"dec_tower.{number}", cell)
                number += 1
            yield from self._layer("stem_decoder" if single else f"dec_tower.{number}.conv", group.combine_decoder)
            number += 1
        yield from self._cells("post_process", nvae.postprocess)
        yield from self._layer("image_conditional.1", nvae.pixel_parameters[1])

    def _layer(self, published: str, layer: nn.Module) -> Iterator[tuple[str, str]]:
        for leaf in layer.state_dict():
            if f"{published}.{leaf}" not in self.state:
                refuse(self.path, f"{published}.{leaf}", "this weight by the file's own arguments", "none")
            yield f"{published}.{leaf}", f"{self.ours[layer]}.{leaf}"

    def _cells(self, published: str, cells: nn.Sequential) -> Iterator[tuple[str, str]]:
        for number, cell in enumerate(cells):
            yield from self._cell(f"{published}.{number}", cell)

    def _cell(self, published: str, cell: nn.Module) -> Iterator[tuple[str, str]]:
        """Names of a residual cell: skip connection, gate, operations, each with its layers in order."""
        assert isinstance(cell, ResidualCell)
        gate = [part for part in cell.branch if isinstance(part, SqueezeExcitation)]
        operations = [part for part in cell.branch if not isinstance(part, SqueezeExcitation)]
        for part, modules in (("skip", [cell.skip]), ("se", gate), ("_ops", operations)):
            theirs = self._layers(f"{published}.{part}.")
            within = nn.ModuleList(modules).modules()
            layers = [layer for layer in within if layer.state_dict() and not list(layer.children())]
            if len(theirs) != len(layers):
                found = f"{len(theirs)}: {', '.join(theirs) or 'none'}"
                refuse(self.path, f"{published}.{part}", f"{len(layers)} layers with weights", found)
            for name, layer in zip(theirs, layers, strict=True):
                yield from self._layer(name, layer)

    def _layers(self, prefix: str) -> list[str]:
        """Published layers with weights under a prefix, sorted by number, which is the order of construction."""

        def numbers_first(name: str) -> list[tuple[int, int, str]]:
            return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[._]", name)]

        return sorted({name.rpartition(".")[0] for name in self.state if name.startswith(prefix)}, key=numbers_first)
