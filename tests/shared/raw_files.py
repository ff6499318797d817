"""What the tests of the published data sets share: pictures and arrays of chance, and their preparation."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vaebm.system.torchvision_shim  # noqa: F401  before torchvision
from vaebm import config
from vaebm.config import DataSettings
from vaebm.data import open_images, prepare

RANDOM = np.random.RandomState(0)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.randint(0, 256, shape).astype(np.uint8)


def photo(width: int, height: int) -> Image.Image:
    """Smooth enough for a JPEG to hold."""
    return Image.fromarray(noise(6, 5, 3)).resize((width, height), Image.Resampling.BICUBIC)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def prepared(dataset: str, raw: Path, threads: int = 2):
    folder = raw.parent / "prepared"
    prepare(DataSettings(dataset=dataset, path=str(raw)), folder, threads)
    return open_images(folder / "manifest.json")


def facts(monkeypatch: pytest.MonkeyPatch, dataset: str, **counts: int) -> None:
    """The small files have other counts than the published ones."""
    monkeypatch.setitem(config.DATASETS, dataset, config.DATASETS[dataset]._replace(**counts))
