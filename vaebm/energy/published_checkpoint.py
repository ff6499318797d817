"""Published energy networks, and the reader of their checkpoints (`vaebm convert energy`; VAEBM appendix E)."""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm.config import EnergyNetworkSettings
from vaebm.config.yaml_files import checkpoint_section
from vaebm.energy.network import EnergyNetwork
from vaebm.nvae.published_checkpoint import refuse, unwrapped
from vaebm.system.allocator import return_freed_memory
from vaebm.system.checkpoint import load_plain, save_model
from vaebm.system.errors import UserError


class PublishedEnergy(NamedTuple):
    """A published energy network for images of one size."""

    network: EnergyNetworkSettings
    """Settings with the published number of channels."""
    side: int
    """Height and width of the images."""


def _published(channels: int, widths: list[int], down: list[int], side: int) -> PublishedEnergy:
    return PublishedEnergy(EnergyNetworkSettings(channels=channels, widths=widths, down=down), side)


PUBLISHED_ENERGIES = {
    "mnist": _published(64, [1, 1, 2, 2], [0, 2], 32),
    "cifar32": _published(128, [1, 1, 2, 2, 2, 2], [0, 2, 4], 32),
    "celeba64": _published(64, [1, 1, 2, 2, 2, 4, 4, 4], [0, 2, 4, 6], 64),
    "lsun64": _published(64, [1, 1, 2, 2, 2, 2, 4, 4, 4, 4], [0, 2, 5, 8], 64),
    "celeba256": _published(64, [1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 8, 8], [0, 2, 4, 6, 8, 10], 256),
}
"""The published networks by name (VAEBM appendix E)."""


class ConvertedEnergy(NamedTuple):
    """A published checkpoint, converted."""

    name: str
    """Key of `PUBLISHED_ENERGIES`, for any number of channels."""
    settings: EnergyNetworkSettings
    shape: tuple[int, int, int]
    """(C, H, W) of the images: C from the file, H and W from the network."""
    weights: dict[str, Tensor]
    """State of `EnergyNetwork(settings, C)`."""


def convert_published_energy(path: Path, output: Path) -> None:
    """Convert the published checkpoint `path` to the model file `output`, and print a summary and its section.

    Raises:
        UserError: the file is missing, or not a published energy network.
    """
    name, settings, shape, weights = read_published_energy(path)
    return_freed_memory()  # of the optimiser's state
    save_model(output, "energy", settings.model_dump(), weights, shape=list(shape), potential="density", start="prior")
    parameters = sum(tensor.numel() for tensor in weights.values())
    print(
        f"{output}: the energy network {name} with {settings.channels} channels "
        f"for {'×'.join(map(str, shape))} images, {parameters:,} parameters"
    )
    print(checkpoint_section("ebm", settings, path, potential="density"))


def read_published_energy(path: Path) -> ConvertedEnergy:
    """Read and check a published checkpoint, {"model": weights, "optimizer": …} or the weights alone.

    Raises:
        UserError: as `convert_published_energy`.
    """
    content = load_plain(path, "a published energy network", mapped=True)
    state = content.get("model", content) if isinstance(content, dict) else content
    pairs = state.items() if isinstance(state, dict) else ()
    if not pairs or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in pairs):
        keys = content if isinstance(content, dict) else {}
        found = f"the keys {', '.join(map(str, keys))}" if keys else type(content).__name__
        raise UserError(
            f"{path}: expected a published energy network, a dictionary with its weights under the key model, "
            f"found {found}"
        )
    state = unwrapped(state)
    name, settings, channels = _recognize(path, state)
    with torch.device("meta"):
        expected = EnergyNetwork(settings, channels).state_dict()
    names = {published_name(ours): ours for ours in expected}
    if unknown := sorted(set(state) - set(names)):
        raise UserError(
            f"{path}: {unknown[0]}: a weight that the network {name} does not have ({len(unknown)} such in all)"
        )
    for published, ours in names.items():
        weight = _weight(path, state, published)
        if weight.shape != expected[ours].shape:
            refuse(path, published, f"the shape {tuple(expected[ours].shape)}", tuple(weight.shape))
        if weight.dtype != torch.float32:
            refuse(path, published, "the type float32", str(weight.dtype).removeprefix("torch."))
    side = PUBLISHED_ENERGIES[name].side
    weights = {ours: state[published] for published, ours in names.items()}
    return ConvertedEnergy(name, settings, (channels, side, side), weights)


def published_name(name: str) -> str:
    """Published name of a weight of `EnergyNetwork`."""
    names = {"stem.": "conv1.", "head.": "linear.", ".first.": ".conv1.", ".second.": ".conv2.", ".skip.": ".skip.0."}
    for ours, published in names.items():
        name = name.replace(ours, published)
    return name


def _weight(path: Path, state: dict[str, Tensor], name: str) -> Tensor:
    return state[name] if name in state else refuse(path, name, "this weight of a published energy network", "none")


def _recognize(path: Path, state: dict[str, Tensor]) -> tuple[str, EnergyNetworkSettings, int]:
    """Name and settings of the network, from the widths and skip connections of its blocks, and the images' channels.

    A skip connection does not imply a lower resolution: it also occurs where the width changes.
    """
    stem = _weight(path, state, "conv1.weight")
    if stem.dim() != 4:
        refuse(path, "conv1.weight", "the shape (n, C, 3, 3)", tuple(stem.shape))
    blocks = 1 + max((int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    outputs = [_weight(path, state, f"blocks.{block}.conv1.weight").shape[:1].numel() for block in range(blocks)]
    skips = [block for block in range(blocks) if f"blocks.{block}.skip.0.weight" in state]
    channels, channels_in = stem.shape[:2]
    for name, (network, _) in PUBLISHED_ENERGIES.items():
        pairs = enumerate(itertools.pairwise([1, *network.widths]))
        changing = [block for block, (before, width) in pairs if block in network.down or width != before]
        if [channels * width for width in network.widths] == outputs and changing == skips:
            return name, network.model_copy(update={"channels": channels}), channels_in
    raise UserError(
        f"{path}: expected the blocks of a published energy network ({', '.join(PUBLISHED_ENERGIES)}), "
        f"found blocks of {', '.join(map(str, outputs)) or 'no'} channels after a stem of {channels}, "
        f"with skip connections in {skips or 'none'}"
    )
