"""Stage `nvae`: training of the hierarchical VAE (NVAE sections 3.3 and 4)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vaebm import plots
from vaebm.config import NVAESettings, NVAETrainingSettings
from vaebm.config.yaml_files import read_settings
from vaebm.data import ImageSet, open_images
from vaebm.noise import NoiseSource, batches, derive
from vaebm.nvae.cells import set_recompute
from vaebm.nvae.flat_parameters import FlatParameters
from vaebm.nvae.layers import BatchNorm, convolution_weights, data_initialization
from vaebm.nvae.model import NVAE
from vaebm.nvae.objective import batch_norm_penalty, group_sizes, kl_coefficient, nelbo, norm_weight
from vaebm.system import distributed
from vaebm.system.checkpoint import hash_tensors, save_model
from vaebm.system.device import at_most_threads, seeded, setup_device, to_device_channels_last
from vaebm.system.errors import UserError
from vaebm.system.precision import set_precision
from vaebm.training.loop import Limits, Stateful, Training, training_batch, training_images
from vaebm.training.spectral import SpectralPenalty

NVAE_CURVES = {
    "negative ELBO, nats per image": ["loss", "heldout"],
    "KL of each group, nats per image": ["kl_"],
    "regularisers": ["spectral", "batch_norm"],
    "learning rate": ["learning_rate"],
}


GRAIN = 2**15
"""Values of an activation up to which torch's elementwise operations use one thread."""


