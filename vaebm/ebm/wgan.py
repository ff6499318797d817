"""Stage `wgan`: the NVAE's decoder as the generator of a Wasserstein GAN (VAEBM section 5.2, table 4).

Ablation: the decoder is trained against a critic (Gulrajani et al., 2017) instead of combined with an energy. The
critic is an energy network: low is data-like.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebm import plots
from vaebm.config import WGANSettings
from vaebm.config.yaml_files import read_settings
from vaebm.data import open_images
from vaebm.energy.network import EnergyNetwork
from vaebm.noise import NoiseSource, derive
from vaebm.nvae.model import NVAE, load_frozen
from vaebm.system.checkpoint import hash_tensors, save_model
from vaebm.system.device import seeded, setup_device, to_device_channels_last
from vaebm.system.errors import UserError
from vaebm.training.loop import Limits, Stateful, Training, training_batch, training_images

WGAN_CURVES = {
    "critic: data minus generated": ["gap"],
    "gradient penalty": ["penalty"],
    "critic of generated images": ["critic_generated"],
}


class CriticLoss(NamedTuple):
    """Parts of the critic's loss."""

    loss: Tensor
    """gap + weight · penalty, scalar, with gradient."""
    gap: Tensor
    """mean f(data) − mean f(generated), minus the estimated Wasserstein distance."""
    penalty: Tensor
    """mean (‖∇f‖ − 1)² between data and generated images."""


def critic_loss(critic: nn.Module, data: Tensor, generated: Tensor, between: Tensor, weight: float) -> CriticLoss:
    """Loss of the critic f, low for data, on images (B, C, H, W) in [0, 1].

    The penalty, times `weight`, is taken at places `between` (B,) in [0, 1] on the way from generated images to data.
    """
    gap = critic(data).mean() - critic(generated).mean()
    mixed = torch.lerp(generated, data, between[:, None, None, None]).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1.0).square().mean()
    return CriticLoss(gap + weight * penalty, gap.detach(), penalty.detach())


class WGANTrainer:
    """Generator, critic and their optimisers. The NVAE is in eval mode: its batch norms keep their statistics."""

    def __init__(self, nvae: NVAE, critic: EnergyNetwork, settings: WGANSettings, seed: int):
        self.nvae, self.critic, self.settings, self.seed = nvae, critic, settings, seed
        self.generator = nvae.decoder_parameters()
        for parameter in self.generator:
            parameter.requires_grad_(True)
        betas = (settings.beta1, settings.beta2)
        self.generator_optimizer = torch.optim.Adam(self.generator, lr=settings.learning_rate, betas=betas)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), lr=settings.critic_learning_rate, betas=betas)

    def generate(self, first: int, purpose: str) -> Tensor:
        """Decoder means (batch, C, H, W) of noise with the global indices from `first`."""
        noise = NoiseSource(self.seed, purpose, range(first, first + self.settings.batch))
        eps = noise.normal(self.nvae.latent_shapes, device=self.nvae.device, dtype=self.nvae.dtype)
        return self.nvae.decode(eps)[0].mean

    def critic_step(self, data: Tensor, step: int) -> CriticLoss:
        """Update `step` of the critic, on a batch of the data."""
        with torch.no_grad():
            generated = self.generate(step * self.settings.batch, "critic")
        noise = NoiseSource(self.seed, "between", [step])
        (between,) = noise.uniform([(len(data),)], device=data.device, dtype=data.dtype)
        parts = critic_loss(self.critic, data, generated, between[0], self.settings.gradient_penalty)
        self.critic_optimizer.zero_grad(set_to_none=True)
        parts.loss.backward()
        self.critic_optimizer.step()
        return parts

    def generator_step(self, step: int) -> Tensor:
        """Update `step` of the generator towards lower critic values; returns the critic's mean value."""
        self.critic.requires_grad_(False)
        value = self.critic(self.generate(step * self.settings.batch, "generator")).mean()
        self.generator_optimizer.zero_grad(set_to_none=True)
        value.backward()
        self.generator_optimizer.step()
        self.critic.requires_grad_(True)
        return value.detach()


def run(settings: Path, data: Path, nvae: Path, model: Path, *, threads: int, gpus: int, limits: Limits) -> None:
    """Train the GAN from the model `nvae`; write `model`, training.json, history.jsonl and pictures in one folder.

    The model is the NVAE with the generator as decoder. `settings` is wgan.yaml, `data` a manifest.

    Raises:
        UserError: images that do not fit the NVAE or the batch, or a diverged training.
        Interrupted: stopped in time, to be resumed.
    """
    device = setup_device(threads, gpus, mps=True)
    seed, stage = read_settings(settings, WGANSettings)
    dataset = open_images(data)
    vae, vae_hash = load_frozen(nvae, dataset.shape, device)
    images = training_images(dataset, device, stage.batch, f"{settings}: wgan.batch")
    with seeded(derive(seed, "critic")):
        critic = to_device_channels_last(EnergyNetwork(stage.network, dataset.shape[0]), device)
    trainer = WGANTrainer(vae, critic, stage, seed)

    def batch_of(step: int) -> Tensor:
        return vae.as_input(training_batch(images, step, stage.batch, derive(seed, "wgan"), stage.flip))

    identity = {"seed": seed, "settings": stage.model_dump(), "data": dataset.hash, "nvae": vae_hash}
    optimizers = {"generator_optimizer": trainer.generator_optimizer, "critic_optimizer": trainer.critic_optimizer}
    state: dict[str, Stateful] = {"nvae": vae, "critic": critic, **optimizers}
    run_state = Training("wgan", model.parent, identity, stage.iterations, state, limits)
    for step in run_state.steps():
        for number in range(step * stage.critic_steps, (step + 1) * stage.critic_steps):
            parts = trainer.critic_step(batch_of(number), number)
        value = trainer.generator_step(step)
        if step % 10 == 0:
            figures = {"gap": float(parts.gap), "penalty": float(parts.penalty), "critic_generated": float(value)}
            if not all(map(math.isfinite, figures.values())):
                raise UserError(
                    f"{settings}: the training diverged at iteration {step}: {figures}; "
                    "choose a smaller wgan.learning_rate"
                )
            run_state.record(**figures)

    vae.requires_grad_(False)
    pictures = run_state.folder / "pictures"
    run_state.write_history()
    plots.training_curves(run_state.history, pictures / "curves.png", WGAN_CURVES)
    with torch.no_grad():
        eps = NoiseSource(seed, "pictures", range(128)).normal(vae.latent_shapes, device=device)
        plots.image_grid(vae.decode(eps)[0].mean.clamp(0, 1).cpu(), pictures / "samples.png")
    weights = vae.state_dict()
    save_model(model, "nvae", vae.settings.model_dump(), weights, shape=list(dataset.shape))
    run_state.finish(
        status="finished",
        parameters=sum(parameter.numel() for parameter in trainer.generator),
        model=hash_tensors(weights),
        device=str(device),
        threads=threads,
    )
