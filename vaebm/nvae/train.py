"""Stage `nvae`: training of the hierarchical VAE (NVAE sections 3.3 and 4)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm import plots
from vaebm.config import NVAESettings, NVAETrainingSettings
from vaebm.config.yaml_files import read_settings
from vaebm.data import ImageSet, open_images
from vaebm.noise import NoiseSource, derive
from vaebm.nvae.cells import set_recompute
from vaebm.nvae.layers import BatchNorm, convolution_weights, data_initialization
from vaebm.nvae.model import NVAE
from vaebm.nvae.objective import batch_norm_penalty, group_sizes, kl_coefficient, nelbo, norm_weight
from vaebm.system import distributed
from vaebm.system.checkpoint import hash_tensors, save_model
from vaebm.system.device import place, prepare, seeded
from vaebm.system.errors import UserError
from vaebm.system.precision import set_precision
from vaebm.training.loop import Limits, Training, training_batch
from vaebm.training.spectral import SpectralPenalty

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


class Step(NamedTuple):
    """What one step of the training gives: of the global batch, the same in every process."""

    finite: bool
    """Whether the weights were moved; a step with a non-finite loss or gradient is skipped."""
    reconstruction: float
    """−log p(x|z), nats per image."""
    kl: list[float]
    """KL of each group, nats per image."""
    spectral: float
    """Sum of the largest singular values."""
    batch_norm: float
    """Σ max |γ|."""


class Trainer:
    """The NVAE and all that a step of its training changes.

    Args:
        nvae: in training mode.
        training: the settings.
        total: steps of the whole training.
        seed: of the noise and of the first singular vectors.
    """

    def __init__(self, nvae: NVAE, training: NVAETrainingSettings, total: int, seed: int):
        self.nvae, self.training, self.total, self.seed = nvae, training, total, seed
        self.device = nvae.prior_constant.device
        set_recompute(nvae, training.recompute)
        self.spectral = SpectralPenalty(convolution_weights(nvae), derive(seed, "spectral")).to(
            self.device, nvae.prior_constant.dtype
        )
        self.optimizer = torch.optim.Adamax(
            nvae.parameters(),
            lr=training.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-3,
            weight_decay=training.weight_decay,
            foreach=True,
        )
        self.sizes = (
            nvae.prior_constant.new_tensor(group_sizes(nvae.settings.groups)) if training.kl_balancing else None
        )
        self.micro_batch = training.micro_batch or training.batch
        self.parameters = list(nvae.parameters())
        self.statistics = [
            buffer
            for layer in nvae.modules()
            if isinstance(layer, BatchNorm)
            for buffer in layer.buffers()
            if buffer.is_floating_point()
        ]

    def beta(self, step: int) -> float:
        """The KL coefficient of a step."""
        return kl_coefficient(step, self.total, self.training.kl_warmup, self.training.kl_coefficient_min)

    def inputs(self, images: Tensor, first: int) -> Tensor:
        """This process's part of the images (n, C, H, W) uint8 that have the global indices from `first`, as the network's input."""
        share = distributed.share(range(len(images)))
        noise = NoiseSource(self.seed, "input", range(first + share.start, first + share.stop))
        return self.nvae.as_input(images[share.start : share.stop], noise)

    def step(self, images: Tensor, step: int, learning_rate: float, penalise: bool) -> Step:
        """One update of the weights.

        Args:
            images: the global batch, (batch, C, H, W) uint8.
            step: number of the step, for β and the noise.
            learning_rate: of this step.
            penalise: whether the regularisers are part of this step's loss.
        """
        training, beta = self.training, self.beta(step)
        before = [buffer.clone() for buffer in self.statistics]
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for part, chunk in enumerate(images.split(self.micro_batch)):
            first = step * training.batch + part * self.micro_batch
            x = self.inputs(chunk, first)
            share = distributed.share(range(first, first + len(chunk)))
            with self._autocast():
                output = self.nvae(x, noise=NoiseSource(self.seed, "posterior", share))
            parts.append(nelbo(output, x, beta, self.sizes))
            (parts[-1].loss * (len(chunk) / len(images))).backward()
        spectral = batch_norm = self.nvae.prior_constant.new_zeros(())
        if penalise:
            spectral, batch_norm = self.spectral(), batch_norm_penalty(self.nvae)
            weight = training.norm_every * norm_weight(beta, training.norm_weight_initial, training.norm_weight)
            (weight * (spectral + batch_norm)).backward()
        distributed.average_gradients(self.parameters)

        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        mean = torch.cat(
            [
                torch.stack([part.reconstruction.reshape(1) for part in parts]).mean(0),
                torch.stack([part.kl for part in parts]).mean(0),
            ]
        )
        reconstruction, *kl, spectral_sum, batch_norm_sum, gradient = torch.cat(
            [distributed.mean(mean), torch.stack([spectral.detach(), batch_norm.detach(), norm])]
        ).tolist()
        finite = all(map(math.isfinite, (reconstruction, *kl, gradient)))
        if finite:
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
        else:
            torch._foreach_copy_(self.statistics, before)  # the forward passes have written into the batch norms
        return Step(finite, reconstruction, kl, spectral_sum, batch_norm_sum)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.precision == "bfloat16")


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
    device = prepare(threads, gpus, join=True)
    seed, stage = read_settings(settings, NVAESettings)
    training = stage.training
    set_precision(training.precision, device, f"{settings}: nvae.training.precision")
    distributed.check_share(
        training.micro_batch or training.batch,
        f"{settings}: nvae.training.{'micro_batch' if training.micro_batch else 'batch'}",
    )
    dataset = open_images(data)
    images = dataset.split("train")[0].to(device)
    if training.batch > len(images):
        raise UserError(
            f"{settings}: nvae.training.batch: expected at most the {len(images)} training images, found {training.batch}"
        )
    steps_per_epoch = len(images) // training.batch
    total = steps_per_epoch * training.epochs

    def batch_of(step: int) -> Tensor:
        return training_batch(images, step, training.batch, seed, training.flip)

    with seeded(derive(seed, "nvae")):
        try:
            nvae = NVAE(stage.network, dataset.shape)
        except ValueError as error:
            raise UserError(f"{settings}: nvae.network: {error}; choose fewer scales or another data set") from None
    place(nvae.double() if training.precision == "float64" else nvae, device).train()
    trainer = Trainer(nvae, training, total, seed)
    if stage.network.architecture == "res_elu":
        with torch.no_grad(), data_initialization(nvae):
            nvae(
                trainer.inputs(batch_of(0), 0),
                noise=NoiseSource(seed, "initialization", distributed.share(range(training.batch))),
            )
    run_state = Training(
        "nvae",
        model.parent,
        {"seed": seed, "settings": stage.model_dump(), "data": dataset.hash},
        total,
        {"nvae": nvae, "spectral": trainer.spectral, "optimizer": trainer.optimizer},
        limits,
    )
    skipped = run_state.extra.setdefault("skipped", {"in_a_row": 0, "in_all": 0})
    heldout_every = max(training.epochs // 20, 1)
    at_once = trainer.micro_batch // distributed.processes()  # as many images as a training step holds here

    for step in run_state.steps():
        epoch, position = divmod(step, steps_per_epoch)
        rate = learning_rate(step, steps_per_epoch, training)
        done = trainer.step(batch_of(step), step, rate, penalise=position % training.norm_every == 0)
        skipped["in_a_row"] = 0 if done.finite else skipped["in_a_row"] + 1
        skipped["in_all"] += not done.finite
        if skipped["in_a_row"] > training.max_skipped:
            kept = (
                f"the last good state is in {run_state.scratch}"
                if run_state.scratch.is_dir()
                else "no state was saved before"
            )
            raise Diverged(
                f"{settings}: {skipped['in_a_row']} steps in a row had a non-finite loss or gradient (step {step}); {kept}; "
                "choose a larger nvae.training.norm_weight, annealed from a norm_weight_initial, and a smaller learning_rate"
            )
        figures = {
            "loss": done.reconstruction + sum(done.kl),
            "reconstruction": done.reconstruction,
            "kl": sum(done.kl),
        }
        run_state.show(**figures)
        if position == 0:
            if epoch % heldout_every == 0:
                figures["heldout"] = heldout_nelbo(nvae, dataset, seed, at_once)
            figures |= {
                "spectral": done.spectral,
                "batch_norm": done.batch_norm,
                "beta": trainer.beta(step),
                "learning_rate": rate,
            }
            figures |= {f"kl_{group}": value for group, value in enumerate(done.kl)}
            run_state.record(**figures)

    nvae.eval()
    weights = nvae.state_dict()
    heldout = heldout_nelbo(nvae, dataset, seed, at_once)
    if distributed.rank() != 0:
        return
    save_pictures(nvae, dataset, run_state, seed, at_once)
    save_model(model, "nvae", stage.network.model_dump(), weights, shape=list(dataset.shape))
    run_state.finish(
        status="finished",
        parameters=sum(p.numel() for p in nvae.parameters()),
        skipped_steps=skipped["in_all"],
        heldout=heldout,
        model=hash_tensors(weights),
        device=str(device),
        threads=threads,
        processes=distributed.processes(),
    )


@torch.no_grad()
def heldout_nelbo(nvae: NVAE, dataset: ImageSet, seed: int, batch: int) -> float:
    """Negative ELBO of the held-out images, one draw of the posterior, nats per image; leaves the module's mode as it was.

    Args:
        batch: images at once.
    """
    was_training = nvae.training
    nvae.eval()
    total, images = 0.0, dataset.split("heldout")[0]
    for first in range(0, len(images), batch):
        index = range(first, min(first + batch, len(images)))
        x = nvae.as_input(images[first : index.stop], NoiseSource(seed, "heldout input", index))
        total += float(nelbo(nvae(x, noise=NoiseSource(seed, "heldout", index)), x).loss) * len(x)
    nvae.train(was_training)
    return total / len(images)


@torch.no_grad()
def save_pictures(nvae: NVAE, dataset: ImageSet, run_state: Training, seed: int, batch: int) -> None:
    """Curves of the training, samples of the prior, and held-out images (odd rows) with their reconstructions (even rows); `batch` at once."""
    folder, constant = run_state.folder / "pictures", nvae.prior_constant
    run_state.write_history()
    plots.training_curves(run_state.history, folder / "curves.png", CURVES)
    samples, held_out, again = [], [], []
    for index in (range(first, min(first + batch, 128)) for first in range(0, 128, batch)):
        eps = NoiseSource(seed, "pictures", index).normal(
            nvae.latent_shapes, device=constant.device, dtype=constant.dtype
        )
        samples.append(nvae.decode(eps)[0].mean.clamp(0, 1))
    images = dataset.split("heldout")[0][:64]
    for index in (range(first, min(first + batch, len(images))) for first in range(0, len(images), batch)):
        held_out.append(nvae.as_input(images[index.start : index.stop], NoiseSource(seed, "heldout input", index)))
        again.append(nvae(held_out[-1], noise=NoiseSource(seed, "reconstructions", index)).pixels.mean.clamp(0, 1))
    plots.image_grid(torch.cat(samples).cpu(), folder / "samples.png")
    rows = [row for pair in zip(torch.cat(held_out).split(16), torch.cat(again).split(16), strict=True) for row in pair]
    plots.image_grid(torch.cat(rows).cpu(), folder / "reconstructions.png")
