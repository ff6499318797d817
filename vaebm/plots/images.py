"""Grids of images.

A picture is a function of what it shows: no times and no paths are written into the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vaebm.system.files import writing

TILE = 40
"""Pixels that a small image is enlarged to, at least, by whole factors."""

BACKGROUND = 214
"""Grey between the images of a grid, told from black and from white."""


def tile(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """A grid of images, each pixel enlarged by a whole factor (nearest neighbour), read row by row.

    Args:
        images: (N, C, H, W) with values in [0, 1] (others are clamped), one channel or three.
        columns: images in a row.

    Returns:
        (height, width, 3) uint8.
    """
    count, channels, height, width = images.shape
    levels = (images.detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    if channels == 1:
        levels = levels.repeat(3, axis=1)
    factor = max(1, -(-TILE // max(height, width)))
    levels = levels.repeat(factor, axis=2).repeat(factor, axis=3)
    gap = max(2, factor // 2)
    columns = min(columns, count)
    rows = -(-count // columns)
    height, width = height * factor, width * factor
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), BACKGROUND, dtype=np.uint8)
    for index, image in enumerate(levels):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return canvas


def image_grid(images: Tensor, path: Path, columns: int = 16) -> None:
    """Write a grid of images (N, C, H, W) in [0, 1] as PNG, small ones enlarged (see `tile`)."""
    with writing(path) as stream:
        Image.fromarray(tile(images, columns)).save(stream, format="png", optimize=True)


def chain_strip(steps: Sequence[Tensor], path: Path) -> None:
    """Write chains as PNG: one chain a row, one step a column, the first column before the chain.

    Args:
        steps: images (N, C, H, W) in [0, 1] after each step, the start first.
    """
    count, chains = len(steps), len(steps[0])
    image_grid(torch.stack(list(steps), dim=1).reshape(chains * count, *steps[0].shape[1:]), path, columns=count)
