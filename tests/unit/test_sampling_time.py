"""The record of how long samples took, and the figure made of it."""

import hashlib
import json

import numpy as np
import pytest
import yaml
from networks import NETWORK

from vaebm.evaluation import sampling_time
from vaebm.nvae.model import NVAE
from vaebm.records.results import Measurement
from vaebm.samples import run
from vaebm.system.checkpoint import save_model
from vaebm.system.device import seeded
from vaebm.system.errors import UserError


def record(path, **changes):
    """Write the record of a shard."""
    path.with_suffix(".json").write_text(
        json.dumps({"images": 30, "seconds": 2.0, "steps": 16, "batch": 10, "device": "A", "threads": 2} | changes)
    )
    return path


def test_the_stage_keeps_its_time_beside_its_samples(tmp_path):
    """The record has images, batch, steps and device of its shard; the samples do not depend on it."""
    with seeded(0):
        nvae = NVAE(NETWORK, (1, 8, 8))
    save_model(tmp_path / "nvae.pt", "nvae", NETWORK.model_dump(), nvae.state_dict(), shape=[1, 8, 8])
    settings = {"count": 7, "batch": 2, "shards": 2, "chain": {"steps": 0, "step_size": 1.0}}
    (tmp_path / "samples.yaml").write_text(yaml.safe_dump({"seed": 0, "samples": settings}))
    shards = [tmp_path / "shard-000.npy", tmp_path / "shard-001.npy"]
    for number, shard in enumerate(shards):
        run(tmp_path / "samples.yaml", tmp_path / "nvae.pt", None, number, shard, threads=1, gpus=0)
        found = json.loads(shard.with_suffix(".json").read_text())
        assert found.pop("seconds") > 0 and found.pop("device")
        assert found.pop("sha256") == hashlib.sha256(shard.read_bytes()).hexdigest()
        assert found.pop("origin").keys() == {"nvae", "settings", "indices"}
        assert found == {"images": len(np.load(shard)), "steps": 0, "batch": 2, "precision": "float32", "threads": 1}
    before = shards[0].read_bytes()
    shards[0].with_suffix(".json").unlink()
    run(tmp_path / "samples.yaml", tmp_path / "nvae.pt", None, 0, shards[0], threads=1, gpus=0)
    assert shards[0].read_bytes() == before
    assert sampling_time.measure_sampling_time(shards)["seconds-per-50"].samples == 7


def test_seconds_are_for_50_images_on_the_device_that_is_named(tmp_path):
    shards = [record(tmp_path / "shard-000.npy"), record(tmp_path / "shard-001.npy", images=10, seconds=1.0)]
    assert sampling_time.measure_sampling_time(shards) == {
        "seconds-per-50": Measurement(value=3.75, samples=40, unit="seconds on A, 2 thread(s), 10 images at once")
    }
    record(shards[1], device="B", threads=None)
    assert (
        sampling_time.measure_sampling_time(shards)["seconds-per-50"].unit
        == "seconds on A, 2 thread(s), 10 images at once and seconds on B, 10 images at once"
    )
    record(shards[1], precision="bfloat16")
    assert sampling_time.measure_sampling_time(shards)["seconds-per-50"].unit.endswith(
        " and seconds on A, 2 thread(s), 10 images at once, bfloat16"
    )


def test_samples_without_a_record_have_no_figure_and_a_damaged_one_is_refused(tmp_path):
    shards = [record(tmp_path / "shard-000.npy"), tmp_path / "shard-001.npy"]
    assert sampling_time.measure_sampling_time(shards) == {}
    for damaged, found in (("{", "a damaged file"), ("[]", "a damaged file"), ('{"images": 3}', "none of its batch, ")):
        shards[1].with_suffix(".json").write_text(damaged)
        with pytest.raises(
            UserError, match=f"shard-001.json: expected the record of how long a shard took, found {found}"
        ):
            sampling_time.measure_sampling_time(shards)
    record(shards[1], seconds="2.0")
    with pytest.raises(UserError, match="shard-001.json: seconds: Input should be a valid number, found '2.0'; remove"):
        sampling_time.measure_sampling_time(shards)
