"""What the tests of a user's own pictures share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 8


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


GREY = noise(1, SIDE, SIDE)
COLOUR = noise(2, SIDE, SIDE, 3)
