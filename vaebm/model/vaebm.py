"""VAEBM: a frozen NVAE and an energy network, h(x, z) ∝ p(x, z) exp(−E(x)) (VAEBM eq. 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, get_args

import torch
from torch import nn

from vaebm.chain.langevin import PotentialFunction
from vaebm.config.ebm import ChainSettings, LangevinSettings, Positives, PotentialKind, Start
from vaebm.config.yaml_files import validate
from vaebm.energy.noise_energy import NoiseEnergy
from vaebm.fast import PreparationCache, PreparedPotential, half_square, prepare_energy, run_chain
from vaebm.model.latent_space import great_circle, posterior_noise
from vaebm.model.scores import ScoredModel
from vaebm.noise import NoiseSource, batches, check_source, sample_noise
from vaebm.nvae.model import NVAE, LatentDecoder, check_decoder
from vaebm.nvae.pixel_distributions import PixelNormal, Pixels
from vaebm.system.errors import UserError, brief, check_choice, check_number
from vaebm.system.shapes import GreyImages, Images, Latents, Paths, PerImage, check_noise

NO_CHAIN = LangevinSettings(steps=0, step_size=1.0)


class VAEBM(ScoredModel):
    """A frozen NVAE, an energy, and the distribution that they define together.

    Args:
        nvae: the VAE, frozen and in eval mode, as `load_nvae` returns it.
        energy: E(x) → (B,) for images x in [0, 1], as `load_energy` returns it; None: the NVAE alone.
        potential: U(ε) of the chain. `noise`: E(x) + ½‖ε_z‖² + ½‖ε_x‖², exact in noise space (VAEBM section 3.2).
            `density`: E(x) − log p(z) − log p(x|z), as in the published program.
        chain: the test chain, that of `sample`; by default without steps, so that samples are those of the NVAE.
        positives: data in the energy's training: images (`clean`), or images with pixel noise (`matched`).
        prior: E_ε(ε_z), added to both potentials; chains start at samples of N(0, I) exp(−E_ε). None: at N(0, I).

    Raises:
        UserError: another potential or positives, `nvae` is no NVAE, `chain` is not the settings of a chain, or an
            energy on an NVAE without a Gaussian decoder.
    """

    kinds: ClassVar[dict[str, Callable[..., VAEBM]]] = {}
    """Potential → class of its models, where that is a subclass."""
    potentials: ClassVar[Sequence[str]] = ("noise", "density")
    """Potentials of this class."""

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
        if not isinstance(nvae, LatentDecoder):
            raise UserError(f"nvae: expected an NVAE, as load_nvae returns it, found {type(nvae).__name__}")
        check_choice("potential", potential, self.potentials)
        check_choice("positives", positives, get_args(Positives))
        check_chain(chain)
        if energy is not None:
            check_decoder(nvae, "VAEBM")
        self.nvae, self.energy, self.potential_kind = nvae, energy, potential
        self.test_chain, self.positives, self.prior = chain, positives, prior
        self._cache = PreparationCache()  # of `vaebm.fast`, for `chain_potential` and `decoder`

    @classmethod
    def of_networks(
        cls,
        nvae: NVAE,
        energy: nn.Module | None,
        potential: PotentialKind = "noise",
        start: Start = "prior",
        positives: Positives = "clean",
        prior: NoiseEnergy | None = None,
    ) -> VAEBM:
        """Build the model in which an energy was trained: a `PixelEBM` for the potential `pixels`, else a `VAEBM`.

        Raises:
            UserError: an unknown kind, uniform starts without `pixels`, or an energy without a Gaussian decoder.
        """
        if kind := VAEBM.kinds.get(potential):
            return kind(nvae, energy, start)
        check_choice("start", start, ["prior"])
        own = cls if potential in cls.potentials else VAEBM
        return own(nvae, energy, potential, positives=positives, prior=prior)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.nvae.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.nvae.dtype

    def train(self, mode: bool = True) -> VAEBM:
        """Set the mode of the energies. The NVAE stays in eval mode, because chains would move its batch statistics."""
        super().train(mode)
        self.nvae.eval()
        return self

    def potential(self, eps_z: Sequence[Latents], eps_x: Images) -> PerImage:
        """U(ε), (B,), differentiable in both arguments (VAEBM section 3.2).

        `noise`: U = E(x) + ½‖ε_z‖² + ½‖ε_x‖². `density`: U = E(x) − log p(z) − log p(x|z). Both + E_ε(ε_z).

        Args:
            eps_z: one (B, latents, h, w) per latent group, in decoding order.
            eps_x: noise of the pixels, (B, C, H, W).

        Raises:
            UserError: noise of other shapes, or an NVAE without a Gaussian decoder.
        """
        check_noise([*eps_z, eps_x], [*self.latent_shapes, self.nvae.shape])
        check_decoder(self.nvae, "potential")
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
        """p(x|z) and log p(z), (B,), for the z of this noise; argument and errors are those of `NVAE.decode`."""
        return self.nvae.decode(eps_z)

    def _energy(self, x: Images) -> PerImage:
        return x.new_zeros(len(x)) if self.energy is None else self.energy(x)

    def initial_noise(self, noise: NoiseSource, temperature: float = 1.0) -> tuple[list[Latents], Images]:
        """Start of chains: ε_z, one (B, latents, h, w) per group, and ε_x (B, C, H, W).

        Both are normal, ε_z times `temperature`, from 0. With an energy on noise, ε_z then moves
        along its chain.

        Raises:
            UserError: a negative temperature, or a `noise` that is no NoiseSource.
        """
        check_source(noise)
        check_number("temperature", temperature, 0, whole=False)
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
        """Return (eps_z, eps_x), moved by the test chain, or by another one (VAEBM algorithm 1).

        Args:
            eps_z: one (B, latents, h, w) per latent group, in decoding order. Not modified.
            eps_x: noise of the pixels, (B, C, H, W). Not modified.
            noise: source of the chains' noise, one index per chain.
            steps: number of steps K; None: that of the test chain.
            step_size: η; None: that of the test chain; required without one.
            chain: all settings of the chain, in place of `steps` and `step_size`.

        Raises:
            UserError: noise of other shapes, or without an index for each chain; `chain` and also one of its numbers;
                steps out of range, without a step size, or without a Gaussian decoder.
        """
        check_noise([*eps_z, eps_x], [*self.latent_shapes, self.nvae.shape])
        check_source(noise, len(eps_x))
        chain = self._chain(steps, step_size, chain)
        if chain.steps == 0:
            return [part.detach() for part in eps_z], eps_x.detach()
        # with the default kernel this is `chain.langevin.langevin`, prepared
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
            step_size: η; None: that of the test chain; required without one.
            temperature: factor of ε_z at the chains' start, from 0; without steps it is a factor of the priors' σ.
            batch: images per batch, from 1; it affects speed and rounding only.

        Raises:
            UserError: a number out of range, steps without a step size or without a Gaussian decoder, or chains that
                leave the finite numbers.
        """
        check_number("count", count, 1)
        check_number("batch", batch, 1)
        chain, parts = self._chain(steps, step_size), batches(range(count), batch)
        means = [self.sample_means(sample_noise(seed, part), chain, temperature) for part in parts]
        return check_finite(torch.cat(means), chain).clamp(0.0, 1.0)

    @torch.no_grad()
    def reconstruct(self, images: Images | GreyImages, seed: int = 0) -> Images:
        """Decoder means (N, C, H, W) in [0, 1] of one posterior draw for each image, on the model's device.

        `images` are those of `score`. The draw of image k depends only on the seed and k.

        Raises:
            UserError: images of another shape, type or range, or none.
        """
        return self.nvae.decode(posterior_noise(self.nvae, images, seed))[0].mean.clamp(0.0, 1.0)

    @torch.no_grad()
    def interpolate(
        self, first: Images | GreyImages, last: Images | GreyImages, count: int, seed: int = 0, steps: int = 0
    ) -> Paths:
        """Decoder means (N, count, C, H, W) in [0, 1] on great circles in noise space between pairs of images.

        Args:
            first: images as those of `score`; the path begins at their reconstructions.
            last: as many, for the end of the path.
            count: number of images of a path, with its ends; 1: the first end alone.
            seed: seed of the posterior draws and of the chains.
            steps: steps of the test chain after the interpolation; 0: none, as energies on pixels need.

        Raises:
            UserError: images of another shape, type or range, none, or another number of last ones; numbers out of
                range; steps without a test chain, of an energy on pixels, or without a Gaussian decoder; or chains
                that leave the finite numbers.
        """
        check_number("count", count, 1)
        if steps and self.potential_kind == "pixels":
            raise UserError("interpolate: expected no steps for an energy on pixels, whose chains move images")
        ends = [posterior_noise(self.nvae, one, seed, name=name) for name, one in (("first", first), ("last", last))]
        eps_z = [path.flatten(0, 1) for path in great_circle(ends[0], ends[1], torch.linspace(0, 1, count))]
        noise = NoiseSource(seed, "interpolation", range(len(eps_z[0])))
        chain = self._chain(steps, None) if steps else NO_CHAIN
        if steps:
            _, eps_x = self.initial_noise(noise)
            eps_z, _ = self.refine(eps_z, eps_x, chain=chain, noise=noise)
        images = check_finite(self.nvae.decode(eps_z)[0].mean, chain)
        return images.clamp(0.0, 1.0).unflatten(0, (len(first), count))

    @torch.no_grad()
    def chain(
        self, count: int, seed: int = 0, *, steps: int | None = None, step_size: float | None = None
    ) -> list[Images]:
        """Decoder means (count, C, H, W) in [0, 1] at the start and after each of the K steps: K + 1 of them.

        The chains are those of `sample` with the same arguments, at temperature 1 and in a single batch.

        Raises:
            UserError: as for `sample`.
        """
        check_number("count", count, 1)
        noise, settings = sample_noise(seed, range(count)), self._chain(steps, step_size)
        eps_z, eps_x = self.initial_noise(noise)
        states = [eps_z]
        run_chain(self.chain_potential(), [*eps_z, eps_x], settings, noise, lambda eps: states.append(eps[:-1]))
        return [check_finite(self.decoder.decode(state)[0].mean, settings).clamp(0.0, 1.0) for state in states]

    def _chain(self, steps: int | None, step_size: float | None, chain: ChainSettings | None = None) -> ChainSettings:
        """`chain`, or the test chain with another number of steps or step size."""
        given = {name: value for name, value in (("steps", steps), ("step_size", step_size)) if value is not None}
        if chain is None:
            if steps and step_size is None and self.test_chain == self.test_chain.off:
                raise UserError("step_size: expected one without a test chain, found none; give it or set test_chain")
            chain = validate(type(self.test_chain), self.test_chain.model_dump() | given, "chain")
        elif given:
            raise UserError(f"{', '.join(given)}: expected none with chain, which has them, found both; give one")
        check_chain(chain)
        if chain.steps:
            check_decoder(self.nvae, "chain")
        return chain


def check_chain(chain: object) -> None:
    """Raise a `UserError` unless `chain` is the settings of a chain."""
    if not isinstance(chain, ChainSettings):
        found = brief(repr(chain))
        raise UserError(f"chain: expected settings, as LangevinSettings(steps=10, step_size=0.04), found {found}")


def check_finite(images: Images, chain: ChainSettings) -> Images:
    """Return the images after `chain`; a `UserError` if one is not finite."""
    if chain.steps and not images.isfinite().all():
        raise UserError(
            f"step_size: expected chains that stay finite, found some that do not with {chain.step_size:g}; "
            "choose a smaller one"
        )
    return images


build_model = VAEBM.of_networks  # the name that other modules import
