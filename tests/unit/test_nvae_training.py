"""Training of the NVAE: several processes, accumulated gradients, reduced precision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vaebm.cli.work import measured
from vaebm.config import NVAENetworkSettings, NVAETrainingSettings
from vaebm.data import prepare
from vaebm.noise import NoiseSource
from vaebm.nvae.layers import DataInitializedConv2d, data_initialization
from vaebm.nvae.model import NVAE
from vaebm.nvae.train import NVAETrainer
from vaebm.system.checkpoint import load_model
from vaebm.system.device import seeded

NETWORK = {
    "channels_encoder": 4, "channels_decoder": 4, "groups": [2, 1], "latents": 2, "preprocess_blocks": 1,
    "preprocess_cells": 1,
    "postprocess_cells": 1, "cells_encoder": 1, "cells_decoder": 1, "flows": 1,
}  # fmt: skip


def trainer(architecture: str = "res_mbconv", flows: int = 1, **training: Any) -> NVAETrainer:
    with seeded(0):
        nvae = (
            NVAE(
                NVAENetworkSettings.model_validate({**NETWORK, "architecture": architecture, "flows": flows}), (1, 8, 8)
            )
            .double()
            .train()
        )
    settings = NVAETrainingSettings.model_validate({"epochs": 10, "batch": 8, "precision": "float64", **training})
    return NVAETrainer(nvae, settings, total=10, seed=0)


def images(count: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The command itself under torchrun: batch norms, KL balancing, gradients and penalties are those of the whole
    batch.

    The two compute their activations again, where batch norms gather the moments a second time.
    """
    prepare("digits", tmp_path / "data")
    training = {
        "epochs": 2,
        "batch": 500,
        "micro_batch": 250,
        "warmup_epochs": 1,
        "precision": "float64",
        "norm_weight": 1e-2,
    }
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump(
                {"seed": 0, "nvae": {"network": NETWORK, "training": training | {"recompute": name == "two"}}}
            )
        )
    python, torchrun = (
        [sys.executable, "-m"],
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
    )
    for name, start in (("one", python), ("two", torchrun)):
        command = [
            *start,
            "vaebm",
            "nvae",
            f"{name}.yaml",
            "--data",
            "data/manifest.json",
            "--model",
            f"{name}/model.pt",
        ]
        subprocess.run(
            command,
            cwd=tmp_path,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
    one, two = (load_model(tmp_path / name / "model.pt")["weights"] for name in ("one", "two"))
    assert one["prior_constant"].dtype == torch.float64
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("architecture", ["res_mbconv", "res_bnelu"])
def test_recomputed_activations_change_nothing_but_memory(architecture: str) -> None:
    """Weights and batch norms' statistics after three steps are the same bits; less is kept for the backward pass."""
    kept, again = trainer(architecture), trainer(architecture, recompute=True)
    activations = []
    for each in (kept, again):
        for step in range(3):
            each.step(images(), step, 1e-2, penalise=True)
        with measured(each.nvae) as work:
            each.nvae(images().double() / 255.0, noise=NoiseSource(0, "any", range(8)))
        activations.append(work().activations)
    for name, value in kept.nvae.state_dict().items():
        assert torch.equal(value, again.nvae.state_dict()[name]), name
    assert activations[1] < 0.5 * activations[0]


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """Without batch norms and balancing, which see the micro-batch, nothing else may depend on it."""
    at_once = trainer("res_elu", kl_balancing=False)
    in_parts = trainer("res_elu", kl_balancing=False, micro_batch=2)
    for each in (at_once, in_parts):
        with torch.no_grad(), data_initialization(each.nvae):
            each.nvae(each.inputs(images(), 0), noise=NoiseSource(0, "initialization", range(8)))
        assert each.step(images(), 4, 1e-3, penalise=True).finite
    for ours, theirs in zip(in_parts.flat.parameters, at_once.flat.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def test_a_step_on_small_activations_uses_one_thread() -> None:
    """4 channels of 8×8: up to 128 images."""
    before, seen = torch.get_num_threads(), list[int]()
    torch.set_num_threads(2)
    try:
        for batch in (128, 130):
            each = trainer(batch=batch)
            each.nvae.stem.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
            assert each.step(images(batch), 0, 1e-3, penalise=True).finite
            seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2, 2, 2]


def test_first_batch_initialises_res_elu() -> None:
    """Each convolution's own outputs on that batch have mean 0 and standard deviation 0.2, those of later layers
    included.
    """
    nvae = trainer("res_elu").nvae
    seen: dict[str, torch.Tensor] = {}
    for name, layer in nvae.named_modules():
        if isinstance(layer, DataInitializedConv2d):
            layer.register_forward_hook(lambda layer, inputs, output, name=name: seen.__setitem__(name, output))
    with torch.no_grad(), data_initialization(nvae):
        nvae(torch.rand(8, 1, 8, 8, dtype=torch.float64), noise=NoiseSource(0, "test", range(8)))
    assert len(seen) > 10
    for name, output in seen.items():
        assert output.mean((0, 2, 3)).abs().max() < 1e-6, name
        assert output.std((0, 2, 3)).tolist() == pytest.approx([0.2] * output.shape[1], rel=1e-3), name


def test_bfloat16_keeps_distributions_and_weights_in_single_precision() -> None:
    """Losses near those of single precision: 8 bits of mantissa in the convolutions, none lost in densities."""
    settings: dict[str, Any] = {"epochs": 10, "batch": 8}
    losses = {}
    for precision in ("float32", "bfloat16"):
        with seeded(0):
            nvae = NVAE(NVAENetworkSettings.model_validate(NETWORK), (1, 8, 8)).train()
        each = NVAETrainer(
            nvae, NVAETrainingSettings.model_validate({**settings, "precision": precision}), total=10, seed=0
        )
        losses[precision] = each.step(images(), 4, 1e-3, penalise=False)
        assert all(
            parameter.dtype == parameter.grad.dtype == torch.float32
            for parameter in each.flat.parameters
            if parameter.grad is not None
        )
    assert losses["bfloat16"].reconstruction != losses["float32"].reconstruction  # autocast did something
    assert losses["bfloat16"].reconstruction == pytest.approx(losses["float32"].reconstruction, rel=0.05)
    assert sum(losses["bfloat16"].kl) == pytest.approx(sum(losses["float32"].kl), rel=0.05)
