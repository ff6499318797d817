"""Shapes of tensors in signatures; the tests check them at every call (jaxtyping, beartype)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vaebm.system.errors import UserError

Images = Float[Tensor, "batch channels height width"]
"""Images, or noise of their shape."""
GreyImages = UInt8[Tensor, "batch channels height width"]
"""Images as grey levels 0 to 255."""
Latents = Float[Tensor, "batch _latents _height _width"]
"""Latent variables or noise of one group, or features of one scale; groups differ in size."""
GreyPixels = UInt8[Tensor, "batch height width channels"]
"""Grey levels 0 to 255, colours last, as in files."""
PerGroup = Float[Tensor, "batch groups"]
"""One value per image and latent group."""
PerImage = Float[Tensor, "batch"]
"""One value per image or chain."""
Paths = Float[Tensor, "batch places channels height width"]
"""Images on a path for each pair of images."""


def check_images(name: str, images: Any, shape: Sequence[int], raw: bool = True) -> None:
    """Raise a `UserError` unless the argument `name` is at least one image, (N, *shape), floating-point in [0, 1].

    `raw`: also accept grey levels uint8, and check the range of other values (synchronises a GPU).
    """
    sizes = ", ".join(map(str, ("N", *shape)))
    kind = "uint8 or floating-point" if raw else "floating-point (`as_input`)"
    expected = f"{name}: expected a tensor ({sizes}) of N images, {kind} in [0, 1], found"
    if not isinstance(images, Tensor):
        raise UserError(f"{expected} a value of type {type(images).__name__}; torch.as_tensor converts arrays")
    grey, floating = raw and images.dtype == torch.uint8, images.is_floating_point()
    if images.shape[1:] != torch.Size(shape) or not len(images) or not (grey or floating):
        raise UserError(f"{expected} {tuple(images.shape)} {images.dtype}")
    if raw and floating:
        low, high = (float(end) for end in images.aminmax())
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # up to rounding
            raise UserError(
                f"{expected} values from {low:g} to {high:g}; "
                "divide grey levels by 255, map [-1, 1] by (x + 1) / 2, clamp other values"
            )


def check_noise(eps: Any, shapes: Sequence[Sequence[int]], count: int | None = None) -> None:
    """Raise a `UserError` unless `eps` is a list of tensors (B, *shape), one for each of the `shapes`.

    B is `count`. None: any, but the same in all.
    """
    found: Any = f"a value of type {type(eps).__name__}"
    if isinstance(eps, list | tuple):
        found = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in eps]
        count = found[0][0] if count is None and found and isinstance(eps[0], Tensor) and eps[0].dim() else count
    if found != [(count, *shape) for shape in shapes]:
        wanted = ", ".join(f"({', '.join(map(str, ('B', *shape)))})" for shape in shapes)
        of = "" if count is None else f" with B = {count}"
        raise UserError(f"eps: expected noise of the shapes [{wanted}]{of}, found {found}")
