"""What the trained energy and its chains look like: curves, energies of data and chains, figures of the chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vaebm import plots
from vaebm.chain.diagnostics import diagnose
from vaebm.config import EBMSettings
from vaebm.data import ImageSet
from vaebm.ebm.contrastive_divergence import negatives, positives
from vaebm.model import VAEBM
from vaebm.noise import NoiseSource
from vaebm.system.errors import UserError
from vaebm.training.loop import Training

COUNT = 500
"""Images of each kind, and chains."""

CURVES = {
    "energy": ["energy_data", "energy_chains"],
    "gap in units of the spread": ["gap_over_spread"],
    "loss": ["loss"],
    "gradient norm": ["gradient_norm"],
    "spectral penalty": ["spectral"],
    "learning rate": ["learning_rate"],
}


@torch.no_grad()
def save_pictures(
    vaebm: VAEBM, dataset: ImageSet, run_state: Training, stage: EBMSettings, seed: int
) -> dict[str, Any]:
    """Curves of the training, histograms of the energies of data and chains (the paper's check for overfitting), and what the chains do.

    Returns:
        `ChainDiagnostics` of the training's chain, plain; for chains that leave the finite numbers only that, as "problem".
    """
    folder, batch = run_state.folder / "pictures", stage.training.batch
    run_state.write_history()
    plots.training_curves(run_state.history, folder / "curves.png", CURVES)
    assert (energy := vaebm.energy) is not None

    def energies(purpose: str, images: Tensor) -> Tensor:
        parts = [range(len(images))[first : first + batch] for first in range(0, len(images), batch)]
        return torch.cat(
            [
                energy(positives(vaebm.nvae, images[part.start : part.stop], stage, NoiseSource(seed, purpose, part)))
                for part in parts
            ]
        )

    def observe(eps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        images = negatives(vaebm.nvae, eps[:-1], eps[-1], "sample")
        told.append(energy(images))
        return told[-1], images

    noise = NoiseSource(seed, "pictures", range(COUNT))
    eps_z, eps_x = vaebm.noise_like_prior(noise)
    shown = {
        "training images": energies("pictures train", dataset.split("train")[0][:COUNT]),
        "held-out images": energies("pictures heldout", dataset.split("heldout")[0][:COUNT]),
    }
    steps, told = stage.chain.steps, list[Tensor]()
    try:
        diagnosed = diagnose(
            lambda eps: vaebm.potential(eps[:-1], eps[-1]),
            [*eps_z, eps_x],
            observe,
            steps=steps,
            step_size=stage.chain.step_size,
            noise=noise,
            batch=batch,
        )
        shown |= {
            "start of the chains": torch.cat(told[:: steps + 1]),
            "end of the chains": torch.cat(told[steps :: steps + 1]),
        }
        plots.step_curves(
            {
                "acceptance of a Metropolis correction": {"": diagnosed.acceptance},
                "autocorrelation of the energy": {"": diagnosed.autocorrelation},
                "distance from the start (RMS)": {
                    "latent noise": diagnosed.moved_latents,
                    "pixel noise": diagnosed.moved_pixel_noise,
                    "pixels": diagnosed.moved_pixels,
                },
            },
            folder / "chains.png",
        )
        figures = asdict(diagnosed)
    except UserError as problem:  # a model all the same
        figures = {"problem": str(problem)}
    plots.histograms(
        {"": {name: values.cpu().double().numpy() for name, values in shown.items()}},
        folder / "energies.png",
        "energy E(x)",
        columns=1,
    )
    return figures
