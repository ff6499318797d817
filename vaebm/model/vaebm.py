"""VAEBM: a frozen NVAE and an energy network, h(x, z) ∝ p(x, z) exp(−E(x)) (VAEBM eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from vaebm.chain.langevin import PotentialFunction
from vaebm.config import BASELINE, PRIOR, SamplesSettings
from vaebm.config.ebm import ChainSettings, LangevinSettings, Positives, PotentialKind, Start
from vaebm.config.yaml_files import read_settings, validate
from vaebm.energy.network import build_energy, load_energy
from vaebm.energy.noise_energy import NoiseEnergy, load_prior
from vaebm.fast import PreparationCache, PreparedPotential, half_square, prepare_energy, run_chain
from vaebm.model.latent_space import great_circle, posterior_noise
from vaebm.model.pretrained import PretrainedConfig
from vaebm.model.scores import ScoredModel
from vaebm.noise import NoiseSource, batches, sample_noise
from vaebm.nvae.model import NVAE, LatentDecoder, check_decoder, load_nvae
from vaebm.nvae.pixel_distributions import PixelNormal, Pixels
from vaebm.system.checkpoint import load_model
from vaebm.system.errors import UserError
from vaebm.system.files import model_of, seed_folder
from vaebm.system.precision import chain_dtype
from vaebm.system.shapes import GreyImages, Images, Latents, Paths, PerImage

NO_CHAIN = LangevinSettings(steps=0, step_size=1.0)


class VAEBM(ScoredModel):
    """A frozen NVAE, an energy, and the distribution that they define together.

    Args:
        nvae: the VAE, frozen.
        energy: E(x) → (B,) for images x in [0, 1]; None: the NVAE alone.
        potential: U(ε) of the chain. `noise`: E(x) + ½‖ε_z‖² + ½‖ε_x‖², exact in noise space (VAEBM section 3.2).
            `density`: E(x) − log p(z) − log p(x|z), as in the published program.
        chain: the test chain.
        positives: data in the energy's training: images (`clean`), or images with pixel noise (`matched`).
        prior: E_ε(ε_z), added to both potentials; chains start at samples of N(0, I) exp(−E_ε). None: at N(0, I).

    Raises:
        UserError: an energy on an NVAE without a Gaussian decoder.
    """

    start: Start = "prior"
    """Start of the chains: `prior`, samples of the NVAE, moved by `self.prior` if there is one, or `uniform` noise."""
    chain_dtype: torch.dtype | None = None
    """Type of the networks' features within chains, for instance bfloat16; None: the weights' type.

    Chains through the modules, and the decoding of images, always use the weights' type.
    """

    kinds: ClassVar[dict[str, Callable[..., VAEBM]]] = {}
    """Potential → class of its models, where that is a subclass."""

    def __init_subclass__(cls, potential: PotentialKind | None = None) -> None:
        VAEBM.kinds |= {potential: cls} if potential else {}

    def __init__(
        self,
        nvae: NVAE,
        energy: nn.Module | None,
        potential: PotentialKind = "noise",
        chain: ChainSettings = NO_CHAIN,
        positives: Positives = "clean",
        prior: NoiseEnergy | None = None,
    ):
        super().__init__()
        if energy is not None and isinstance(nvae, NVAE):
            check_decoder(nvae, "VAEBM")
        self.nvae, self.energy, self.potential_kind = nvae, energy, potential
        self.test_chain, self.positives, self.prior = chain, positives, prior
        self._cache = PreparationCache()

    @classmethod
    def from_results(cls, folder: Path | str, device: torch.device | str = "cpu") -> VAEBM:
        """Load the model of `results/<experiment>/<variant>` (its first seed) or `…/<variant>/seed<k>`.

        Raises:
            UserError: there is no finished run in `folder`.
        """
        folder = seed_folder(Path(folder))
        own = model_of(folder)
        if (content := load_model(own))["kind"] == "nvae":  # the NVAE, or a GAN's generator
            return cls.load(own, None, device)
        nvae, prior = (model_of(folder.parent.parent / name / folder.name) for name in (BASELINE, PRIOR))
        if content["kind"] == "prior":
            model = cls.load(nvae, None, device, own)
        else:
            model = cls.load(nvae, own, device, prior if content.get("prior") else None)
        model.configure_sampling(read_settings(folder / "samples" / "samples.yaml", SamplesSettings)[1])
        return model

    @classmethod
    def load(
        cls, nvae: Path, energy: Path | None, device: torch.device | str = "cpu", prior: Path | None = None
    ) -> VAEBM:
        """Load an NVAE and an energy, with the potential of the energy's training.

        Args:
            nvae: model file of the NVAE.
            energy: model file of the energy; None: the NVAE alone.
            device: device of the weights.
            prior: model file of the energy on noise; None: the energy was trained without one.

        Raises:
            UserError: a file is missing or of another kind, the models do not belong to each other, or an energy's NVAE
                has no Gaussian decoder.
        """
        vae, on_noise = load_nvae(nvae, device), None if prior is None else load_prior(prior, device)
        if on_noise is not None and on_noise.shapes != vae.latent_shapes:
            raise UserError(f"{prior}: expected noise {vae.latent_shapes}, as {nvae} has, found {on_noise.shapes}")
        if energy is None:
            return cls(vae, None, prior=on_noise)
        check_decoder(vae, nvae)
        content, below = load_model(energy, "energy"), None if prior is None else load_model(prior)["hash"]
        if content.get("prior") != below:
            raise UserError(f"{energy}: expected an energy of the prior {below}, found one of {content.get('prior')}")
        own = (content["potential"], content["start"], content.get("positives", "clean"))
        return build_model(vae, load_energy(energy, device), *own, on_noise)

    @property
    def config(self) -> PretrainedConfig:
        """Architecture, potential and test chain."""
        energy = getattr(self.energy, "settings", None if self.energy is None else type(self.energy).__name__)
        content = {"nvae": self.nvae.settings, "shape": [*self.nvae.shape], "energy": energy, "chain": self.test_chain}
        content |= {"potential": self.potential_kind, "start": self.start, "positives": self.positives}
        content |= {"prior": self.prior and self.prior.settings}
        return validate(PretrainedConfig, content, "save_pretrained")

    @classmethod
    def of_config(cls, config: PretrainedConfig) -> VAEBM:
        """Build the model of a configuration, with random weights."""
        nvae = NVAE(config.nvae, config.shape)
        prior = None if config.prior is None else NoiseEnergy(config.prior, nvae.latent_shapes)
        model = cls(nvae, None, prior=prior)
        if config.energy is not None:
            energy = build_energy(config.energy, config.shape[0])
            model = build_model(nvae, energy, config.potential, config.start, config.positives, prior)
        model.test_chain = config.chain
        return model

    def configure_sampling(self, settings: SamplesSettings) -> None:
        """Set the test chain and `chain_dtype` from settings; TF32 is set per process (`system.precision`)."""
        self.test_chain, self.chain_dtype = settings.chain, chain_dtype(settings.precision)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.nvae.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.nvae.dtype

    def potential(self, eps_z: Sequence[Latents], eps_x: Images) -> PerImage:
        """U(ε), (B,), differentiable in both arguments (VAEBM section 3.2).

        `noise`: U = E(x) + ½‖ε_z‖² + ½‖ε_x‖². `density`: U = E(x) − log p(z) − log p(x|z). Both + E_ε(ε_z).

        Args:
            eps_z: one (B, latents, h, w) per latent group, in decoding order.
            eps_x: noise of the pixels, (B, C, H, W).
        """
        pixels, log_p = self.decode(eps_z)
        x = pixels.sample(eps_x)
        energy = self._energy(x) if self.prior is None else self._energy(x) + self.prior(eps_z)
        if self.potential_kind == "density":
            assert isinstance(pixels, PixelNormal)
            return energy - log_p - pixels.chain_log_prob(x).sum(dim=(1, 2, 3))
        return energy + 0.5 * torch.stack([eps.square().flatten(1).sum(1) for eps in (*eps_z, eps_x)]).sum(0)

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """Shape of each part of ε_z, in decoding order."""
        return self.nvae.latent_shapes

    def decode(self, eps_z: Sequence[Latents]) -> tuple[Pixels, PerImage]:
        """p(x|z) for z = T(ε_z), and log p(z) (B,), by the modules."""
        return self.nvae.decode(eps_z)

    def _energy(self, x: Images) -> PerImage:
        return x.new_zeros(len(x)) if self.energy is None else self.energy(x)

    def initial_noise(self, noise: NoiseSource, temperature: float = 1.0) -> tuple[list[Latents], Images]:
        """Start of chains: ε_z, one (B, latents, h, w) per group, and ε_x (B, C, H, W).

        Both are normal, ε_z times `temperature`. With a prior, ε_z then moves along the prior's chain.
        """
        shapes = [*self.nvae.latent_shapes, self.nvae.shape]
        *eps_z, eps_x = noise.normal(shapes, device=self.device, dtype=self.dtype)
        eps_z = [temperature * eps for eps in eps_z] if temperature != 1.0 else eps_z
        if (prior := self.prior) is not None:
            source = noise.derived("prior")
            eps_z = run_chain(lambda eps: prior(eps) + half_square(*eps), eps_z, prior.settings.chain, source)
        return eps_z, eps_x

    def refine(
        self,
        eps_z: Sequence[Latents],
        eps_x: Images,
        *,
        noise: NoiseSource,
        steps: int | None = None,
        step_size: float | None = None,
        chain: ChainSettings | None = None,
    ) -> tuple[list[Latents], Images]:
        """Return (eps_z, eps_x), moved by `chain` or by the test chain (VAEBM algorithm 1).

        Args:
            eps_z: one (B, latents, h, w) per latent group, in decoding order. Not modified.
            eps_x: noise of the pixels, (B, C, H, W). Not modified.
            noise: source of the chains' noise, one index per chain.
            steps: number of steps K; None: that of the test chain.
            step_size: η; None: that of the test chain.
            chain: all settings of the chain, in place of `steps` and `step_size`.
        """
        chain = chain or self._chain(steps, step_size)
        if chain.steps == 0:
            return [part.detach() for part in eps_z], eps_x.detach()
        *moved, moved_x = run_chain(self.chain_potential(), [*eps_z, eps_x], chain, noise)
        return moved, moved_x

    def chain_potential(self) -> PotentialFunction:
        """U(ε) of the list [*eps_z, eps_x], prepared with the present weights (`vaebm.fast`).

        In double precision, and for an NVAE in training mode, it calls the modules. While decoder and architecture stay
        the same, calls return the same object with updated weights, so that a recorded CUDA graph stays valid.
        """
        if not self._prepares:
            return lambda eps: self.potential(eps[:-1], eps[-1])
        energy = self._energy if self.energy is None else prepare_energy(self.energy, self.chain_dtype)
        decoder = self._cache.decoder(self.nvae, self.chain_dtype)
        return self._cache.potential(PreparedPotential(decoder, energy, self.potential_kind, self.prior))

    @property
    def _prepares(self) -> bool:
        return isinstance(self.nvae, NVAE) and not self.nvae.training and self.dtype != torch.float64

    @property
    def decoder(self) -> LatentDecoder:
        """Decoder of images: prepared once for the present weights, or the NVAE (see `chain_potential`)."""
        return self._cache.decoder(self.nvae, None) if self._prepares else self.nvae

    @torch.no_grad()
    def sample_means(self, noise: NoiseSource, chain: ChainSettings | None = None, temperature: float = 1.0) -> Images:
        """Decoder means after `chain`, or the test chain: (B, C, H, W), one per index of `noise`; may leave [0, 1]."""
        eps_z, _ = self.refine(*self.initial_noise(noise, temperature), noise=noise, chain=chain or self.test_chain)
        return self.decoder.decode(eps_z)[0].mean

    def sample_batch(self, noise: NoiseSource, chain: ChainSettings | None = None) -> Images:
        """`sample_means`, clamped to [0, 1]."""
        return self.sample_means(noise, chain).clamp(0.0, 1.0)

    def sample(
        self,
        count: int,
        seed: int = 0,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        temperature: float = 1.0,
        batch: int = 500,
    ) -> Images:
        """Draw images (count, C, H, W) in [0, 1], float32, or float64 after `.double()`.

        Args:
            count: number of images.
            seed: image k depends only on the seed and k, on one kind of device.
            steps: K; None: that of the test chain.
            step_size: η; None: that of the test chain.
            temperature: factor of the chains' start in latent noise, which is that of the priors' σ; at least 0.
            batch: images per batch; it affects speed and rounding only.

        Raises:
            UserError: count, steps, step size or temperature out of range.
        """
        for name, value, least in ("count", count, 1), ("temperature", temperature, 0):
            if not least <= value < math.inf:
                raise UserError(f"{name}: expected a number from {least}, found {value}")
        chain, parts = self._chain(steps, step_size), batches(range(count), batch)
        means = [self.sample_means(sample_noise(seed, part), chain, temperature) for part in parts]
        return torch.cat(means).clamp(0.0, 1.0)

    @torch.no_grad()
    def reconstruct(self, images: Images | GreyImages, seed: int = 0) -> Images:
        """Decoder means (N, C, H, W) in [0, 1] of one posterior draw for each of the images, uint8 or in [0, 1]."""
        return self.nvae.decode(posterior_noise(self.nvae, images, seed))[0].mean.clamp(0.0, 1.0)

    @torch.no_grad()
    def interpolate(
        self, first: Images | GreyImages, last: Images | GreyImages, count: int, seed: int = 0, steps: int = 0
    ) -> Paths:
        """Decoder means (N, count, C, H, W) in [0, 1] on great circles in noise space between pairs of images.

        Args:
            first: (N, C, H, W), uint8 or in [0, 1]; the path begins at their reconstructions.
            last: as many, for the end of the path.
            count: number of images of a path, with its ends.
            seed: seed of the posterior draws and of the chains.
            steps: Langevin steps of the model's step size after the interpolation; 0: none, as energies on pixels need.
        """
        if steps and self.potential_kind == "pixels":
            raise UserError("interpolate: expected no steps for an energy on pixels, whose chains move images")
        ends = [posterior_noise(self.nvae, images, seed) for images in (first, last)]
        eps_z = [path.flatten(0, 1) for path in great_circle(ends[0], ends[1], torch.linspace(0, 1, count))]
        noise = NoiseSource(seed, "interpolation", range(len(eps_z[0])))
        if steps:
            _, eps_x = self.initial_noise(noise)
            eps_z, _ = self.refine(eps_z, eps_x, steps=steps, step_size=self.test_chain.step_size, noise=noise)
        return self.nvae.decode(eps_z)[0].mean.clamp(0.0, 1.0).unflatten(0, (len(first), count))

    @torch.no_grad()
    def chain(
        self, count: int, seed: int = 0, *, steps: int | None = None, step_size: float | None = None
    ) -> list[Images]:
        """Decoder means (count, C, H, W) in [0, 1] at the start and after each of the K steps: K + 1 of them.

        Noise and arguments are those of `sample`.
        """
        noise, settings = sample_noise(seed, range(count)), self._chain(steps, step_size)
        eps_z, eps_x = self.initial_noise(noise)
        states = [eps_z]
        run_chain(self.chain_potential(), [*eps_z, eps_x], settings, noise, lambda eps: states.append(eps[:-1]))
        return [self.decoder.decode(state)[0].mean.clamp(0.0, 1.0) for state in states]

    def _chain(self, steps: int | None, step_size: float | None) -> ChainSettings:
        given = {name: value for name, value in (("steps", steps), ("step_size", step_size)) if value is not None}
        return validate(type(self.test_chain), self.test_chain.model_dump() | given, "chain")


def build_model(
    nvae: NVAE,
    energy: nn.Module,
    potential: PotentialKind,
    start: Start = "prior",
    positives: Positives = "clean",
    prior: NoiseEnergy | None = None,
) -> VAEBM:
    """Build the model in which an energy was trained: a `PixelEBM` for the potential `pixels`, else a `VAEBM`."""
    if kind := VAEBM.kinds.get(potential):
        return kind(nvae, energy, start)
    return VAEBM(nvae, energy, potential, positives=positives, prior=prior)
