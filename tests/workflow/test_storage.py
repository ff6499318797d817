"""The pipeline without a shared file system: files travel through a storage, which may be away, refuse, or be slow."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import boto3
import pytest
from gate import Gate
from servers import BUCKET, checking_s3
from tables import table

pytestmark = pytest.mark.remote
S3 = ("--default-storage-provider", "s3", "--default-storage-prefix", f"s3://{BUCKET}", "--storage-s3-retries", "1")
PICTURE = "data:image/png"
DATA = "data/digits/manifest.json"


@pytest.fixture
def tiny(clone):
    """A clone with the experiment `tiny` as its default."""
    clone.edit("config/config.yaml", "  - digits\n  - stacked_digits\n", "  - tiny\n")
    return clone


@pytest.fixture
def s3():
    """Gate and environment of a local S3."""
    with checking_s3() as (address, keys):
        gate = Gate(int(address.rpartition(":")[2]))
        yield (
            gate,
            {
                "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": f"http://127.0.0.1:{gate.port}",
                "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": keys["AWS_ACCESS_KEY_ID"],
                "SNAKEMAKE_STORAGE_S3_SECRET_KEY": keys["AWS_SECRET_ACCESS_KEY"],
            },
        )


def same_results(results, local):
    """The table and the number of pictures in the report are those of a local run."""
    assert table(results) == table(local)
    assert (
        (results / "report.html").read_text().count(PICTURE) == (local / "report.html").read_text().count(PICTURE) > 10
    )


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync: apt-get install rsync")
def test_jobs_in_folders_of_their_own_end_in_the_same_table(tiny, tiny_run, tmp_path):
    """Each job finds in its new folder what its rule declares, and nothing else. Trainings say that they restart."""
    (storage := tmp_path / "storage").mkdir()
    provider = ("--default-storage-provider", "fs", "--default-storage-prefix", str(storage))
    command = ("--executor", "folders", "--jobs", "2", "--seconds-between-status-checks", "1", *provider)
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent / "shared")}  # the executor
    tiny.run("snakemake", *command, **environment)
    results = storage / "results"
    same_results(results, tiny_run.folder / "results")
    assert not list(tiny.folder.glob("results/**/*.safetensors")) and len(list(tmp_path.glob("jobs/*"))) == 11
    assert "nvae: begins at step 0: checkpoints stay" in (results / "tiny" / "nvae" / "seed0" / "nvae.log").read_text()
    assert "Nothing to be done" in tiny.run("snakemake", *command, "--dry-run", **environment)
    tiny.edit("config/experiments/tiny.yaml", "iterations: 20", "iterations: 21")
    planned = re.findall(r"^(\w+) +\d+$", tiny.run("snakemake", *command, "--dry-run", **environment), re.MULTILINE)
    assert {*planned} == {"stored_settings", "ebm", "samples", "evaluation", "benchmarks", "all", "total"}


def test_s3_that_is_away_in_a_run_loses_nothing(tiny, tiny_run, s3, tmp_path):
    """The same command finishes what the storage has not yet, and nothing that it has is computed again."""
    gate, environment = s3
    command = ["snakemake", "--cores", "2", *S3]
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
    endpoint, key, secret = environment.values()
    storage = boto3.resource("s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret)
    for name in ("benchmarks.csv", "report.html"):
        storage.Bucket(BUCKET).download_file(f"results/{name}", str(tmp_path / name))
    same_results(tmp_path, tiny_run.folder / "results")


def test_s3_that_is_down_refuses_or_is_slow(tiny, s3):
    """The run ends with the reason in one line; the same command finishes when the storage is back."""
    gate, environment = s3
    command = ("snakemake", DATA, "--cores", "2", *S3)
    refused = tiny.run(*command, fails=True, **environment | {"SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "wrong"})
    assert f"s3://{BUCKET}: expected a storage that answers, found An error occurred (403)" in refused
    gate.close()
    down = tiny.run(*command, fails=True, **environment)
    assert f"s3://{BUCKET}: expected a storage that answers, found Could not connect to the endpoint URL" in down
    assert all(printed.count("\n") < 5 for printed in (refused, down))
    gate.open()
    gate.delay = 0.2
    tiny.run(*command, **environment)
    assert "Nothing to be done" in tiny.run(*command, "--dry-run", **environment)
