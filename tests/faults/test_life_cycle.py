"""Kills, and damage that they leave, in MLflow's database, in DVC's lock and at the start of a command."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import vaebm

from vaebm import tracking
from vaebm.cli import pin
from vaebm.system.errors import UserError
from vaebm.tracking.mirror import EXPERIMENT_NAME, Mirror
from vaebm.tracking.stages import RegisteredModel

RESULTS = Path("results/tiny")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Function that mirrors an experiment without any stage, and returns its line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    RESULTS.mkdir(parents=True)

    def mirrored() -> str:
        tracking.run(RESULTS)
        (line,) = capsys.readouterr().out.splitlines()
        return line

    return mirrored


def client() -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri="sqlite:///mlflow.db")


def test_database_of_a_killed_first_mirror_is_whole(mirror: Callable[[], str]) -> None:
    command = [sys.executable, "-m", "vaebm", "track", str(RESULTS)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not Path("mlflow.db").exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    assert mirror() == f"{RESULTS}: 0 stage runs mirrored to sqlite:///mlflow.db"


def test_half_a_database_is_one_line(mirror: Callable[[], str]) -> None:
    with sqlite3.connect("mlflow.db") as database:
        database.execute("CREATE TABLE experiments (name TEXT)")
    database.close()
    assert "mlflow.db: expected a whole database of MLflow, found one whose creation was interrupted" in mirror()
    Path("mlflow.db").unlink()
    Path("mlflow.db").touch()
    assert "mirrored to" in mirror()


def test_run_of_a_killed_mirror_is_deleted_by_the_next(
    mirror: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Mirror, "_save", lambda self: signal.raise_signal(signal.SIGINT))
        mirror()
    home = client().get_experiment_by_name(EXPERIMENT_NAME).experiment_id
    (orphan,) = client().search_runs([home])
    mirror()
    (run,) = client().search_runs([home])
    assert run.info.run_id == json.loads((RESULTS / "tracking.json").read_text())["run"] != orphan.info.run_id


def test_permanent_causes_say_their_cure(mirror: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    mirror()
    home = client().get_experiment_by_name(EXPERIMENT_NAME).experiment_id
    client().delete_experiment(home)
    line = mirror()
    assert f"`mlflow experiments restore -x {home}`" in line and "later" not in line
    client().restore_experiment(home)
    assert "0 stage runs" in mirror()
    monkeypatch.setattr(Mirror, "experiment", lambda self: self.client.create_registered_model("a/b"))
    assert mirror().endswith("MLflow never takes this name or value: change it")


def test_model_is_registered_once_and_what_a_killed_mirror_logged_is_deleted(tmp_path: Path) -> None:
    deleted: list[str] = []
    versions = [SimpleNamespace(run_id="run", tags={"hash": "h"}, model_id="m1")]
    logged = [SimpleNamespace(model_id="m1"), SimpleNamespace(model_id="m2")]
    mirror = Mirror.__new__(Mirror)
    mirror.home = "1"
    mirror.client = SimpleNamespace(
        search_model_versions=lambda filter_string: versions,
        search_logged_models=lambda experiments, filter_string: logged,
        delete_logged_model=deleted.append,
    )
    mirror._register(RegisteredModel("vaebm-tiny-nvae", tmp_path, "h", {}), "run")
    assert deleted == []
    with pytest.raises(UserError):  # there is no model in this folder
        mirror._register(RegisteredModel("vaebm-tiny-nvae", tmp_path, "other", {}), "run")
    assert deleted == ["m2"]


def test_damaged_lock_of_dvc_is_removed_and_the_cache_filled(tmp_path: Path) -> None:
    folder, pins = tmp_path / "data" / "x", tmp_path / "data.dvc"
    folder.mkdir(parents=True)
    (folder / "images.npy").write_bytes(b"images")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    pins.write_text(f"outs:\n- md5: {pin.folder_hash(folder)}\n  size: 6\n  nfiles: 1\n  hash: md5\n  path: data/x\n")
    (tmp_path / ".dvc" / "tmp" / "rwlock").touch()
    lines = vaebm("pin", "data/x", "--pins", "data.dvc", folder=tmp_path).stdout.splitlines()
    assert lines[1:] == [".dvc/tmp/rwlock: removed: a process that was killed left it damaged"], lines
    assert any(path.is_file() for path in (tmp_path / ".dvc" / "cache").rglob("*"))


def test_interrupt_while_a_command_is_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), str(Path(tracking.__file__).parents[2])])
    done = vaebm("describe", "digits", folder=tmp_path, PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (130, "stopped before the command began\n")