def scheduled_learning_rate(step: int, steps_per_epoch: int, training: NVAETrainingSettings) -> float:
    """Learning rate: linear warm-up by steps, then a cosine by epochs.

    The cosine starts from lr (W − 1) / W, the last value of W warm-up steps, and keeps it for one epoch.
    """
    warmup = steps_per_epoch * training.warmup_epochs
    if step < warmup:
        return training.learning_rate * step / warmup
    top = training.learning_rate * (warmup - 1) / warmup if warmup else training.learning_rate
    length = max(training.epochs - training.warmup_epochs - 1, 1)
    turn = math.pi * (step // steps_per_epoch - training.warmup_epochs) / length
    return training.learning_rate_min + 0.5 * (top - training.learning_rate_min) * (1.0 + math.cos(turn))


class Step(NamedTuple):
    """Results of one training step on the global batch, equal in all processes."""

    finite: bool
    """Whether the weights were updated; a step with a non-finite loss or gradient is skipped."""
    reconstruction: float
    """−log p(x|z), nats per image."""
    kl: list[float]
    """KL of each group, nats per image."""
    spectral: float
    """Sum of the largest singular values."""
    batch_norm: float
    """Σ max |γ|."""


class NVAETrainer:
    """An NVAE in training mode with optimiser and regulariser, and its training step, one of `total`."""

    def __init__(self, nvae: NVAE, training: NVAETrainingSettings, total: int, seed: int):
        self.nvae, self.training, self.total, self.seed = nvae, training, total, seed
        self.device = nvae.device
        set_recompute(nvae, training.recompute)
        penalty = SpectralPenalty(convolution_weights(nvae), derive(seed, "spectral"))
        self.spectral = penalty.to(self.device, nvae.dtype)
        self.flat = FlatParameters(nvae)
        self.optimizer = self.flat.optimizer(
            torch.optim.Adamax,
            lr=training.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-3,
            weight_decay=training.weight_decay,
        )
        sizes = nvae.prior_constant.new_tensor(group_sizes(nvae.settings.groups))
        self.sizes = sizes if training.kl_balancing else None
        self.micro_batch = training.micro_batch or training.batch
        values = self.micro_batch // distributed.world_size() * math.prod(nvae.shape[1:])
        self.one_thread = values * nvae.settings.channels_encoder <= GRAIN  # a second one would wait most of the time
        self.norms = [layer for layer in nvae.modules() if isinstance(layer, BatchNorm)]
        self.statistics = [buffer for layer in self.norms for buffer in layer.buffers() if buffer.is_floating_point()]

    def beta(self, step: int) -> float:
        """KL coefficient β of a step."""
        return kl_coefficient(step, self.total, self.training.kl_warmup, self.training.kl_coefficient_min)

    def inputs(self, images: Tensor, first: int) -> Tensor:
        """Network input of this process's shard of images (n, C, H, W) uint8 with global indices from `first`."""
        share = distributed.local_shard(range(len(images)))
        noise = NoiseSource(self.seed, "input", range(first + share.start, first + share.stop))
        return self.nvae.as_input(images[share.start : share.stop], noise)

    def step(self, images: Tensor, step: int, learning_rate: float, penalise: bool) -> Step:
        """Update the weights by one step of the negative ELBO of the global batch (batch, C, H, W) uint8.

        `penalise`: add the gradient of the regularisers (NVAE section 3.3).
        """
        with at_most_threads(1 if self.one_thread else torch.get_num_threads()):
            return self._step(images, step, learning_rate, penalise)

    def _step(self, images: Tensor, step: int, learning_rate: float, penalise: bool) -> Step:
        training, beta = self.training, self.beta(step)
        before = torch.cat(self.statistics) if self.statistics else None  # architectures without batch norms have none
        self.flat.zero_gradients()
        parts = []
        spectral = batch_norm = self.nvae.prior_constant.new_zeros(())
        with self.flat.normalized_weights():
            for part, chunk in enumerate(images.split(self.micro_batch)):
                first = step * training.batch + part * self.micro_batch
                x = self.inputs(chunk, first)
                share = distributed.local_shard(range(first, first + len(chunk)))
                with torch.autocast(self.device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
                    output = self.nvae(x, noise=NoiseSource(self.seed, "posterior", share))
                parts.append(nelbo(output, x, beta, self.sizes))
                (parts[-1].loss * (len(chunk) / len(images))).backward()
            if penalise:
                spectral = self.spectral()
                batch_norm = batch_norm + batch_norm_penalty(self.norms)
                weight = training.norm_every * norm_weight(beta, training.norm_weight_initial, training.norm_weight)
                (weight * (spectral + batch_norm)).backward()
        distributed.average_gradients(self.flat.tensors)

        norm = torch.nn.utils.get_total_norm([each.grad for each in self.flat.tensors if each.grad is not None])
        reconstructions = torch.stack([part.reconstruction.reshape(1) for part in parts]).mean(0)
        losses = distributed.mean(torch.cat([reconstructions, torch.stack([part.kl for part in parts]).mean(0)]))
        penalties = torch.stack([spectral.detach(), batch_norm.detach(), norm])
        reconstruction, *kl, spectral_sum, batch_norm_sum, gradient = torch.cat([losses, penalties]).tolist()
        finite = all(map(math.isfinite, (reconstruction, *kl, gradient)))
        if finite:
            self.optimizer.param_groups[0]["lr"] = learning_rate
            self.optimizer.step()
        elif before is not None:  # undo the forward passes' updates of batch norms
            torch._foreach_copy_(self.statistics, before.split([len(each) for each in self.statistics]))
        return Step(finite, reconstruction, kl, spectral_sum, batch_norm_sum)


def run(settings: Path, data: Path, model: Path, *, threads: int, gpus: int, limits: Limits) -> None:
    """Train an NVAE; write `model`, training.json, history.jsonl and pictures in one folder.

    `settings` is nvae.yaml, `data` a manifest.

    Raises:
        UserError: the images do not fit the architecture or the batch, or the training diverged.
        Interrupted: stopped before the end; the same command resumes it.
    """
    device = setup_device(threads, gpus, join=True, mps=True)
    seed, stage = read_settings(settings, NVAESettings)
    training = stage.training
    set_precision(training.precision, device, f"{settings}: nvae.training.precision")
    key = "micro_batch" if training.micro_batch else "batch"
    distributed.check_share(training.micro_batch or training.batch, f"{settings}: nvae.training.{key}")
    dataset = open_images(data)
    images = training_images(dataset, device, training.batch, f"{settings}: nvae.training.batch")
    total = len(images) // training.batch * training.epochs

    def batch_of(step: int) -> Tensor:
        return training_batch(images, step, training.batch, seed, training.flip)

    with seeded(derive(seed, "nvae")):
        try:
            nvae = NVAE(stage.network, dataset.shape)
        except ValueError as error:
            raise UserError(f"{settings}: nvae.network: {error}; choose fewer scales or another data set") from None
    to_device_channels_last(nvae.double() if training.precision == "float64" else nvae, device).train()
    trainer = NVAETrainer(nvae, training, total, seed)
    if stage.network.architecture == "res_elu":
        noise = NoiseSource(seed, "initialization", distributed.local_shard(range(training.batch)))
        with torch.no_grad(), data_initialization(nvae):
            nvae(trainer.inputs(batch_of(0), 0), noise=noise)
    depends_on = {"seed": seed, "settings": stage.model_dump(), "data": dataset.hash}
    state: dict[str, Stateful] = {"nvae": nvae, "spectral": trainer.spectral, "optimizer": trainer.optimizer}
    run_state = Training("nvae", model.parent, depends_on, total, state, limits)
    batch = trainer.micro_batch // distributed.world_size()  # the images per process of a training step
    skipped = run_steps(trainer, batch_of, run_state, settings, lambda: heldout_nelbo(nvae, dataset, seed, batch))

    nvae.eval()
    weights = nvae.state_dict()
    heldout = heldout_nelbo(nvae, dataset, seed, batch)
    if skipped == total or not math.isfinite(heldout):
        raise UserError(
            f"{settings}: the training diverged: {skipped} of {total} steps were skipped, and the negative ELBO of the "
            f"held-out images is {heldout:g}; choose a smaller nvae.training.learning_rate or a larger norm_weight"
        )
    if distributed.rank() != 0:
        return
    draw_pictures(nvae, dataset, run_state, seed, batch)
    save_model(model, "nvae", stage.network.model_dump(), weights, shape=list(dataset.shape))
    run_state.finish(
        status="finished",
        parameters=sum(p.numel() for p in nvae.parameters()),
        skipped_steps=skipped,
        heldout=heldout,
        model=hash_tensors(weights),
        device=str(device),
        threads=threads,
        processes=distributed.world_size(),
    )


def run_steps(
    trainer: NVAETrainer,
    batch_of: Callable[[int], Tensor],
    run_state: Training,
    settings: Path,
    heldout: Callable[[], float],
) -> int:
    """Run the remaining steps, record each epoch's first, and return the number of skipped steps.

    Args:
        batch_of: step → global batch.
        settings: settings file, for errors.
        heldout: negative ELBO of the held-out images, in about every twentieth epoch.

    Raises:
        UserError: more steps in a row than `max_skipped` had a non-finite loss or gradient.
    """
    skipped = run_state.extra.setdefault("skipped", {"in_a_row": 0, "in_all": 0})
    training, steps_per_epoch = trainer.training, trainer.total // trainer.training.epochs
    heldout_every = max(training.epochs // 20, 1)

    for step in run_state.steps():
        epoch, position = divmod(step, steps_per_epoch)
        rate = scheduled_learning_rate(step, steps_per_epoch, training)
        done = trainer.step(batch_of(step), step, rate, penalise=position % training.norm_every == 0)
        skipped["in_a_row"] = 0 if done.finite else skipped["in_a_row"] + 1
        skipped["in_all"] += not done.finite
        if skipped["in_a_row"] > training.max_skipped:
            saved = run_state.scratch.is_dir()
            kept = f"the last good state is in {run_state.scratch}" if saved else "no state was saved before"
            raise UserError(
                f"{settings}: {skipped['in_a_row']} steps in a row had a non-finite loss or gradient (step {step}); "
                f"{kept}; choose a larger nvae.training.norm_weight, annealed from a norm_weight_initial, "
                "and a smaller learning_rate"
            )
        kl = sum(done.kl)
        values = {"loss": done.reconstruction + kl, "reconstruction": done.reconstruction, "kl": kl}
        run_state.show(**values)
        if position == 0:
            if epoch % heldout_every == 0:
                values["heldout"] = heldout()
            values |= {"spectral": done.spectral, "batch_norm": done.batch_norm}
            values |= {"beta": trainer.beta(step), "learning_rate": rate}
            values |= {f"kl_{group}": value for group, value in enumerate(done.kl)}
            run_state.record(**values)
    return skipped["in_all"]


@torch.no_grad()
def heldout_nelbo(nvae: NVAE, dataset: ImageSet, seed: int, batch: int) -> float:
    """Negative ELBO of the held-out images, `batch` at once, with one draw of the posterior, in nats per image."""
    was_training = nvae.training
    nvae.eval()
    total, images = 0.0, dataset.split("heldout")[0]
    for index in batches(range(len(images)), batch):
        x = nvae.as_input(images[index.start : index.stop], NoiseSource(seed, "heldout input", index))
        total += float(nelbo(nvae(x, noise=NoiseSource(seed, "heldout", index)), x).loss) * len(x)
    nvae.train(was_training)
    return total / len(images)


@torch.no_grad()
def draw_pictures(nvae: NVAE, dataset: ImageSet, run_state: Training, seed: int, batch: int) -> None:
    """Draw training curves, samples of the prior, and held-out images above reconstructions, `batch` at once."""
    folder = run_state.folder / "pictures"
    run_state.write_history()
    plots.training_curves(run_state.history, folder / "curves.png", NVAE_CURVES)
    samples, held_out, again = [], [], []
    for index in batches(range(128), batch):
        eps = NoiseSource(seed, "pictures", index).normal(nvae.latent_shapes, device=nvae.device, dtype=nvae.dtype)
        samples.append(nvae.decode(eps)[0].mean.clamp(0, 1))
    images = dataset.split("heldout")[0][:64]
    for index in batches(range(len(images)), batch):
        held_out.append(nvae.as_input(images[index.start : index.stop], NoiseSource(seed, "heldout input", index)))
        again.append(nvae(held_out[-1], noise=NoiseSource(seed, "reconstructions", index)).pixels.mean.clamp(0, 1))
    plots.image_grid(torch.cat(samples).cpu(), folder / "samples.png")
    rows = [row for pair in zip(torch.cat(held_out).split(16), torch.cat(again).split(16), strict=True) for row in pair]
    plots.image_grid(torch.cat(rows).cpu(), folder / "reconstructions.png")
