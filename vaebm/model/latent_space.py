"""Images as noise of the latent groups, and paths between them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vaebm.noise import NoiseSource, batches
from vaebm.nvae.model import NVAE
from vaebm.system.errors import UserError
from vaebm.system.shapes import GreyImages, Images, Latents, check_images


def great_circle(first: Sequence[Tensor], last: Sequence[Tensor], places: Tensor) -> list[Tensor]:
    """Points (B, P, …) on the great circles from `first` to `last`, (B, …), at `places` t in [0, 1], (P,).

    The noise of all latent groups is one vector ε per sample. ε(t) = (sin((1 − t) θ) ε₀ + sin(t θ) ε₁) / sin θ with the
    angle θ between them keeps the norm of standard normal noise, which a straight line does not.

    Raises:
        UserError: not as many ends as starts.
    """
    if len(first[0]) != len(last[0]):
        raise UserError(f"last: expected as many images as in first, {len(first[0])}, found {len(last[0])}")
    ends = [torch.cat([part.flatten(1) for part in end], dim=1).double() for end in (first, last)]
    cosine = torch.nn.functional.cosine_similarity(ends[0], ends[1], dim=1).clamp(-1.0, 1.0)
    angle = cosine.acos().clamp(1e-6, torch.pi - 1e-6)[:, None, None]  # parallel ends: a straight line
    places = places.to(angle).view(1, -1, 1)
    weights = ((1 - places) * angle).sin() / angle.sin(), (places * angle).sin() / angle.sin()
    path = weights[0] * ends[0][:, None] + weights[1] * ends[1][:, None]
    parts = path.to(first[0]).split([part[0].numel() for part in first], dim=2)
    return [part.unflatten(2, whole.shape[1:]) for part, whole in zip(parts, first, strict=True)]


def inputs(
    nvae: NVAE, images: Images | GreyImages, seed: int, purpose: str, batch: int, name: str = "images"
) -> Iterator[tuple[Images, NoiseSource]]:
    """Images (N, C, H, W) as the NVAE's input, batch by batch, each with noise of `purpose`, after `check_images`."""
    check_images(name, images, nvae.shape)
    for index in batches(range(len(images)), batch):
        x = nvae.as_input(images[index.start : index.stop], NoiseSource(seed, f"{purpose} input", index))
        yield x, NoiseSource(seed, purpose, index)


@torch.no_grad()
def posterior_noise(
    nvae: NVAE, images: Images | GreyImages, seed: int, batch: int = 500, name: str = "images"
) -> list[Latents]:
    """Noise from which `NVAE.decode` computes z, for a draw z ~ q(z|x) of each of the images; after `check_images`.

    It is one (N, latents, h, w) per latent group. The draw of image k depends only on `seed` and k.
    """
    pairs = inputs(nvae, images, seed, "encoded", batch, name)
    parts = [[draw.eps for draw in nvae.posterior(x, noise=noise)[0]] for x, noise in pairs]
    return [torch.cat(group) for group in zip(*parts, strict=True)]
