"""A training that is killed at any moment and run again ends in the same bits as one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

COMMANDS = {
    "nvae": ["nvae", "results/tiny/nvae/seed0/nvae.yaml", "--data", "data/digits/manifest.json"],
    "ebm": [
        "ebm",
        "results/tiny/vaebm/seed0/ebm.yaml",
        "--data",
        "data/digits/manifest.json",
        "--nvae",
        "results/tiny/nvae/seed0/model.safetensors",
    ],
}
UNCUT = {"nvae": "results/tiny/nvae/seed0", "ebm": "results/tiny/vaebm/seed0"}


def saved_step(folder):
    """The step of the newest checkpoint under `folder`; 0 where there is none."""
    return max((json.loads(path.read_text())["step"] for path in folder.glob("checkpoints/*/*.json")), default=0)


# the energy's first snapshot, of iteration 10, counts as good from iteration 15 on: it has to survive too
@pytest.mark.parametrize(("stage", "step"), [("nvae", 1), ("nvae", 40), ("ebm", 1), ("ebm", 16)])
def test_killed_training_ends_in_the_same_bits(tiny_run, tmp_path, python, stage, step):
    """Killed with -9 once it has saved its state at that step or later; the shared run was never interrupted."""
    command = python(*COMMANDS[stage], "--model", str(tmp_path / "model.safetensors"), "--checkpoint-every", "0")
    with subprocess.Popen(
        command, cwd=tiny_run.folder, env=tiny_run.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while saved_step(tmp_path) < step:
            assert process.poll() is None, "the training ended before its state was saved then"
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "model.safetensors").exists()

    assert f"{stage}: resuming at step " in tiny_run.run(*command)
    uncut = tiny_run.folder / UNCUT[stage]
    assert (tmp_path / "history.jsonl").read_text() == (uncut / "history.jsonl").read_text()
    found, expected = (json.loads((folder / "training.json").read_text()) for folder in (tmp_path, uncut))
    assert found["model"] == expected["model"] and found["steps"] == expected["steps"]


def test_snakemake_killed_in_the_middle_takes_nothing_half_written(finished):
    """Killed with -9, jobs included, after the energy's curves and before its model. After `--unlock` the same
    command does not take the curves for results, and ends in the same model.
    """
    run = finished.folder / "results" / "tiny" / "vaebm" / "seed0"
    expected = json.loads((run / "training.json").read_text())["model"]
    (run / "model.safetensors").unlink()
    target, curves = "results/tiny/vaebm/seed0/model.safetensors", run / "pictures" / "curves.png"
    curves.unlink()
    command = ["snakemake", "--cores", "1", target]
    with subprocess.Popen(
        command,
        cwd=finished.folder,
        env=finished.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while not curves.exists():
            assert process.poll() is None, "the job ended before its curves were seen"
            time.sleep(0.002)
        subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=True)
    assert not (run / "model.safetensors").exists()
    finished.snakemake("--unlock")
    finished.snakemake(target)
    assert json.loads((run / "training.json").read_text())["model"] == expected
