"""Stage `samples`: decoder means after the test chain, in shards (VAEBM section 3.2)."""

import hashlib
import io
import time
from pathlib import Path

import numpy as np
import torch

from vaebm.config import SamplesSettings, fingerprint
from vaebm.config.yaml_files import read_settings
from vaebm.fast import run_chain
from vaebm.model import VAEBM, sample_noise
from vaebm.noise import NoiseSource, batches
from vaebm.records.files import write_record
from vaebm.records.results import ShardRecord
from vaebm.system.checkpoint import load_model
from vaebm.system.device import Progress, device_name, setup_device
from vaebm.system.errors import UserError
from vaebm.system.files import writing
from vaebm.system.precision import set_precision
from vaebm.system.shapes import GreyPixels, Images


def quantize_to_uint8(images: Images) -> GreyPixels:
    """Round images (B, C, H, W) in [0, 1] to grey levels (B, H, W, C) uint8."""
    return images.mul(255.0).round_().to(torch.uint8).permute(0, 2, 3, 1)


def stretched(images: Images) -> Images:
    """Map each of the images (B, C, H, W) linearly from its range over all colours to [0, 1].

    The published program writes its samples this way, which changes the contrast of each image differently.
    """
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-5)  # a constant image becomes black


def grey_levels(means: Images, stretch: bool) -> GreyPixels:
    """Convert decoder means (B, C, H, W) of any range to uint8 (B, H, W, C), clamped or `stretched`."""
    return quantize_to_uint8(stretched(means) if stretch else means.clamp(0.0, 1.0))


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Header of an .npy file of uint8, so that its bytes can follow in batches."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream := io.BytesIO(), header)
    return stream.getvalue()


def origin_of(seed: int, stage: SamplesSettings, index: range, models: dict[str, str]) -> dict[str, str]:
    """What determines a shard's images: hashes of the models and of the settings with the seed, and the indices."""
    settings = fingerprint({"seed": seed, "settings": stage.model_dump()})
    return {**models, "settings": settings, "indices": f"{index.start} to {index.stop - 1}"}


def run(
    settings: Path,
    nvae: Path,
    energy: Path | None,
    shard: int,
    output: Path,
    prior: Path | None = None,
    *,
    threads: int,
    gpus: int,
) -> None:
    """Draw one shard of the samples, (n, H, W, C) uint8, batch by batch, and a .json record of time, hash and origin.

    Image k depends only on the seed and k. Shards are whole batches, so their number changes no bit. Snakemake does not
    know of the record, which is optional.

    Args:
        settings: samples.yaml.
        energy: model of the energy; None: the NVAE alone.
        output: .npy file; the record has its name and the suffix .json.
        prior: model of the energy on noise; None: none.

    Raises:
        UserError: the shard does not exist, a model is missing, or a chain leaves the finite numbers.
    """
    device = setup_device(threads, gpus)
    seed, stage = read_settings(settings, SamplesSettings)
    set_precision(stage.precision, device, f"{settings}: samples.precision")
    if shard >= stage.shards:
        raise UserError(
            f"{settings}: samples.shards: expected more than {shard}, the shard asked for, found {stage.shards}"
        )
    model = VAEBM.load(nvae, energy, device, prior)
    model.configure_sampling(stage)
    files = {"nvae": nvae, "energy": energy, "prior": prior}
    models = {kind: load_model(path)["hash"] for kind, path in files.items() if path is not None}
    index = stage.shard(shard)
    progress = Progress(f"samples, shard {shard}", len(index), unit="image")
    began, digest = time.monotonic(), hashlib.sha256()
    with writing(output) as stream:
        for chunk in batches(index, stage.batch):
            images = grey_levels(_finite_means(model, seed, chunk, settings), stage.stretch)
            header = npy_header((len(index), *images.shape[1:])) if chunk.start == index.start else b""
            content = header + images.contiguous().cpu().numpy().tobytes()
            digest.update(content)
            stream.write(content)
            progress.advance({"images/s": (chunk.stop - index.start) / (time.monotonic() - began)}, steps=len(chunk))
    seconds = time.monotonic() - began
    progress.close()
    record = ShardRecord(
        images=len(index), seconds=seconds, steps=stage.chain.steps, batch=stage.batch, precision=stage.precision,
        device=device_name(device), threads=threads if device.type == "cpu" else None,
        sha256=digest.hexdigest(), origin=origin_of(seed, stage, index, models),
    )  # fmt: skip
    write_record(output.with_suffix(".json"), record)


def _finite_means(model: VAEBM, seed: int, index: range, settings: Path) -> Images:
    """`VAEBM.sample_means` of these samples; chains that leave the finite numbers are a UserError."""
    means = model.sample_means(sample_noise(seed, index))
    if diverged := int((~means.isfinite()).flatten(1).any(1).sum()):
        raise UserError(
            f"{settings}: samples.chain: expected finite chains, found {diverged} of {len(index)} that are not, the "
            f"first after step {_first_divergence(model, sample_noise(seed, index))}; choose a smaller step_size"
        )
    return means


def _first_divergence(model: VAEBM, noise: NoiseSource) -> int:
    """Number of steps of the test chain after which the first of these chains is not finite; 0: none is."""
    finite: list[bool] = []
    eps_z, eps_x = model.initial_noise(noise)
    run_chain(
        model.chain_potential(), [*eps_z, eps_x], model.test_chain, noise,
        lambda eps: finite.append(all(bool(part.isfinite().all()) for part in eps)),
    )  # fmt: skip
    return finite.index(False) + 1 if False in finite else 0
