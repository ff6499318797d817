"""Stage `ebm`: training of the energy network on a frozen NVAE by contrastive divergence (VAEBM section 3.1, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaebm import plots
from vaebm.checkpoint import hash_tensors, load_model, save_model
from vaebm.config import EBMSettings, EBMTrainingSettings, UserError
from vaebm.data import ImageSet, open_images
from vaebm.ebm.network import EnergyNetwork
from vaebm.ebm.objective import Guard, WeightAverage, adaptive_clip, contrastive_divergence
from vaebm.model import VAEBM
from vaebm.noise import NoiseSource, derive
from vaebm.nvae.layers import convolution_weights
from vaebm.nvae.model import load_nvae
from vaebm.runtime import place, prepare, seeded
from vaebm.settings import read_settings
from vaebm.spectral import SpectralPenalty
from vaebm.training import Limits, Training, batch_indices

INITIAL_BATCHES = 5
"""Batches of training images that the data-dependent initialisation sees."""

RECORD_EVERY = 5
"""Iterations between two lines of the history."""

CURVES = {
    "energy": ["energy_data", "energy_chains"],
    "gap in units of the spread": ["gap_over_spread"],
    "loss": ["loss"],
    "gradient norm": ["gradient_norm"],
    "spectral penalty": ["spectral"],
    "learning rate": ["learning_rate"],
}


def learning_rate(step: int, training: EBMTrainingSettings) -> float:
    """Constant as published, or a cosine from the first iteration to zero after the last."""
    if training.learning_rate_decay == "none":
        return training.learning_rate
    return 0.5 * training.learning_rate * (1.0 + math.cos(math.pi * step / training.iterations))


def negatives(model: VAEBM, eps_z: list[Tensor], eps_x: Tensor, kind: str) -> Tensor:
    """The chains' images (B, C, H, W): decoder samples in [0, 1], or decoder means, which may leave it."""
    with torch.no_grad():
        pixels, _ = model.decode(eps_z)
        return pixels.mean if kind == "mean" else pixels.sample(eps_x)


