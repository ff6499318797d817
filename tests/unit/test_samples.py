"""Stage `samples`: the grey levels of its images, the file of a shard, and what is in memory while it grows."""

from __future__ import annotations

import gc
import io
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import ENERGY, NETWORK
from PIL import Image
from torch import Tensor

import vaebm.system.torchvision_shim  # noqa: F401  before torchvision
from vaebm import samples
from vaebm.config.ebm import ChainSettings
from vaebm.energy.network import EnergyNetwork
from vaebm.model import VAEBM, sample_noise
from vaebm.nvae.model import NVAE
from vaebm.samples import grey_levels
from vaebm.system.checkpoint import save_model
from vaebm.system.device import seeded
from vaebm.system.errors import UserError
from vaebm.system.precision import float32_precision, set_tf32

# isort: split
from torchvision.utils import save_image

MEANS = (
    torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    * torch.tensor([0.01, 0.1, 0.3, 1.0, 3.0]).view(5, 1, 1, 1)
    + 0.5
)
"""Of little contrast and of much, the last ones outside of [0, 1]."""


def test_stretched_images_are_what_torchvision_writes() -> None:
    """save_image(normalize=True), an image a file; it adds ½ and cuts, here the nearest level is taken: both differ in
    ties alone.
    """
    for image, found in zip(MEANS, grey_levels(MEANS, stretch=True), strict=True):
        file = io.BytesIO()
        save_image(image, file, format="png", normalize=True)
        assert np.array_equal(np.asarray(Image.open(file)), found.numpy())
        assert found.min() == 0 and found.max() == 255


