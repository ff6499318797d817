"""A DVC remote on S3: the same bytes in another clone; down and refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from servers import BUCKET, KEYS, checking_s3, free_port

KEPT = ("data", "results/benchmarks.csv", "results/benchmarks.json")


@pytest.fixture
def remote(finished, tmp_path) -> Iterator[SimpleNamespace]:
    """A finished run and another clone of it, with a remote on an S3 server that checks keys."""
    with checking_s3() as (address, keys):
        run = finished.run
        run("dvc", "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
        run("dvc", "remote", "modify", "store", "endpointurl", address)
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", "a remote")
        run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
        yield SimpleNamespace(here=finished, clone=type(finished)(tmp_path / "clone"), address=address, keys=keys)


def contents(project) -> dict[str, bytes]:
    """Path → bytes of what DVC keeps."""
    found = [project.folder / name for name in KEPT]
    files = [file for path in found for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(project.folder)): file.read_bytes() for file in files}


def test_another_clone_has_the_same_bytes_whatever_failed_before(remote):
    """Down or refused, push and pull end with one line, and change nothing; then they work."""
    before = contents(remote.here)
    nowhere = f"http://127.0.0.1:{free_port()}"
    keyless = {name: value for name, value in KEYS.items() if "ACCESS" not in name}
    failures = (
        (nowhere, remote.keys, "Could not connect to the endpoint URL"),
        (remote.address, KEYS, "Forbidden"),
        (remote.address, keyless, "Unable to locate credentials"),
    )
    for address, keys, problem in failures:
        remote.here.run("dvc", "remote", "modify", "store", "endpointurl", address)
        printed = remote.here.run("dvc", "push", fails=True, AWS_MAX_ATTEMPTS="1", **keys)
        (line,) = [line for line in printed.splitlines() if line.startswith("ERROR")]
        assert problem in line and contents(remote.here) == before
    remote.here.run("git", "checkout", "--quiet", ".dvc/config")
    remote.here.run("dvc", "push", **remote.keys)

    printed = remote.clone.run("dvc", "pull", fails=True, AWS_MAX_ATTEMPTS="1", **keyless)
    assert "Unable to locate credentials" in printed
    remote.clone.run("dvc", "pull", **remote.keys)
    assert contents(remote.clone) == before
    shutil.rmtree(remote.here.folder / "data")
    remote.here.run("dvc", "pull", **remote.keys)
    assert contents(remote.here) == before and remote.here.planned() == {}
