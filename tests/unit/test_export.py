"""Export: the files have the pixels of the samples and of the training images, and a target is never mixed."""

import re

import numpy as np
import pytest
from PIL import Image

from vaebm.cli import export
from vaebm.data import write_images
from vaebm.system.errors import UserError

SETTINGS = "seed: 0\nsamples:\n  count: 5\n  batch: 3\n  shards: 2\n  chain:\n    steps: 1\n    step_size: 1.0\n"


@pytest.fixture(params=[1, 3])
def images(request, tmp_path):
    """Five samples in two shards, and the same five as training images."""
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, request.param), dtype=np.uint8)
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "samples.yaml").write_text(SETTINGS)
    for shard, part in enumerate((images[:3], images[3:])):
        np.save(samples / f"shard-{shard:03}.npy", part)
    splits = {"train": (0, 5), "heldout": (5, 6)}
    write_images(tmp_path / "data", "mine", np.concatenate([images, images[:1]]), np.zeros(6, np.int64), splits, {})
    return images


@pytest.mark.parametrize("real", [False, True])
def test_pngs_in_order_and_npz_have_the_same_pixels(images, tmp_path, real):
    source = {"places": [] if real else [tmp_path / "samples"], "real": tmp_path / "data" if real else None}
    export.run([*source["places"], tmp_path / "out" / "pngs"], source["real"], None, 2)
    written = sorted((tmp_path / "out" / "pngs").iterdir())
    assert [path.name for path in written] == [f"00000{index}.png" for index in range(5)]
    assert np.array_equal(np.stack([np.asarray(Image.open(path)) for path in written]), images.squeeze())
    export.run(source["places"], source["real"], tmp_path / "out.npz", 1)
    assert np.array_equal(np.load(tmp_path / "out.npz")["arr_0"], images)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pngs"]


@pytest.mark.parametrize(
    ("places", "npz", "message"),
    [
        (["samples"], None, "expected SAMPLES and FOLDER, found 1 places"),
        (["samples", "pngs"], "out.npz", "expected SAMPLES, found 2 places"),
        (["data", "pngs"], None, "found no shard-*.npy in it"),
        (["samples", "data"], None, "expected no folder, or an empty one"),
        (["samples", "data/manifest.json"], None, "expected no folder, or an empty one"),
    ],
)
def test_other_places_are_one_line(images, tmp_path, places, npz, message):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=re.escape(message)):
        export.run([tmp_path / place for place in places], None, npz and tmp_path / npz, 1)
    assert sorted(tmp_path.rglob("*")) == before
