"""Stage `prior`: an energy on noise by noise-contrastive estimation (Gutmann and Hyvärinen, 2010).

A classifier tells posterior draws ε ~ q(ε|x) of training images from draws of the prior. At its optimum the logit is
the log ratio of their densities, so that N(ε; 0, I) exp(logit) is the aggregate posterior, and E_ε = −logit.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vaebm import plots
from vaebm.config import NoiseEnergySettings, PriorSettings
from vaebm.config.base import plugins_in
from vaebm.config.yaml_files import read_settings
from vaebm.data import open_images
from vaebm.energy.noise_energy import NoiseEnergy, one_vector
from vaebm.fast import half_square, run_chain
from vaebm.noise import NoiseSource, batches, derive
from vaebm.nvae.model import NVAE, load_frozen
from vaebm.system.checkpoint import hash_tensors, save_model
from vaebm.system.device import seeded, setup_device
from vaebm.system.errors import UserError
from vaebm.training.loop import Limits, Stateful, Training, batch_indices, training_batch, training_images

PRIOR_CURVES = {"noise-contrastive loss": ["loss", "validation"]}

CHANCE = 2.0 * math.log(2.0)
"""Loss of a classifier that knows nothing."""


def contrastive_loss(posterior: Tensor, prior: Tensor) -> Tensor:
    """−mean log σ(−E) of posterior draws − mean log σ(E) of draws of the prior, from their energies (B,)."""
    return F.softplus(posterior).mean() + F.softplus(-prior).mean()


class PriorTrainer:
    """The networks and all other state of the training, on a frozen NVAE in eval mode.

    A share of `images`, all training images (N, C, H, W) uint8, is kept for validation.
    """

    def __init__(self, nvae: NVAE, images: Tensor, stage: PriorSettings, seed: int):
        self.nvae, self.stage, self.seed = nvae, stage, seed
        with seeded(derive(seed, "prior")):
            self.prior = NoiseEnergy(stage, nvae.latent_shapes).to(nvae.device, nvae.dtype)
        self.optimizer = torch.optim.AdamW(
            self.prior.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay
        )
        order = batch_indices(0, len(images), len(images), derive(seed, "prior validation"))
        kept = max(round(stage.validation * len(images)), 1)
        self.images, self.validation_images = images[order[kept:]], images[order[:kept]]
        self.best: dict[str, Any] = {"loss": math.inf, "step": -1, "weights": {}}
        self._round, self._pool, self._validation = -1, torch.empty(0), (torch.empty(0), torch.empty(0))

    @torch.no_grad()
    def posterior(self, images: Tensor, purpose: str, index: range) -> Tensor:
        """One draw of q(ε|x) for each of the images (B, C, H, W) uint8, (B, D)."""
        noise = NoiseSource(self.seed, purpose, index)
        draws, _ = self.nvae.posterior(self.nvae.as_input(images, noise.derived("input")), noise=noise)
        return one_vector([draw.eps for draw in draws])

    def negatives(self, number: int, purpose: str, index: range) -> Tensor:
        """Draws (B, D) of the prior with the networks before round `number`: N(0, I), then chains."""
        noise = NoiseSource(self.seed, purpose, index)
        eps = noise.normal(self.nvae.latent_shapes, device=self.nvae.device, dtype=self.nvae.dtype)
        if number:
            source = noise.derived("chain")
            eps = run_chain(lambda eps: self.prior(eps, number) + half_square(*eps), eps, self.stage.chain, source)
        return one_vector(eps)

    def _begin(self, number: int) -> None:
        """Draw what a round takes again and again: the validation's noise, and in further rounds the chains' ends.

        A function of the networks before, so that a resumed training draws the same.
        """
        batch, count = self.stage.batch, len(self.validation_images)
        self.prior.requires_grad_(False)
        parts = list(batches(range(count), batch))
        pairs = zip(self.validation_images.split(batch), parts, strict=True)
        posterior = torch.cat([self.posterior(images, "prior validation", part) for images, part in pairs])
        purpose = f"validation negatives {number}"
        self._validation = posterior, torch.cat([self.negatives(number, purpose, part) for part in parts])
        if number:
            pool = batches(range(self.stage.negatives), batch)
            self._pool = torch.cat([self.negatives(number, f"negatives {number}", part) for part in pool])
        self.prior.networks[number].requires_grad_(True)
        self._round = number

    def step(self, step: int) -> float:
        """Update `step` of the training; returns the loss before it."""
        stage, (number, position) = self.stage, divmod(step, self.stage.iterations)
        if position == 0:
            self.best = {"loss": math.inf, "step": -1, "weights": {}}
        if number != self._round:
            self._begin(number)
        index = range(step * stage.batch, (step + 1) * stage.batch)
        images = training_batch(self.images, step, stage.batch, derive(self.seed, "prior"), stage.flip)
        posterior = self.posterior(images, "posterior", index)
        if number:
            prior = self._pool[batch_indices(step, stage.batch, stage.negatives, derive(self.seed, "negatives"))]
        else:
            prior = self.negatives(0, "negatives", index)
        both = torch.cat([posterior, prior])
        energies = self.prior.networks[number](both, NoiseSource(self.seed, "dropout", [0]), step)
        loss = contrastive_loss(*energies.split(stage.batch))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, step: int) -> float:
        """Loss on the validation images after update `step`; at the end of a round its best weights are restored."""
        network = self.prior.networks[self._round]
        loss = float(contrastive_loss(*map(network, self._validation)))
        if loss < self.best["loss"]:
            weights = {name: weight.clone() for name, weight in network.state_dict().items()}
            self.best = {"loss": loss, "step": step, "weights": weights}
        if (step + 1) % self.stage.iterations == 0 and self.best["weights"]:
            network.load_state_dict(self.best["weights"])
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser and the best weights of the round."""
        return {"prior": self.prior.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state exactly."""
        self.prior.load_state_dict(state["prior"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]


def run(settings: Path, data: Path, nvae: Path, model: Path, *, threads: int, gpus: int, limits: Limits) -> None:
    """Train the energy on noise; write `model`, training.json, history.jsonl and a picture in one folder.

    Each network has the weights of the least loss on the validation images. They are training images: metrics compare
    with the held-out ones. `settings` is prior.yaml, `data` a manifest, `nvae` a model.

    Raises:
        UserError: images that do not fit the NVAE or the batch, or a diverged training.
        Interrupted: stopped in time, to be resumed.
    """
    device = setup_device(threads, gpus)
    seed, stage = read_settings(settings, PriorSettings)
    dataset = open_images(data)
    vae, vae_hash = load_frozen(nvae, dataset.shape, device)
    needed = math.ceil(stage.batch / (1 - stage.validation))
    images = training_images(dataset, device, needed, f"{settings}: prior.batch / (1 - prior.validation)")
    trainer = PriorTrainer(vae, images, stage, seed)
    identity = {"seed": seed, "settings": stage.model_dump(), "data": dataset.hash, "nvae": vae_hash}
    parts: dict[str, Stateful] = {"trainer": trainer}
    run_state = Training("prior", model.parent, identity, stage.rounds * stage.iterations, parts, limits)
    best = run_state.extra.setdefault("best", [])
    for step in run_state.steps():
        loss, last = trainer.step(step), (step + 1) % stage.iterations == 0
        if last or (step + 1) % stage.validate_every == 0:
            validation = trainer.validate(step)
            if not (math.isfinite(loss) and math.isfinite(validation)):
                problem = f"the training diverged at iteration {step}: loss {loss:g}, validation {validation:g}"
                raise UserError(f"{settings}: {problem}; choose a smaller prior.learning_rate")
            run_state.record(loss=loss, validation=validation)
            if last:
                best.append({"iteration": trainer.best["step"] + 1, "loss": trainer.best["loss"]})
        elif step % 10 == 0:
            run_state.record(loss=loss)

    run_state.write_history()
    plots.training_curves(run_state.history, run_state.folder / "pictures" / "curves.png", PRIOR_CURVES)
    weights = trainer.prior.state_dict()
    own = NoiseEnergySettings(**{name: getattr(stage, name) for name in NoiseEnergySettings.model_fields})
    save_model(model, "prior", own.model_dump(), weights, shape=[list(shape) for shape in trainer.prior.shapes])
    found = ", ".join(f"{one['loss']:.3f} at iteration {one['iteration']}" for one in best)
    run_state.finish(
        status=f"finished; loss on {len(trainer.validation_images)} validation images {found} (chance {CHANCE:.3f})",
        plugins=sorted(plugins_in(stage)),
        parameters=sum(parameter.numel() for parameter in trainer.prior.parameters()),
        model=hash_tensors(weights),
        device=str(device),
        threads=threads,
    )
