"""Grids of images. The files contain no times and no paths: equal images give equal bytes."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vaebm.system.files import writing

TILE = 40
"""Minimum size in pixels of an enlarged small image."""

BACKGROUND = 214
"""Grey level between the images of a grid."""


def image_grid(images: Tensor, path: Path, columns: int = 16) -> None:
    """Write images (N, C, H, W), clamped to [0, 1], row by row as PNG.

    They have one channel or three, and are enlarged by a whole factor (nearest neighbour).
    """
    count, channels, *size = images.shape
    levels = (images.detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    if channels == 1:
        levels = levels.repeat(3, axis=1)
    factor, columns = max(1, -(-TILE // max(size))), min(columns, count)
    levels = levels.repeat(factor, axis=2).repeat(factor, axis=3)
    gap = max(2, factor // 2)
    cells = np.pad(levels, ((0, -count % columns), (0, 0), (0, gap), (0, gap)), constant_values=BACKGROUND)
    _, _, height, width = cells.shape
    canvas = cells.reshape(-1, columns, 3, height, width).transpose(0, 3, 1, 4, 2).reshape(-1, columns * width, 3)
    framed = np.pad(canvas, ((gap, 0), (gap, 0), (0, 0)), constant_values=BACKGROUND)
    with writing(path) as stream:
        Image.fromarray(framed).save(stream, format="png")
