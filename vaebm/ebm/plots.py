"""Plots of the trained energy: training curves, energies of data and chains, chain diagnostics."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vaebm import plots
from vaebm.chain.diagnostics import diagnose
from vaebm.chain.schedules import keywords
from vaebm.config import KERNELS, EBMSettings
from vaebm.data import ImageSet
from vaebm.ebm.contrastive_divergence import positives
from vaebm.model import VAEBM
from vaebm.noise import NoiseSource, batches
from vaebm.system.errors import UserError
from vaebm.system.plugins import imported
from vaebm.training.loop import Training

COUNT = 500
"""Number of images of each kind, and of chains."""

EBM_CURVES = {
    "energy": ["energy_data", "energy_chains"],
    "gap in units of the spread": ["gap_over_spread"],
    "loss": ["loss"],
    "gradient norm": ["gradient_norm"],
    "spectral penalty": ["spectral"],
    "learning rate": ["learning_rate"],
}


@torch.no_grad()
def save_ebm_plots(
    vaebm: VAEBM, dataset: ImageSet, run_state: Training, stage: EBMSettings, seed: int
) -> dict[str, Any]:
    """Write training curves, energy histograms (the paper's check for overfitting) and chain diagnostics.

    Returns:
        `ChainDiagnostics` of the training chain as a dict; {"problem": message} if the chains are not finite.
    """
    folder, batch = run_state.folder / "pictures", stage.training.batch
    run_state.write_history()
    plots.training_curves(run_state.history, folder / "curves.png", EBM_CURVES)
    assert (energy := vaebm.energy) is not None

    def energies(purpose: str, images: Tensor) -> Tensor:
        sources = (NoiseSource(seed, purpose, part) for part in batches(range(len(images)), batch))
        pairs = zip(images.split(batch), sources, strict=True)
        return torch.cat([energy(positives(vaebm.nvae, part, stage, source)) for part, source in pairs])

    def observe(eps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        images = vaebm.decode(eps[:-1])[0].sample(eps[-1])
        along.append(energy(images))
        return along[-1], images

    noise = NoiseSource(seed, "pictures", range(COUNT))
    eps_z, eps_x = vaebm.initial_noise(noise)
    shown = {
        "training images": energies("pictures train", dataset.split("train")[0][:COUNT]),
        "held-out images": energies("pictures heldout", dataset.split("heldout")[0][:COUNT]),
    }
    steps, along = stage.chain.steps, list[Tensor]()
    try:
        if (walk := KERNELS[stage.chain.kernel].transitions) is None:
            raise UserError(
                f"chain.kernel: expected one with transitions, which diagnostics need, found {stage.chain.kernel}"
            )
        diagnosed = diagnose(
            lambda eps: vaebm.potential(eps[:-1], eps[-1]),
            [*eps_z, eps_x], observe, noise=noise, batch=batch, walk=imported(walk), **keywords(stage.chain),
        )  # fmt: skip
        shown["start of the chains"] = torch.cat(along[:: steps + 1])
        shown["end of the chains"] = torch.cat(along[steps :: steps + 1])
        moved: dict[str, Sequence[float]] = {
            "latent noise": diagnosed.moved_latents,
            "pixel noise": diagnosed.moved_pixel_noise,
            "pixels": diagnosed.moved_pixels,
        }
        panels: dict[str, dict[str, Sequence[float]]] = {
            "acceptance of a Metropolis correction": {"": diagnosed.acceptance},
            "autocorrelation of the energy": {"": diagnosed.autocorrelation},
            "distance from the start (RMS)": moved,
        }
        plots.step_curves(panels, folder / "chains.png")
        figures = asdict(diagnosed)
    except UserError as problem:  # the model is kept
        figures = {"problem": str(problem)}
    samples = {name: values.cpu().double().numpy() for name, values in shown.items()}
    plots.histograms({"": samples}, folder / "energies.png", "energy E(x)")
    return figures
