"""The pipeline without a shared file system: files travel through a storage, which may be away, refuse, or be slow."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from s3_server import s3_server
from tables import table

S3 = ("--default-storage-provider", "s3", "--default-storage-prefix", "s3://results", "--storage-s3-retries", "1")
DATA = "data/digits/manifest.json"


@pytest.fixture
def tiny(clone):
    """A clone with the experiment `tiny` as its default."""
    clone.edit("config/config.yaml", "  - digits\n  - stacked_digits\n", "  - tiny\n")
    return clone


@pytest.fixture
def s3():
    """Gate and environment of a local S3."""
    with s3_server() as server:
        yield server


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync: apt-get install rsync")
def test_jobs_in_folders_of_their_own_end_in_the_same_table(tiny, tiny_run, tmp_path):
    """Each job finds in its new folder what its rule declares, and nothing else. Trainings say that they cannot resume."""
    (storage := tmp_path / "storage").mkdir()
    plug_ins = os.pathsep.join(["tests/shared", *filter(None, [os.environ.get("PYTHONPATH")])])
    provider = ("--default-storage-provider", "fs", "--default-storage-prefix", str(storage))
    command = ("--executor", "folders", "--jobs", "2", "--seconds-between-status-checks", "1", *provider)
    shared = str(Path(__file__).parent.parent / "shared")
    environment = {"PYTHONPATH": os.pathsep.join([shared, *filter(None, [os.environ.get("PYTHONPATH")])])}
    tiny.run("snakemake", *command, **environment)
    results = storage / "results"
    assert table(results) == table(tiny_run.folder / "results")
    assert not list(tiny.folder.glob("results/**/*.safetensors")) and len(list(tmp_path.glob("jobs/*"))) == 11
    assert (
        "nvae: begins at step 0: checkpoints stay on this machine" in (results / "tiny/nvae/seed0/nvae.log").read_text()
    )
    assert "Nothing to be done" in tiny.run("snakemake", *command, "--dry-run", **environment)


def test_s3_that_is_away_in_a_run_loses_nothing(tiny, tiny_run, s3):
    """The same command finishes what the storage has not yet, and nothing that it has is computed again."""
    gate, environment = s3
    command = ["snakemake", "--cores", "2", *S3]
    print(tiny.folder)
    with (tiny.folder / "printed").open("wb") as printed:
        run = subprocess.Popen(
            command, cwd=tiny.folder, env=tiny.environment() | environment, stdout=printed, stderr=printed
        )
        while b"rule ebm:" not in (text := (tiny.folder / "printed").read_bytes()):
            assert run.poll() is None, text.decode()
            time.sleep(0.1)
        gate.close()
        assert run.wait() != 0
    assert "Could not connect to the endpoint URL" in (tiny.folder / "printed").read_text()
    gate.open()
    again = tiny.run(*command, **environment)
    assert "rule ebm:" in again and "rule nvae:" not in again
    copied = tiny.run("python", "-c", COPY, **environment)
    assert "results/benchmarks.csv" in copied
    assert table(tiny.folder / "copied" / "results") == table(tiny_run.folder / "results")


COPY = """
import os, pathlib, boto3
bucket = boto3.resource("s3", endpoint_url=os.environ["SNAKEMAKE_STORAGE_S3_ENDPOINT_URL"]).Bucket("results")
for one in bucket.objects.all():
    path = pathlib.Path("copied", one.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    bucket.download_file(one.key, str(path))
    print(path)
"""


def test_s3_that_is_down_refuses_or_is_slow(tiny, s3):
    """The run ends with the reason and leaves no settings behind; the same command finishes when the storage is back."""
    gate, environment = s3
    command = ("snakemake", DATA, "--cores", "2", *S3)
    refused = tiny.run(*command, fails=True, **environment | {"AWS_ACCESS_KEY_ID": "wrong"})
    assert "s3://results: expected a storage that answers, found An error occurred (403)" in refused
    gate.close()
    down = tiny.run(*command, fails=True, **environment)
    assert "s3://results: expected a storage that answers, found Could not connect to the endpoint URL" in down
    assert all(printed.count("\n") < 5 for printed in (refused, down))
    gate.open()
    gate.delay = 0.2
    tiny.run(*command, **environment)
    assert "Nothing to be done" in tiny.run(*command, "--dry-run", **environment)