class Snapshots:
    """The energy's weights at a stated pace, kept until the guard is sure of them.

    A snapshot becomes the good one when the training has gone on for the guard's patience without a bad iteration, so the
    last good one is never from the slope that ended in a divergence.
    """

    def __init__(self, every: int, patience: int):
        self.every, self.patience = every, patience
        self.waiting: list[tuple[int, dict[str, Tensor]]] = []
        self.good: tuple[int, dict[str, Tensor]] | None = None

    def offer(self, iteration: int, weights: Callable[[], dict[str, Tensor]], healthy: bool) -> None:
        """After `iteration` updates: take a snapshot where one is due, and confirm those that have proved good."""
        if not healthy:
            self.waiting = []
        elif iteration % self.every == 0:
            self.waiting.append((iteration, weights()))
        while self.waiting and iteration - self.waiting[0][0] >= self.patience:
            self.good = self.waiting.pop(0)

    def state_dict(self) -> dict[str, Any]:
        """All snapshots that are kept."""
        return {"waiting": self.waiting, "good": self.good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with those that were kept."""
        self.waiting, self.good = [tuple(snapshot) for snapshot in state["waiting"]], state["good"]


def run(settings: Path, data: Path, nvae: Path, model: Path, *, threads: int, gpus: int, limits: Limits) -> None:
    """Train the energy of the settings file and write model.pt, training.json, history.jsonl and pictures.

    A training that diverges is stopped; its last good snapshot is the model, and training.json says so.

    Args:
        settings: ebm.yaml.
        data: manifest of the data set.
        nvae: model of the NVAE, frozen throughout.
        model: where the model goes; the other files stand beside it.

    Raises:
        UserError: images that do not fit the NVAE or the batch, or a training that diverged before its first good snapshot.
        Interrupted: stopped in time, to be resumed.
    """
    device = prepare(threads, gpus)
    seed, stage = read_settings(settings, EBMSettings)
    training, chain = stage.training, stage.chain
    dataset = open_images(data)
    vae, vae_hash = load_nvae(nvae, device), load_model(nvae, "nvae")["hash"]
    if vae.shape != dataset.shape:
        raise UserError(f"{nvae}: expected an NVAE of images {dataset.shape}, found one of {vae.shape}")
    images = dataset.split("train")[0].to(device)
    if training.batch > len(images):
        raise UserError(f"{settings}: ebm.training.batch: expected at most the {len(images)} training images, found {training.batch}")

    def batch_of(step: int) -> Tensor:
        chosen = batch_indices(step, training.batch, len(images), derive(seed, "ebm"))
        return images[chosen].to(torch.float32).div_(255.0)

    with seeded(derive(seed, "energy")):
        energy = EnergyNetwork(stage.network, dataset.shape[0])
    place(energy, device)
    energy.initialize(torch.cat([batch_of(step) for step in range(min(INITIAL_BATCHES, len(images) // training.batch))]))
    vaebm = VAEBM(vae, energy, stage.potential)
    spectral = SpectralPenalty(convolution_weights(energy), derive(seed, "spectral")).to(device)
    optimizer = torch.optim.Adam(energy.parameters(), lr=training.learning_rate, betas=(training.beta1, training.beta2), weight_decay=training.weight_decay)
    average = WeightAverage(energy.parameters(), training.average_decay)
    guard, snapshots = Guard(stage.guard), Snapshots(training.snapshot_every, stage.guard.patience)
    names = [name for name, _ in energy.named_parameters()]

    def averaged() -> dict[str, Tensor]:
        return {name: mean.clone() for name, mean in zip(names, average.mean, strict=True)}

    run_state = Training(
        "ebm",
        model.parent,
        {"seed": seed, "settings": stage.model_dump(), "data": dataset.hash, "nvae": vae_hash},
        training.iterations,
        {"energy": energy, "spectral": spectral, "optimizer": optimizer, "average": average, "guard": guard, "snapshots": snapshots},
        limits,
    )
    for step in run_state.steps():
        noise = NoiseSource(seed, "chain", range(step * training.batch, (step + 1) * training.batch))
        energy.requires_grad_(False)  # the chain needs the gradient of the images alone
        eps_z, eps_x = vaebm.refine(*vaebm.noise_like_prior(noise), steps=chain.steps, step_size=chain.step_size, noise=noise)
        energy.requires_grad_(True)

        parts = contrastive_divergence(energy, batch_of(step), negatives(vaebm, eps_z, eps_x, stage.negatives), training.energy_penalty)
        penalty = spectral()
        optimizer.param_groups[0]["lr"] = rate = learning_rate(step, training)
        optimizer.zero_grad(set_to_none=True)
        (parts.loss + training.spectral_weight * penalty).backward()
        gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in energy.parameters() if p.grad is not None])
        loss, gap, spread, norm = torch.stack([parts.loss.detach(), parts.gap, parts.spread, gradient_norm]).tolist()
        guard.watch(loss, gap, spread, norm)
        if step % RECORD_EVERY == 0 or guard.diverged:
            run_state.record(
                energy_data=float(parts.positive.detach().mean()),
                energy_chains=float(parts.negative.detach().mean()),
                gap_over_spread=gap / max(spread, 1e-12),
                spread=spread,
                loss=loss,
                gradient_norm=norm,
                spectral=float(penalty.detach()),
                learning_rate=rate,
            )
        if guard.diverged:
            break
        if math.isfinite(loss) and math.isfinite(norm):
            if training.adaptive_clip:
                adaptive_clip(optimizer)
            optimizer.step()
            average.update()
        snapshots.offer(step + 1, averaged, healthy=guard.bad == 0)

    if guard.bad == 0:
        chosen, weights = run_state.step, averaged()
    elif snapshots.good is not None:
        chosen, weights = snapshots.good
    else:
        raise UserError(
            f"{settings}: the energy diverged at iteration {run_state.step}, before its first good snapshot: {guard.reason}; "
            "choose a smaller ebm.training.learning_rate or snapshot_every, or a larger spectral_weight or energy_penalty"
        )
    status = f"diverged at iteration {run_state.step}: {guard.reason}" if guard.bad else "finished"
    print(f"ebm: {status}; the model is the snapshot of iteration {chosen}", flush=True)
    energy.load_state_dict(weights)
    save_pictures(vaebm, dataset, run_state, chain.steps, chain.step_size, seed)
    save_model(model, "energy", stage.network.model_dump(), weights, shape=list(dataset.shape), potential=stage.potential)
    run_state.finish(
        status=status,
        snapshot=chosen,
        parameters=sum(p.numel() for p in energy.parameters()),
        model=hash_tensors(weights),
        device=str(device),
        threads=threads,
    )


@torch.no_grad()
def save_pictures(vaebm: VAEBM, dataset: ImageSet, run_state: Training, steps: int, step_size: float, seed: int) -> None:
    """Curves of the training, and histograms of the energies of data and chains (the paper's check for overfitting)."""
    folder, device = run_state.folder / "pictures", vaebm.device
    run_state.write_history()
    plots.training_curves(run_state.history, folder / "curves.png", CURVES)
    noise = NoiseSource(seed, "pictures", range(500))
    eps_z, eps_x = vaebm.noise_like_prior(noise)
    moved_z, moved_x = vaebm.refine(eps_z, eps_x, steps=steps, step_size=step_size, noise=noise)
    assert vaebm.energy is not None
    images = {
        "training images": dataset.split("train")[0][:500].to(device, torch.float32).div_(255.0),
        "held-out images": dataset.split("heldout")[0][:500].to(device, torch.float32).div_(255.0),
        "start of the chains": negatives(vaebm, eps_z, eps_x, "sample"),
        "end of the chains": negatives(vaebm, moved_z, moved_x, "sample"),
    }
    energies = {name: vaebm.energy(x).cpu().double().numpy() for name, x in images.items()}
    plots.histograms({"": energies}, folder / "energies.png", "energy E(x)", columns=1)
