"""VAEBM: the pair of a frozen NVAE and an energy network, h(x, z) ∝ p(x, z) exp(−E(x)) (VAEBM eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from vaebm.chain import langevin as chains
from vaebm.chain.langevin import langevin
from vaebm.config import BASELINE, SamplesSettings
from vaebm.config.ebm import Positives, Potential, Start
from vaebm.config.yaml_files import read_settings
from vaebm.energy.network import load_energy
from vaebm.fast import Decoder, PreparedPotential, half_square, move, prepare_energy, stamp
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE, load_nvae
from vaebm.nvae.pixel_distributions import PixelNormal, match_noise, quantize
from vaebm.nvae.pixel_space import PixelSpace
from vaebm.system.checkpoint import load_model
from vaebm.system.errors import UserError
from vaebm.system.precision import chain_type


def check_decoder(nvae: NVAE, where: Path | str) -> None:
    """That an energy can act on this NVAE.

    Args:
        where: what the message begins with.

    Raises:
        UserError: its decoder is not Gaussian.
    """
    if nvae.settings.decoder != "normal":
        raise UserError(
            f"{where}: expected an NVAE with the decoder normal, which the chain needs, found {nvae.settings.decoder}"
        )


class Estimates(NamedTuple):
    """Estimates for images, in nats per image, each (B,) in double precision; None where a model has none."""

    elbo: Tensor | None
    """E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)), the expectation as a mean over the draws (NVAE eq. 1)."""
    importance: Tensor | None
    """ln of the mean over the draws of p(x|z) p(z) / q(z|x): never below the ELBO but for chance (Burda et al., 2016)."""
    energy: Tensor | None
    """E(x), as the energy was trained to see x."""

    @property
    def score(self) -> Tensor:
        """log p(x) − E(x), of the parts that there are, (B,)."""
        parts = [part for part in (self.importance, None if self.energy is None else -self.energy) if part is not None]
        return torch.stack(parts).sum(dim=0)


class VAEBM(nn.Module):
    """A frozen NVAE, an energy, and the law that they define together.

    Args:
        nvae: the VAE, frozen.
        energy: E(x) → (B,) for images x in [0, 1]; None: the NVAE alone.
        potential: the chain's U(ε). `noise`: E(x) + ½‖ε_z‖² + ½‖ε_x‖², the exact law of the model in noise space.
            `density`: E(x) − log p(z) − log p(x|z), the published program's.
        steps, step_size: of the test chain, where `sample` is not given others.
        positives: what the energy was trained to know as data: images, or (`matched`) images with the decoder's pixel noise.

    Raises:
        UserError: an energy on an NVAE without a Gaussian decoder.
    """

    without_likelihood = ""
    """Why there is no estimate of log p(x); empty where there is one."""
    chain_type: torch.dtype | None = None
    """Of the networks' features within chains, bfloat16 for instance; None: the weights'. Chains through the modules (`chain_potential`) and the
    decoding of images have the weights' in any case."""

    def __init__(
        self,
        nvae: NVAE,
        energy: nn.Module | None,
        potential: Potential = "noise",
        steps: int = 0,
        step_size: float = 1.0,
        positives: Positives = "clean",
    ):
        super().__init__()
        if energy is not None and isinstance(nvae, NVAE):
            check_decoder(nvae, "VAEBM")
        self.nvae, self.energy, self.kind = nvae, energy, potential
        self.steps, self.step_size, self.positives = steps, step_size, positives
        self._decoders: tuple[object, dict[torch.dtype | None, Decoder]] = (), {}
        self._potential: PreparedPotential | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what is prepared: a copy prepares anew what it needs, and a recorded step belongs to its process."""
        return self.__dict__ | {"_decoders": ((), {}), "_potential": None}

    @classmethod
    def from_results(cls, folder: Path | str, device: torch.device | str = "cpu") -> VAEBM:
        """The model of a run: results/<experiment>/<variant>, its first seed, or …/seed<k>.

        Raises:
            UserError: there is no finished run in `folder`.
        """
        folder = Path(folder)
        if not folder.name.startswith("seed"):
            seeds = sorted(
                (path.parent for path in folder.glob("seed*/model.pt")), key=lambda path: (len(path.name), path.name)
            )
            if not seeds:
                raise UserError(
                    f"{folder}: expected a run (results/EXPERIMENT/VARIANT), found no model of a seed in it"
                )
            folder = seeds[0]
        nvae = folder.parent.parent / BASELINE / folder.name / "model.pt"
        if folder.parent.name == BASELINE:
            return cls.load(nvae, None, device)
        if (folder / "wgan.yaml").is_file():
            return cls.load(folder / "model.pt", None, device)
        model = cls.load(nvae, folder / "model.pt", device)
        model.follow(read_settings(folder / "samples" / "samples.yaml", SamplesSettings)[1])
        return model

    @classmethod
    def load(cls, nvae: Path, energy: Path | None, device: torch.device | str = "cpu") -> VAEBM:
        """The pair in two model files, with the potential that the energy was trained with; no energy: the NVAE alone.

        Raises:
            UserError: a file is missing, no model of its kind, or the NVAE has no Gaussian decoder for an energy to act on.
        """
        vae = load_nvae(nvae, device)
        if energy is None:
            return cls(vae, None)
        check_decoder(vae, nvae)
        content = load_model(energy, "energy")
        return pair(
            vae, load_energy(energy, device), content["potential"], content["start"], content.get("positives", "clean")
        )

    def follow(self, samples: SamplesSettings) -> None:
        """Take the test chain, and what it computes in, from the settings of samples; TF32 is the process's (`precision`)."""
        self.steps, self.step_size = samples.chain.steps, samples.chain.step_size
        self.chain_type = chain_type(samples.precision)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.nvae.prior_constant.device

    def potential(self, eps_z: Sequence[Tensor], eps_x: Tensor) -> Tensor:
        """The chain's U(ε), (B,), differentiable in both.

        Args:
            eps_z: one (B, latents, h, w) per latent group, decoding order.
            eps_x: noise of the pixels, (B, C, H, W).
        """
        pixels, log_p = self.decode(eps_z)
        x = pixels.sample(eps_x)
        energy = self._energy(x)
        if self.kind == "density":
            return energy - log_p - pixels.chain_log_prob(x).sum(dim=(1, 2, 3))
        return energy + 0.5 * torch.stack([eps.square().flatten(1).sum(1) for eps in (*eps_z, eps_x)]).sum(0)

    def decode(self, eps_z: Sequence[Tensor]) -> tuple[PixelNormal, Tensor]:
        """The NVAE's Gaussian p(x|z) for z = T(ε_z), and log p(z) (B,)."""
        return cast(tuple[PixelNormal, Tensor], self.nvae.decode(eps_z))

    def _energy(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x)) if self.energy is None else self.energy(x)

    def noise_like_prior(self, noise: NoiseSource) -> tuple[list[Tensor], Tensor]:
        """The start of chains: ε_z, one (B, latents, h, w) per group, and ε_x (B, C, H, W), all standard normal, of the weights' type."""
        *eps_z, eps_x = noise.normal(
            [*self.nvae.latent_shapes, self.nvae.shape], device=self.device, dtype=self.nvae.prior_constant.dtype
        )
        return eps_z, eps_x

    def refine(
        self, eps_z: Sequence[Tensor], eps_x: Tensor, *, steps: int, step_size: float, noise: NoiseSource
    ) -> tuple[list[Tensor], Tensor]:
        """Move noise by `steps` Langevin steps: (eps_z, eps_x) → (eps_z, eps_x)."""
        if steps == 0:
            return [part.detach() for part in eps_z], eps_x.detach()
        *moved, moved_x = move(self.chain_potential(), [*eps_z, eps_x], steps=steps, step_size=step_size, noise=noise)
        return moved, moved_x

    def chain_potential(self) -> chains.Potential:
        """`potential` for chains, of the list of all noise, prepared with the weights as they are now (`fast`).

        In double precision, which is for comparisons, and for an NVAE in training mode it goes through the modules. As
        long as decoder and architecture are the same, a call gives what the last one gave, with the weights of now: what a GPU has
        recorded of it stays of use.
        """
        if not self._prepares:
            return lambda eps: self.potential(eps[:-1], eps[-1])
        energy = self._energy if self.energy is None else prepare_energy(self.energy, self.chain_type)
        potential = PreparedPotential(
            self._prepared_decoder(self.chain_type), energy, cast(Literal["noise", "density"], self.kind)
        )
        if self._potential is None or not self._potential.become(potential):
            self._potential = potential
        return self._potential

    @property
    def _prepares(self) -> bool:
        return (
            isinstance(self.nvae, NVAE) and not self.nvae.training and self.nvae.prior_constant.dtype != torch.float64
        )

    @property
    def decoder(self) -> NVAE | Decoder:
        """What images are decoded by: the NVAE's decoder, prepared once for the weights that it has, or in cases as above the NVAE."""
        return self._prepared_decoder(None) if self._prepares else self.nvae

    def _prepared_decoder(self, dtype: torch.dtype | None) -> Decoder:
        current = stamp(self.nvae)
        if self._decoders[0] != current:
            self._decoders = current, {}
        if dtype not in self._decoders[1]:
            self._decoders[1][dtype] = Decoder(self.nvae, dtype)
        return self._decoders[1][dtype]

    @torch.no_grad()
    def means(self, noise: NoiseSource, *, steps: int | None = None, step_size: float | None = None) -> Tensor:
        """Decoder means after the test chain, which may leave [0, 1]; one image per index of `noise`, (B, C, H, W) of the weights' type."""
        steps, step_size = self._chain(steps, step_size)
        eps_z, _ = self.refine(*self.noise_like_prior(noise), steps=steps, step_size=step_size, noise=noise)
        return self.decoder.decode(eps_z)[0].mean

    def images(self, noise: NoiseSource, *, steps: int | None = None, step_size: float | None = None) -> Tensor:
        """`means`, clamped to [0, 1]."""
        return self.means(noise, steps=steps, step_size=step_size).clamp(0.0, 1.0)

    def sample(
        self, count: int, seed: int = 0, *, steps: int | None = None, step_size: float | None = None, batch: int = 500
    ) -> Tensor:
        """Draw images (count, C, H, W) in [0, 1], float32, or float64 where the model was made `.double()`.

        Args:
            count: number of images.
            seed: of their noise; image k depends on the seed and on k alone.
            steps, step_size: other settings of the chain.
            batch: images computed at once; changes nothing but speed and rounding.
        """
        chunks = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
        return torch.cat([self.images(sample_noise(seed, chunk), steps=steps, step_size=step_size) for chunk in chunks])

    @torch.no_grad()
    def chain(
        self, count: int, seed: int = 0, *, steps: int | None = None, step_size: float | None = None
    ) -> list[Tensor]:
        """Decoder means (count, C, H, W) in [0, 1] at the start of `count` chains and after each step; the noise of `sample`."""
        noise, (steps, step_size) = sample_noise(seed, range(count)), self._chain(steps, step_size)
        eps_z, eps_x = self.noise_like_prior(noise)
        states = [eps_z]
        langevin(
            self.chain_potential(),
            [*eps_z, eps_x],
            steps=steps,
            step_size=step_size,
            noise=noise,
            watch=lambda eps: states.append(eps[:-1]),
        )
        return [self.decoder.decode(state)[0].mean.clamp(0.0, 1.0) for state in states]

    def _chain(self, steps: int | None, step_size: float | None) -> tuple[int, float]:
        return self.steps if steps is None else steps, self.step_size if step_size is None else step_size

    @torch.no_grad()
    def estimate(self, x: Tensor, noise: NoiseSource, draws: int) -> Estimates:
        """What log p(x) and E(x) are estimated by, from the same draws z ~ q(z|x).

        An energy trained on `matched` positives knows images with pixel noise: its E(x) is the mean of E(x + ½σ(z) ω) over the draws.

        Args:
            x: images (B, C, H, W) in [0, 1], of the NVAE's depth; a Gaussian decoder's density is that of 2x − 1.
            noise: of the draws, one index per image.
            draws: their number.
        """
        elbo, weights, energies = x.new_zeros(len(x), dtype=torch.float64), [], []
        for draw in range(draws):
            out = self.nvae(x, noise=noise, step=draw)
            reconstruction = out.pixels.log_likelihood(x).double()
            elbo += (reconstruction - out.kl.double().sum(dim=1)) / draws
            weights.append(reconstruction + out.log_p.double() - out.log_q.double())
            if self.energy is not None and self.positives == "matched":
                energies.append(self.energy(match_noise(out.pixels, x, noise, draw)).double())
        if self.energy is not None and self.positives == "clean":
            energies = [self.energy(x).double()]
        return Estimates(
            elbo,
            torch.stack(weights).logsumexp(dim=0) - math.log(draws),
            torch.stack(energies).mean(dim=0) if energies else None,
        )

    def log_likelihood(self, x: Tensor, seed: int = 0, importance_samples: int = 1) -> Tensor:
        """Estimate of the NVAE's log p(x), (B,): the importance-weighted bound (with one sample the ELBO, KL by draw).

        Args:
            x: images (B, C, H, W) in [0, 1], of the NVAE's depth.
            seed: of the draws; image k of the call takes noise k.
            importance_samples: draws of the posterior.

        Raises:
            UserError: a model without an estimate of log p(x).
        """
        found = self.estimate(x, NoiseSource(seed, "score", range(len(x))), importance_samples).importance
        if found is None:
            raise UserError(f"log_likelihood: {self.without_likelihood}")
        return found.to(x.dtype)

    def score(self, images: Tensor, seed: int = 0, importance_samples: int = 1) -> Tensor:
        """Estimate of log p(x) − E(x), (B,): log-likelihood of the pair up to log Z; higher is more in-distribution.

        Args:
            images: (B, C, H, W) in [0, 1]; their depth is reduced to the NVAE's.
            seed: of the draws of the posterior, and of the pixel noise for an energy trained on `matched` positives.
            importance_samples: draws of the posterior, and of that noise.
        """
        x = quantize(images, self.nvae.settings.bits)
        return self.estimate(x, NoiseSource(seed, "score", range(len(x))), importance_samples).score.to(x.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """`score` with its defaults: images (B, C, H, W) in [0, 1] → (B,), higher is more in-distribution."""
        return self.score(images)


class PixelEBM(VAEBM):
    """The ablation's energy on pixels, p(x) ∝ exp(−E(x)), without the NVAE but for where its chains may start (VAEBM table 4).

    Chains move the images by Langevin steps; they are not held in [0, 1], as the energy is not, and samples are clamped.

    Args:
        nvae: what the chains start from with `start` "prior".
        energy: E(x) → (B,).
        start: `prior`: decoder means of the NVAE's prior, what its samples are everywhere; `uniform`: uniform noise.
        steps, step_size: of the test chain.
    """

    without_likelihood = (
        "an energy on pixels gives log p(x) only up to log Z, and has no bound on it; it is scored by −E(x) alone"
    )

    def __init__(self, nvae: NVAE, energy: nn.Module, start: Start, steps: int = 0, step_size: float = 1.0):
        super().__init__(cast(NVAE, PixelSpace(nvae)), energy, "pixels", steps, step_size)
        self.vae, self.start = nvae, start

    def potential(self, eps_z: Sequence[Tensor], eps_x: Tensor) -> Tensor:
        """U = E(x) for the images x = eps_z[0], (B,); `eps_x` goes its own way, as standard normal noise that nothing depends on."""
        return self._energy(eps_z[0]) + 0.5 * eps_x.square().flatten(1).sum(1)

    def chain_potential(self) -> chains.Potential:
        """`potential` with the energy's weights as they are now."""
        assert self.energy is not None
        energy = (
            self.energy
            if self.nvae.prior_constant.dtype == torch.float64
            else prepare_energy(self.energy, self.chain_type)
        )
        return lambda eps: energy(eps[0]) + half_square(eps[-1])

    def noise_like_prior(self, noise: NoiseSource) -> tuple[list[Tensor], Tensor]:
        """The images at the start of the chains, as a list of one, and noise of their shape."""
        eps_z, eps_x = VAEBM(self.vae, None).noise_like_prior(noise)
        if self.start == "prior":
            return [self.vae.decode(eps_z)[0].mean], eps_x
        return noise.uniform([self.nvae.shape], device=self.device, dtype=eps_x.dtype), eps_x

    @torch.no_grad()
    def estimate(self, x: Tensor, noise: NoiseSource, draws: int) -> Estimates:
        """E(x) alone, for images (B, C, H, W) in [0, 1]; it takes no draws."""
        return Estimates(None, None, self._energy(x).double())


def pair(
    nvae: NVAE, energy: nn.Module, potential: Potential, start: Start = "prior", positives: Positives = "clean"
) -> VAEBM:
    """The model that an energy was trained in."""
    return (
        PixelEBM(nvae, energy, start) if potential == "pixels" else VAEBM(nvae, energy, potential, positives=positives)
    )


def sample_noise(seed: int, index: Sequence[int]) -> NoiseSource:
    """Noise of the samples with these global indices: the same for every variant of a seed."""
    return NoiseSource(seed, "samples", index)
