"""Grids of images. The files contain no times and no paths: equal images give equal bytes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vaebm.system.files import writing

TILE = 40
"""Minimum size in pixels of an enlarged small image."""

BACKGROUND = 214
"""Grey level between the images of a grid."""


def tile(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """Arrange images in a grid, row by row, enlarged by a whole factor (nearest neighbour).

    Args:
        images: (N, C, H, W), clamped to [0, 1], one channel or three.
        columns: images per row.

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
    """Write a grid of images (N, C, H, W) in [0, 1] as PNG (see `tile`)."""
    with writing(path) as stream:
        Image.fromarray(tile(images, columns)).save(stream, format="png", optimize=True)


def chain_strip(steps: Sequence[Tensor], path: Path) -> None:
    """Write chains as PNG: one chain per row, one step per column, the start first.

    Args:
        steps: images (N, C, H, W) in [0, 1] after each step, the start first.
    """
    count, chains = len(steps), len(steps[0])
    image_grid(torch.stack(list(steps), dim=1).reshape(chains * count, *steps[0].shape[1:]), path, columns=count)
