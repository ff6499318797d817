"""Checkpoints in the full layout of the published NVAE program, written from our networks."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaebm.config import NVAENetworkSettings
from vaebm.nvae.cells import ResidualCell
from vaebm.nvae.layers import BatchNorm, BatchNormSwish, PlainConv2d
from vaebm.nvae.model import NVAE

TWO_SCALES = {
    "channels_encoder": 8, "channels_decoder": 8, "groups": [2, 1], "latents": 2, "preprocess_blocks": 1,
    "preprocess_cells": 2, "postprocess_cells": 2, "cells_encoder": 1, "cells_decoder": 1,
}  # fmt: skip
"""A small network."""

SMALLEST = TWO_SCALES | {"groups": [1, 1], "preprocess_cells": 1, "postprocess_cells": 1}

NEWER = ("ada_groups", "min_groups_per_scale", "num_mixture_dec")
"""Arguments that files of older versions lack."""

TRAINING = {
    "root": "runs", "save": "exp", "data": "images", "seed": 1, "cont_training": False,
    "batch_size": 32, "epochs": 400, "warmup_epochs": 5, "learning_rate": 1e-2, "learning_rate_min": 1e-4,
    "weight_decay": 3e-4, "weight_decay_norm": 0.1, "weight_decay_norm_init": 10.0, "weight_decay_norm_anneal": False,
    "fast_adamax": False, "kl_anneal_portion": 0.3, "kl_const_portion": 1e-4, "kl_const_coeff": 1e-4,
    "num_proc_node": 1, "node_rank": 0, "local_rank": 0, "global_rank": 0, "num_process_per_node": 8,
    "master_address": "127.0.0.1", "distributed": True,
}  # fmt: skip
"""Arguments of a training, which say nothing about the network."""

CELLS = {
    side: ["res_bnswish", "res_bnswish"] if side.endswith(("enc", "pre")) else ["mconv_e6k5g0"]
    for side in ("normal_enc", "down_enc", "normal_dec", "up_dec", "normal_pre", "down_pre", "normal_post", "up_post")
}
"""Operations by kind of cell, as the published program saves them."""


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
    torch.manual_seed(0)
    nvae = NVAE(NVAENetworkSettings.model_validate(TWO_SCALES | changes), (3, 16, 16))
    with torch.no_grad():
        for value in nvae.state_dict().values():
            value.uniform_(0.5, 1.5) if value.is_floating_point() else value.fill_(7)
    return nvae


def arguments(settings: NVAENetworkSettings, dataset: str) -> dict[str, Any]:
    """The published program's command line for these settings."""
    groups = settings.groups
    return {
        "dataset": dataset,
        "num_channels_enc": settings.channels_encoder,
        "num_channels_dec": settings.channels_decoder,
        "num_latent_scales": len(groups),
        "num_groups_per_scale": groups[0],
        "ada_groups": len(set(groups)) > 1,
        "min_groups_per_scale": min(groups),
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


def write_published(
    path: Path,
    nvae: NVAE,
    *,
    dataset: str = "cifar10",
    legacy: bool = False,
    prefix: str = "",
    old: bool = False,
    epoch: int = 400,
    **changes: Any,
) -> Path:
    """Write a network as the published program does, after a step of its optimiser.

    Args:
        legacy: serialisation before torch 1.6, which is no zip file.
        prefix: of every weight, for example "module.".
        old: without `NEWER` and the second names of plain convolutions' weights.
        changes: other arguments.
    """
    parameters = [nn.Parameter(parameter.detach().clone()) for parameter in nvae.parameters()]
    optimizer = torch.optim.Adamax(parameters, 1e-2, weight_decay=3e-4, eps=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 394, eta_min=1e-4)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    scheduler.step()
    args = argparse.Namespace(**TRAINING | arguments(nvae.settings, dataset) | changes)
    for name in NEWER if old else ():
        delattr(args, name)
    content = {
        "epoch": epoch,
        "state_dict": {
            f"{prefix}{name}": value
            for name, value in published(nvae).items()
            if not (old and name.endswith(".weight_normalized"))
        },
        "optimizer": optimizer.state_dict(),
        "global_step": 195 * epoch,
        "args": args,
        "arch_instance": {**CELLS, "ar_nn": [""]},
        "scheduler": scheduler.state_dict(),
        "grad_scalar": {
            "scale": 1024.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 2000,
            "_growth_tracker": 1,
        },
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
