"""Distributions of pixels, p(x|z): normal, discretised logistic mixture, Bernoulli (NVAE section 4, VAEBM section 3).

Images x are in [0, 1]; `normal` and `logistic_mixture` model y = 2x − 1. The discrete distributions give probabilities
of grey levels, hence bits per dimension; `normal` gives a density of y.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vaebm.config.nvae import NVAENetworkSettings
from vaebm.noise import NoiseSource
from vaebm.nvae.distributions import Normal
from vaebm.system.shapes import Images, PerImage


def quantize(x: Tensor, bits: int) -> Tensor:
    """Reduce images in [0, 1] to 2^bits grey levels, ⌊255 x / 2^(8 − bits)⌋ / (2^bits − 1); unchanged at 8 bits."""
    return x if bits == 8 else torch.floor(255.0 * x / 2 ** (8 - bits)) / (2**bits - 1)


class Pixels(ABC):
    """p(x|z) for a batch of z; the likelihood excludes `crop` rows and columns of padding at each border."""

    def __init__(self, crop: int = 0):
        self.crop = crop

    @property
    @abstractmethod
    def mean(self) -> Images:
        """Mean image (B, C, H, W)."""

    @abstractmethod
    def sample(self, eps: Any, temperature: float = 1.0) -> Images:
        """Images (B, C, H, W) in [0, 1] from the noise that the distribution needs."""

    @abstractmethod
    def log_prob(self, x: Images) -> Tensor:
        """Log probability or density of `x` (B, C, H, W) in [0, 1]: (B, C, H, W), or (B, H, W) over all colours."""

    def log_likelihood(self, x: Images) -> PerImage:
        """log p(x|z) of images `x` (B, C, H, W) in [0, 1], without the padding: (B,)."""
        each, crop = self.log_prob(x), self.crop
        if crop:
            each = each[..., crop:-crop, crop:-crop]
        return each.flatten(1).sum(1)


class PixelNormal(Pixels):
    """The Gaussian decoder: a normal distribution of y = 2x − 1.

    Args:
        logits: (B, 2C, H, W): C raw means, then C raw log standard deviations.
        log_sigma_floor: lower bound of log σ; None, as in the paper: no bound.
    """

    def __init__(self, logits: Tensor, log_sigma_floor: float | None = None, crop: int = 0):
        super().__init__(crop)
        self.m, self.ell = logits.chunk(2, dim=1)
        self.normal = Normal(self.m, self.ell, log_sigma_floor=log_sigma_floor)

    @property
    def mean(self) -> Images:
        """Mean image ½μ + ½, (B, C, H, W); may leave [0, 1]."""
        return 0.5 * self.normal.mean + 0.5

    def sample(self, eps: Images, temperature: float = 1.0) -> Images:
        """Image ½ clamp(μ + σ ε) + ½, (B, C, H, W) in [0, 1]; no gradient where it saturates."""
        return 0.5 * self.normal.sample(eps if temperature == 1.0 else temperature * eps).clamp(-1.0, 1.0) + 0.5

    def add_noise(self, x: Images, eps: Images) -> Images:
        """`sample` around images `x` (B, C, H, W) in [0, 1]: ½ clamp(2x − 1 + σ ε) + ½."""
        return 0.5 * torch.addcmul(2.0 * x - 1.0, self.normal.sigma, eps).clamp(-1.0, 1.0) + 0.5

    def log_prob(self, x: Images) -> Tensor:
        """Log density of y = 2x − 1 for images `x`, elementwise (B, C, H, W)."""
        return self.normal.log_prob(2.0 * x - 1.0)

    def chain_log_prob(self, x: Images) -> Images:
        """`log_prob` with log σ ≥ −2, as in the published program's chain; for the potential `density` only."""
        return Normal(self.m, self.ell, log_sigma_floor=-2.0).log_prob(2.0 * x - 1.0)


