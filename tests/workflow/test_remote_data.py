"""A DVC remote on S3: the same bytes in another clone; down, refused and slow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from gate import Gate
from servers import BUCKET, KEYS, checking_s3

pytestmark = pytest.mark.remote
KEPT = ("data", "results/benchmarks.csv", "results/benchmarks.json")


@pytest.fixture
def remote(finished, tmp_path) -> Iterator[SimpleNamespace]:
    """A finished run and another clone of it, with a remote on an S3 server that checks keys."""
    with checking_s3() as (address, keys):
        run, gate = finished.run, Gate(int(address.rpartition(":")[2]))
        run("dvc", "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
        run("dvc", "remote", "modify", "store", "endpointurl", f"http://127.0.0.1:{gate.port}")
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", "a remote")
        run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
        yield SimpleNamespace(here=finished, clone=type(finished)(tmp_path / "clone"), gate=gate, keys=keys)


def contents(project) -> dict[str, bytes]:
    """Path → bytes of what DVC keeps."""
    found = [project.folder / name for name in KEPT]
    files = [file for path in found for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(project.folder)): file.read_bytes() for file in files}


def test_another_clone_has_the_same_bytes_whatever_failed_before(remote):
    """Down or refused, push and pull end with one line, and change nothing; then they work, also slowly."""
    before = contents(remote.here)
    keyless = {name: value for name, value in KEYS.items() if "ACCESS" not in name}

    def is_refused(keys, problem):
        printed = remote.here.run("dvc", "push", fails=True, AWS_MAX_ATTEMPTS="1", **keys)
        (line,) = [line for line in printed.splitlines() if line.startswith("ERROR")]
        return problem in line and contents(remote.here) == before

    remote.gate.close()
    assert is_refused(remote.keys, "Could not connect to the endpoint URL")
    remote.gate.open()
    assert is_refused(KEYS, "Forbidden") and is_refused(keyless, "Unable to locate credentials")
    remote.here.run("dvc", "push", **remote.keys)

    printed = remote.clone.run("dvc", "pull", fails=True, AWS_MAX_ATTEMPTS="1", **keyless)
    assert "Unable to locate credentials" in printed
    remote.gate.delay = 0.1
    remote.clone.run("dvc", "pull", **remote.keys)
    assert contents(remote.clone) == before
    shutil.rmtree(remote.here.folder / "data")
    remote.here.run("dvc", "pull", **remote.keys)
    assert contents(remote.here) == before and remote.here.planned() == {}