def test_a_stretch_is_one_for_all_colours() -> None:
    """Hue survives it; an image of one grey level becomes black, as torchvision's does."""
    image = torch.tensor([0.2, 0.3, 0.6]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert grey_levels(image, stretch=True)[0, 0, 0].tolist() == [0, 64, 255]
    assert not grey_levels(torch.full((2, 1, 4, 4), 0.7), stretch=True).any()


def test_else_means_are_clamped_and_nothing_more() -> None:
    found = grey_levels(MEANS, stretch=False)
    assert found.shape == (5, 8, 8, 3) and found.dtype == torch.uint8
    expected = np.rint(np.clip(MEANS.numpy(), 0, 1) * 255).transpose(0, 2, 3, 1)
    assert np.abs(found.numpy().astype(int) - expected).max() == 0


SETTINGS = "seed: 3\nsamples:\n  count: 22\n  batch: 4\n  shards: 2\n  chain:\n    steps: 2\n    step_size: 0.01\n"
"""Six batches, the last one of two images."""


@pytest.fixture
def stage(tmp_path: Path) -> dict[str, Path]:
    """Arguments of the stage: two small models in colour and the settings."""
    with seeded(0):
        nvae, energy = NVAE(NETWORK, (3, 8, 8)), EnergyNetwork(ENERGY, 3)
    energy.initialize(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    paths = {"settings": tmp_path / "samples.yaml", "nvae": tmp_path / "nvae.pt", "energy": tmp_path / "energy.pt"}
    paths["settings"].write_text(SETTINGS)
    save_model(paths["nvae"], "nvae", NETWORK.model_dump(), nvae.state_dict(), shape=[3, 8, 8])
    save_model(
        paths["energy"],
        "energy",
        ENERGY.model_dump(),
        energy.state_dict(),
        shape=[3, 8, 8],
        potential="noise",
        start="prior",
    )
    return paths


@pytest.mark.parametrize(("shard", "indices"), [(0, range(12)), (1, range(12, 22))])
def test_file_is_what_numpy_writes_of_all_images_at_once(
    stage: dict[str, Path], tmp_path: Path, shard: int, indices: range
) -> None:
    """Every byte, header included: batches one after the other, the last one incomplete."""
    samples.run(**stage, shard=shard, output=tmp_path / "shard.npy", threads=1, gpus=0)
    model = VAEBM.load(stage["nvae"], stage["energy"])
    batches = [range(first, min(first + 4, indices.stop)) for first in range(indices.start, indices.stop, 4)]
    chain = ChainSettings(steps=2, step_size=0.01)
    images = torch.cat(
        [samples.quantize_to_uint8(model.sample_batch(sample_noise(3, batch), chain)) for batch in batches]
    )
    expected = io.BytesIO()
    np.save(expected, np.ascontiguousarray(images.numpy()))
    assert (tmp_path / "shard.npy").read_bytes() == expected.getvalue()


def test_chains_that_leave_the_finite_numbers_stop_the_stage(stage: dict[str, Path], tmp_path: Path) -> None:
    """ε is about 1e30 after the first step and overflows in the second; nothing is written in place of images."""
    stage["settings"].write_text(SETTINGS.replace("step_size: 0.01", "step_size: 1.0e+30"))
    with pytest.raises(UserError, match=r"samples.chain: .* 4 of 4 that are not, the first after step 2; .*step_size"):
        samples.run(**stage, shard=0, output=tmp_path / "shard.npy", threads=1, gpus=0)
    assert not list(tmp_path.glob("shard*"))


def test_rounded_chains_are_asked_for_by_the_settings(stage: dict[str, Path], tmp_path: Path) -> None:
    """`bfloat16` moves chains so; `tf32` concerns GPUs, and is for them alone."""
    drawn = {}
    for precision in ("float32", "tf32", "bfloat16"):
        stage["settings"].write_text(
            SETTINGS.replace("  chain:", f"  precision: {precision}\n  chain:").replace("0.01", "1.0")
        )
        samples.run(**stage, shard=0, output=tmp_path / "shard.npy", threads=1, gpus=0)
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision != "float32")
        assert float32_precision()[1] == ("none" if precision == "float32" else "tf32")
        drawn[precision] = np.load(tmp_path / "shard.npy")
    set_tf32(False)
    assert np.array_equal(drawn["float32"], drawn["tf32"]) and not np.array_equal(drawn["float32"], drawn["bfloat16"])
    model = VAEBM.load(stage["nvae"], stage["energy"])
    model.chain_dtype = torch.bfloat16
    assert np.array_equal(
        drawn["bfloat16"][:4],
        samples.quantize_to_uint8(
            model.sample_batch(sample_noise(3, range(4)), ChainSettings(steps=2, step_size=1.0))
        ).numpy(),
    )


def test_one_batch_is_in_memory_at_a_time(
    stage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a batch is drawn, no images are left of any before the last one; the file is begun with the first."""
    alive: list[weakref.ref[Tensor]] = []
    counts, files = [], []
    images = VAEBM.sample_means

    def counted(model: VAEBM, *arguments: Any, **more: Any) -> Tensor:
        gc.collect()
        counts.append(sum(one() is not None for one in alive))
        drawn = images(model, *arguments, **more)
        alive.append(weakref.ref(drawn))
        return drawn

    def grey(drawn: Tensor, stretch: bool) -> Tensor:
        made = grey_levels(drawn, stretch)
        alive.append(weakref.ref(made))
        files.append(len(list(tmp_path.glob(".shard.npy.*.tmp"))))
        return made

    monkeypatch.setattr(VAEBM, "sample_means", counted)
    monkeypatch.setattr(samples, "grey_levels", grey)
    samples.run(**stage, shard=0, output=tmp_path / "shard.npy", threads=1, gpus=0)
    assert len(counts) == 3 and max(counts) <= 1
    assert files == [1, 1, 1]


def test_an_interrupted_shard_leaves_no_file(
    stage: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file under the right name would be taken for a whole one."""
    images, drawn = VAEBM.sample_means, []

    def fails(model: VAEBM, *arguments: Any, **more: Any) -> Tensor:
        drawn.append(1)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return images(model, *arguments, **more)

    monkeypatch.setattr(VAEBM, "sample_means", fails)
    with pytest.raises(KeyboardInterrupt):
        samples.run(**stage, shard=0, output=tmp_path / "shard.npy", threads=1, gpus=0)
    assert len(drawn) == 2 and not list(tmp_path.glob("*shard*"))