class PixelLogisticMixture(Pixels):
    """A mixture of K discretised logistic distributions of y = 2x − 1, with autoregressive colours (PixelCNN++).

    Args:
        logits: (B, 10K, H, W): K mixture logits, then for each colour K means, K log scales and K raw coefficients.
        bits: bits per colour value.
    """

    def __init__(self, logits: Tensor, bits: int = 8, crop: int = 0):
        super().__init__(crop)
        batch, channels, height, width = logits.shape
        mixtures = channels // 10
        self.levels = 2**bits - 1
        self.mixture_logits = logits[:, :mixtures]
        parameters = logits[:, mixtures:].reshape(batch, 3, 3 * mixtures, height, width)
        self.means, log_scales, coefficients = parameters.chunk(3, dim=2)  # each (B, 3, K, H, W)
        self.log_scales = log_scales.clamp(min=-7.0)
        self.coefficients = coefficients.tanh()

    def log_prob(self, x: Images) -> Tensor:
        """Log probability of grey levels `x` (B, 3, H, W), jointly over the colours of a pixel: (B, H, W)."""
        y = (2.0 * x - 1.0)[:, :, None]  # (B, 3, 1, H, W)
        red, green = y[:, 0], y[:, 1]
        c = self.coefficients
        shift = torch.stack([torch.zeros_like(c[:, 0]), c[:, 0] * red, c[:, 1] * red + c[:, 2] * green], dim=1)
        centred = y - (self.means + shift)
        inverse = torch.exp(-self.log_scales)
        plus, minus = inverse * (centred + 1.0 / self.levels), inverse * (centred - 1.0 / self.levels)
        middle = inverse * centred
        mass = torch.sigmoid(plus) - torch.sigmoid(minus)
        density = middle - self.log_scales - 2.0 * F.softplus(middle) - math.log(self.levels / 2)
        inside = torch.where(mass > 1e-5, mass.clamp(min=1e-10).log(), density)
        above = torch.where(y > 0.99, -F.softplus(minus), inside)
        each = torch.where(y < -0.999, plus - F.softplus(plus), above)
        return torch.logsumexp(each.sum(1) + torch.log_softmax(self.mixture_logits, dim=1), dim=1)

    def sample(self, uniforms: Sequence[Tensor], temperature: float = 1.0) -> Images:
        """Images (B, 3, H, W) in [0, 1], not rounded to grey levels.

        Args:
            uniforms: in [1e-5, 1 − 1e-5] as published: (B, K, H, W) for the component, (B, 3, H, W) for the colours.
            temperature: divides the mixture's logits and, as published, the logistic's scale: below 1 it widens.
        """
        choose, place = uniforms
        chosen = torch.argmax(self.mixture_logits / temperature - torch.log(-torch.log(choose)), dim=1, keepdim=True)
        index = chosen[:, None].expand(-1, 3, -1, -1, -1)
        means, log_scales, coefficients = (
            part.gather(2, index)[:, :, 0] for part in (self.means, self.log_scales, self.coefficients)
        )
        logistic = torch.log(place) - torch.log1p(-place)
        return self._colours(means + log_scales.exp() / temperature * logistic, coefficients)

    @property
    def mean(self) -> Images:
        """Image (B, 3, H, W) from mean means and coefficients, as published; clamps make it differ from the mean."""
        weights = torch.softmax(self.mixture_logits, dim=1)[:, None]
        return self._colours((weights * self.means).sum(2), (weights * self.coefficients).sum(2))

    @staticmethod
    def _colours(y: Tensor, coefficients: Tensor) -> Tensor:
        """Red, green given red, blue given both, each clamped: (B, 3, H, W) → image in [0, 1]."""
        red = y[:, 0].clamp(-1.0, 1.0)
        green = (y[:, 1] + coefficients[:, 0] * red).clamp(-1.0, 1.0)
        blue = (y[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green).clamp(-1.0, 1.0)
        return 0.5 * torch.stack([red, green, blue], dim=1) + 0.5


class PixelBernoulli(Pixels):
    """Black or white pixels, with logits (B, C, H, W) of white."""

    def __init__(self, logits: Tensor, crop: int = 0):
        super().__init__(crop)
        self.logits = logits

    @property
    def mean(self) -> Images:
        """Probability of white, (B, C, H, W)."""
        return torch.sigmoid(self.logits)

    def sample(self, uniforms: Images, temperature: float = 1.0) -> Images:
        """Images (B, C, H, W) of zeros and ones for `uniforms` in (0, 1); the temperature divides the logits."""
        return (uniforms < torch.sigmoid(self.logits / temperature)).to(self.logits.dtype)

    def log_prob(self, x: Images) -> Tensor:
        """Log probability of `x` in {0, 1} (B, C, H, W), elementwise."""
        return -F.binary_cross_entropy_with_logits(self.logits, x, reduction="none")


class PointImage(Pixels):
    """An image (B, C, H, W) as a distribution of pixels without noise; it may leave [0, 1], and has no density."""

    def __init__(self, image: Images):
        super().__init__()
        self.image = image

    @property
    def mean(self) -> Images:
        """The image."""
        return self.image

    def sample(self, eps: Images, temperature: float = 1.0) -> Images:
        """The image; `eps` and `temperature` are not used."""
        return self.image

    def log_prob(self, x: Images) -> Tensor:
        """Not defined."""
        raise NotImplementedError("an image without noise has no density")


def logit_channels(settings: NVAENetworkSettings, channels: int) -> int:
    """Channels of the decoder's output for images of `channels` channels."""
    return {"normal": 2 * channels, "logistic_mixture": 10 * settings.mixtures, "bernoulli": channels}[settings.decoder]


def pixels_of(settings: NVAENetworkSettings, logits: Tensor) -> Pixels:
    """The distribution given by the decoder's output (B, `logit_channels`, H, W)."""
    if settings.decoder == "logistic_mixture":
        return PixelLogisticMixture(logits, settings.bits, settings.crop)
    if settings.decoder == "bernoulli":
        return PixelBernoulli(logits, settings.crop)
    return PixelNormal(logits, settings.pixel_log_sigma_floor, settings.crop)


def match_noise(pixels: Pixels, x: Images, noise: NoiseSource, step: int = 0) -> Images:
    """Add the decoder's pixel noise to images (B, C, H, W) in [0, 1]: clamp(x + ½σ(z) ω) for z ~ q(z|x).

    `pixels` is the Gaussian p(x|z) of draw number `step` from `noise`, whose derived noise ω is independent of it.
    """
    (eps,) = noise.derived("pixels").like([x], step)
    assert isinstance(pixels, PixelNormal)
    return pixels.add_noise(x, eps)
