"""Stage `samples`: decoder means after the test chain, in shards (VAEBM section 3.2)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from vaebm.config import SamplesSettings
from vaebm.config.yaml_files import read_settings
from vaebm.model import VAEBM, sample_noise
from vaebm.system.device import Progress, device_name, prepare
from vaebm.system.errors import UserError
from vaebm.system.files import write_json, writing
from vaebm.system.precision import set_precision


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] as grey levels (B, H, W, C) uint8, to the nearest."""
    return images.mul(255.0).round_().to(torch.uint8).permute(0, 2, 3, 1)


def stretched(images: Tensor) -> Tensor:
    """Each of the images (B, C, H, W), of any range, moved and scaled so that its darkest value is 0 and its brightest 1; in one go for all colours.

    The published program writes its samples so, which changes their contrast, each one's in another way.
    """
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-5)  # an image of one colour becomes black


def grey_levels(means: Tensor, stretch: bool) -> Tensor:
    """Decoder means (B, C, H, W), which may leave [0, 1], as samples are kept: (B, H, W, C) uint8, clamped or each one stretched."""
    return to_uint8(stretched(means) if stretch else means.clamp(0.0, 1.0))


def begin_array(stream: IO[bytes], shape: tuple[int, ...]) -> None:
    """Write what stands before the bytes of an .npy file of uint8 in `shape`, so that they can follow batch by batch."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def run(settings: Path, nvae: Path, energy: Path | None, shard: int, output: Path, *, threads: int, gpus: int) -> None:
    """Draw shard `shard` of the samples: `output` holds (n, H, W, C) uint8, and a .json beside it how long that took and on what.

    Image k depends on the seed and on k alone; the shards are whole batches, so their number changes no bit. The record is no output
    that Snakemake knows of: samples without one are as good.
    Every batch goes into the file when it is there: memory does not grow with the number of images.

    Args:
        settings: samples.yaml.
        nvae: model of the NVAE.
        energy: model of the energy, None for the NVAE alone.

    Raises:
        UserError: there is no such shard, or a model is missing.
    """
    device = prepare(threads, gpus)
    seed, stage = read_settings(settings, SamplesSettings)
    set_precision(stage.precision, device, f"{settings}: samples.precision")
    if shard >= stage.shards:
        raise UserError(
            f"{settings}: samples.shards: expected more than {shard}, the shard asked for, found {stage.shards}"
        )
    model = VAEBM.load(nvae, energy, device)
    model.follow(stage)
    index = stage.shard(shard)
    progress = Progress(f"samples, shard {shard}", len(index), unit="image")
    began = time.monotonic()
    with writing(output) as stream:
        for first in range(index.start, index.stop, stage.batch):
            chunk = range(first, min(first + stage.batch, index.stop))
            images = grey_levels(model.means(sample_noise(seed, chunk)), stage.stretch)
            if first == index.start:
                begin_array(stream, (len(index), *images.shape[1:]))
            stream.write(images.contiguous().cpu().numpy().tobytes())
            progress.advance({"images/s": (chunk.stop - index.start) / (time.monotonic() - began)}, steps=len(chunk))
    seconds = time.monotonic() - began
    progress.close()
    used = {
        "batch": stage.batch,
        "precision": stage.precision,
        "device": device_name(device),
        "threads": threads if device.type == "cpu" else None,
    }
    write_json(
        output.with_suffix(".json"), {"images": len(index), "seconds": seconds, "steps": stage.chain.steps, **used}
    )
