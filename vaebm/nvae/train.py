"""Stage `nvae`: training of the hierarchical VAE (NVAE sections 3.3 and 4)."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from vaebm import plots
from vaebm.checkpoint import hash_tensors, save_model
from vaebm.config import NVAESettings, NVAETrainingSettings, UserError
from vaebm.data import ImageSet, open_images
from vaebm.noise import NoiseSource, derive
from vaebm.nvae.cells import convolution_weights
from vaebm.nvae.model import NVAE
from vaebm.nvae.objective import batch_norm_penalty, group_sizes, kl_coefficient, nelbo
from vaebm.runtime import place, prepare, seeded
from vaebm.settings import read_settings
from vaebm.spectral import SpectralPenalty
from vaebm.training import Limits, Training, batch_indices

CURVES = {
    "negative ELBO, nats per image": ["loss", "heldout"],
    "KL of each group, nats per image": ["kl_"],
    "regularisers": ["spectral", "batch_norm"],
    "learning rate": ["learning_rate"],
}


class Diverged(UserError):
    """Too many steps in a row had a non-finite loss or gradient."""


def learning_rate(step: int, steps_per_epoch: int, training: NVAETrainingSettings) -> float:
    """Linear warm-up by steps, then a cosine by epochs.

    The cosine starts from the last value of the warm-up, lr (W − 1) / W, and its first epoch stays there.
    """
    warmup = steps_per_epoch * training.warmup_epochs
    if step < warmup:
        return training.learning_rate * step / warmup
    top = training.learning_rate * (warmup - 1) / warmup if warmup else training.learning_rate
    length = max(training.epochs - training.warmup_epochs - 1, 1)
    turn = math.pi * (step // steps_per_epoch - training.warmup_epochs) / length
    return training.learning_rate_min + 0.5 * (top - training.learning_rate_min) * (1.0 + math.cos(turn))


def run(settings: Path, data: Path, model: Path, *, threads: int, gpus: int, limits: Limits) -> None:
    """Train the NVAE of the settings file and write model.pt, training.json, history.jsonl and pictures.

    Args:
        settings: nvae.yaml.
        data: manifest of the data set.
        model: where the model goes; the other files stand beside it.

    Raises:
        UserError: images that do not fit the architecture or the batch, or a training that diverged.
        Interrupted: stopped in time, to be resumed.
    """
    device = prepare(threads, gpus)
    seed, stage = read_settings(settings, NVAESettings)
    training = stage.training
    dataset = open_images(data)
    images = dataset.split("train")[0].to(device)
    if training.batch > len(images):
        raise UserError(f"{settings}: nvae.training.batch: expected at most the {len(images)} training images, found {training.batch}")
    steps_per_epoch = len(images) // training.batch
    total = steps_per_epoch * training.epochs

    with seeded(derive(seed, "nvae")):
        try:
            nvae = NVAE(stage.network, dataset.shape)
        except ValueError as error:
            raise UserError(f"{settings}: nvae.network: {error}; choose fewer scales or another data set") from None
    spectral = SpectralPenalty(convolution_weights(nvae), derive(seed, "spectral")).to(device)
    place(nvae, device)
    optimizer = torch.optim.Adamax(nvae.parameters(), lr=training.learning_rate, betas=(0.9, 0.999), eps=1e-3, weight_decay=training.weight_decay, foreach=True)
    sizes = torch.tensor(group_sizes(stage.network.groups), device=device)
    run_state = Training(
        "nvae",
        model.parent,
        {"seed": seed, "settings": stage.model_dump(), "data": dataset.hash},
        total,
        {"nvae": nvae, "spectral": spectral, "optimizer": optimizer},
        limits,
    )
    skipped = run_state.extra.setdefault("skipped", {"in_a_row": 0, "in_all": 0})
    heldout_every = max(training.epochs // 20, 1)

    statistics = [buffer for buffer in nvae.buffers() if buffer.is_floating_point()]
    nvae.train()
    for step in run_state.steps():
        before = [buffer.clone() for buffer in statistics]
        x = images[batch_indices(step, training.batch, len(images), seed)].to(torch.float32).div_(255.0)
        noise = NoiseSource(seed, "posterior", range(step * training.batch, (step + 1) * training.batch))
        beta = kl_coefficient(step, total, training.kl_warmup, training.kl_coefficient_min)
        parts = nelbo(nvae(x, noise=noise), x, beta, sizes if training.kl_balancing else None)
        loss = parts.loss
        position = step % steps_per_epoch
        if position % training.norm_every == 0:
            penalties = spectral(), batch_norm_penalty(nvae)
            loss = loss + training.norm_every * training.norm_weight * (penalties[0] + penalties[1])

        rate = learning_rate(step, steps_per_epoch, training)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in nvae.parameters() if p.grad is not None])
        if torch.isfinite(loss) and torch.isfinite(norm):
            optimizer.step()
            skipped["in_a_row"] = 0
        else:
            torch._foreach_copy_(statistics, before)  # the forward pass has written into the batch norms
            skipped["in_a_row"] += 1
            skipped["in_all"] += 1
            if skipped["in_a_row"] > training.max_skipped:
                raise Diverged(
                    f"{settings}: {skipped['in_a_row']} steps in a row had a non-finite loss or gradient (step {step}); "
                    "choose a larger nvae.training.norm_weight and a smaller learning_rate"
                )

        if position == 0:
            figures = {"loss": float(parts.reconstruction + parts.kl.sum()), "reconstruction": float(parts.reconstruction), "kl": float(parts.kl.sum())}
            if step // steps_per_epoch % heldout_every == 0:
                figures["heldout"] = heldout_nelbo(nvae, dataset, seed)
            figures |= {"spectral": float(penalties[0].detach()), "batch_norm": float(penalties[1].detach()), "beta": beta, "learning_rate": rate}
            figures |= {f"kl_{group}": float(value) for group, value in enumerate(parts.kl)}
            run_state.record(**figures)

    nvae.eval()
    weights = nvae.state_dict()
    heldout = heldout_nelbo(nvae, dataset, seed)
    save_pictures(nvae, dataset, run_state, seed)
    save_model(model, "nvae", stage.network.model_dump(), weights, shape=list(dataset.shape))
    run_state.finish(
        status="finished",
        parameters=sum(p.numel() for p in nvae.parameters()),
        skipped_steps=skipped["in_all"],
        heldout=heldout,
        model=hash_tensors(weights),
        device=str(device),
        threads=threads,
    )


@torch.no_grad()
def heldout_nelbo(nvae: NVAE, dataset: ImageSet, seed: int) -> float:
    """Negative ELBO of the held-out images, one draw of the posterior, nats per image; leaves the module's mode as it was."""
    device, was_training = nvae.prior_constant.device, nvae.training
    nvae.eval()
    total, x = 0.0, dataset.split("heldout")[0]
    for first in range(0, len(x), 500):
        batch = x[first : first + 500].to(device, torch.float32).div_(255.0)
        output = nvae(batch, noise=NoiseSource(seed, "heldout", range(first, first + len(batch))))
        total += float(nelbo(output, batch).loss) * len(batch)
    nvae.train(was_training)
    return total / len(x)


@torch.no_grad()
def save_pictures(nvae: NVAE, dataset: ImageSet, run_state: Training, seed: int) -> None:
    """Curves of the training, samples of the prior, and held-out images (odd rows) with their reconstructions (even rows)."""
    folder, device = run_state.folder / "pictures", nvae.prior_constant.device
    run_state.write_history()
    plots.training_curves(run_state.history, folder / "curves.png", CURVES)
    pixels, _ = nvae.decode(NoiseSource(seed, "pictures", range(128)).normal(nvae.latent_shapes, device=device))
    plots.image_grid(pixels.mean.clamp(0, 1).cpu(), folder / "samples.png")
    x = dataset.split("heldout")[0][:64].to(device, torch.float32).div_(255.0)
    again = nvae(x, noise=NoiseSource(seed, "reconstructions", range(len(x)))).pixels.mean.clamp(0, 1)
    rows = [row for pair in zip(x.split(16), again.split(16), strict=True) for row in pair]
    plots.image_grid(torch.cat(rows).cpu(), folder / "reconstructions.png")
