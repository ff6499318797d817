"""Images of a run or of a data set as files that other programs read: numbered PNGs, or one .npz."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaebm.config import SamplesSettings
from vaebm.config.yaml_files import read_settings
from vaebm.data import open_images
from vaebm.evaluation.inputs import read_samples
from vaebm.system.errors import UserError
from vaebm.system.files import found_at, writing


def read_source(source: Path, real: bool) -> NDArray[np.uint8]:
    """Images (N, H, W, C) uint8 of a folder of samples, or the training images of a prepared data set.

    Raises:
        UserError: `source` is no such folder, or a file in it is missing or damaged.
    """
    if real:
        return open_images(source / "manifest.json").view("train")
    if not (shards := sorted(source.glob("shard-*.npy"))):
        raise UserError(
            f"{source}: expected a folder of samples (results/EXPERIMENT/VARIANT/seedK/samples), found no shard-*.npy "
            "in it; Snakemake or `vaebm samples` makes them"
        )
    samples = read_samples(shards, None, read_settings(source / "samples.yaml", SamplesSettings)[1].count)
    return samples.permute(0, 2, 3, 1).contiguous().numpy()


def write_pngs(images: NDArray[np.uint8], folder: Path, threads: int) -> None:
    """Write images (N, H, W, C) as 000000.png, 000001.png, … to a new folder, which appears whole or not at all.

    Raises:
        UserError: `folder` exists and is not empty, or cannot be written.
    """
    if found_at(folder) != "none" and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: expected no folder, or an empty one, found others' files there; choose another")
    form = images[..., 0] if images.shape[-1] == 1 else images
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        parts = Path(temporary, folder.name)
        parts.mkdir()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda index: Image.fromarray(form[index]).save(parts / f"{index:06}.png"), range(len(form))))
        parts.replace(folder)


def run(places: Sequence[Path], real: Path | None, npz: Path | None, threads: int) -> None:
    """Export images.

    Args:
        places: folder of the samples unless `real` is given, then the folder to write unless `npz` is given.
        real: prepared data set whose training images are exported; None: the samples.
        npz: file to write instead of a folder of PNGs.
        threads: images written at once.

    Raises:
        UserError: other places, no images there, or a target that exists or cannot be written.
    """
    wanted = [*(["SAMPLES"] if real is None else []), *(["FOLDER"] if npz is None else [])]
    if len(places) != len(wanted):
        raise UserError(
            f"export: expected {' and '.join(wanted) or 'no further place'}, found {len(places)} places; "
            "docs/how-to/share.md has examples"
        )
    images = read_source(real or places[0], real is not None)
    if npz is None:
        write_pngs(images, places[-1], threads)
    else:
        with writing(npz) as stream:
            np.savez(stream, images)  # as the array `arr_0`, the layout of common evaluators
    print(f"{npz or places[-1]}: {len(images):,} images {'×'.join(map(str, images.shape[1:]))}")
