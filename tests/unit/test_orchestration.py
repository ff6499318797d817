"""`benchmarks/orchestration.py` and `scaling.py`: figures of runs that are known."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import scaling
from orchestration import Job, idle, jobs_of, summary


def job(began: float, ended: float, name: str, *inputs: str) -> Job:
    """A job that makes `name`."""
    return Job(
        "rule",
        began,
        ended,
        set(inputs),
        {name},
        {"start": 1.0, "end": 0.0, "DVC": 0.0, "MLflow": 0.0, "work": ended - began - 1.0},
    )


def test_idle_is_a_free_core_beside_a_ready_job() -> None:
    """Two cores.

    `b` could have begun at 10 when `a` ended, and began at 13; that `c` waits for `b` is nobody's fault.
    """
    assert (
        idle(
            [job(0, 10, "a"), job(0, 20, "long"), job(13, 15, "b", "a", "raw"), job(15, 30, "c", "b")],
            cores=2,
            began=0.0,
        )
        == 3.0
    )


def test_all_cores_at_work_are_not_idle() -> None:
    """The same on one core: whatever waits, waits for it."""
    assert idle([job(0, 10, "a"), job(10, 20, "b"), job(20, 30, "c", "a")], cores=1, began=0.0) == 0.0


def test_summary_adds_up() -> None:
    """Two jobs of ten and twenty seconds with a second's start each; Snakemake needed two before and one after them."""
    found = summary([job(2, 12, "a"), job(2, 22, "b")], cores=2, began=0.0, ended=23.0)
    assert found["stages"]["rule"] == {
        "jobs": 2,
        "seconds": 30.0,
        "start": 2.0,
        "end": 0.0,
        "DVC": 0.0,
        "MLflow": 0.0,
        "work": 28.0,
    }
    assert (found["job_seconds"], found["snakemake_seconds"], found["idle_seconds"]) == (30.0, 3.0, 0.0)
    assert found["overhead_share"] == pytest.approx(5 / 33)


def record(folder: Path, output: str, rule: str, log: str, began: float, ended: float) -> None:
    """Snakemake's record of an output."""
    path = folder / ".snakemake" / "metadata" / base64.b64encode(output.encode()).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rule": rule, "log": [log], "input": ["data"], "starttime": began, "endtime": ended}))


def process(folder: Path, command: list[str], began: float, ended: float, imports: float) -> None:
    """The recorder's file of a process that was ready 0.1 s after its beginning."""
    (folder / ".record").mkdir(exist_ok=True)
    content = {
        "command": command,
        "began": began,
        "ended": ended,
        "interpreter": 0.1,
        "imports": imports,
        "processor": 0.0,
    }
    (folder / ".record" / f"{command[2]}.json").write_text(json.dumps(content))


def test_a_job_is_split_into_its_parts(tmp_path: Path) -> None:
    """A pin with DVC in it, and a job of two outputs that is MLflow's; parts add up to the whole."""
    record(tmp_path, "results/data/digits.pinned", "pin", "pin.log", 100.0, 110.0)
    process(tmp_path, ["-m", "vaebm", "pin", "--log", "pin.log"], 100.2, 109.5, 1.0)
    process(tmp_path, ["-m", "dvc", "commit"], 103.0, 107.0, 2.0)
    for output in ("results/tiny/mirrored", "results/tiny/other"):
        record(tmp_path, output, "track", "track.log", 120.0, 130.0)
    process(tmp_path, ["-m", "vaebm", "track", "--log", "track.log"], 120.0, 130.0, 3.0)
    pin, track = jobs_of(tmp_path)
    assert pin.parts == pytest.approx({"start": 1.3, "end": 0.5, "DVC": 4.0, "MLflow": 0.0, "work": 4.2})
    assert track.outputs == {"results/tiny/mirrored", "results/tiny/other"}
    assert track.parts == pytest.approx({"start": 3.1, "end": 0.0, "DVC": 0.0, "MLflow": 6.9, "work": 0.0})


def test_line_tells_a_straight_growth_from_a_curved_one() -> None:
    """Exact on 2 + 0.01 x; a quadratic one is far from every line."""
    straight = scaling.fit_line([{"images": x, "processor": 2 + 0.01 * x} for x in (100, 1000, 10000)], "images")
    assert straight == pytest.approx({"constant": 2.0, "slope": 0.01, "residual": 0.0}, abs=1e-9)
    assert (
        scaling.fit_line([{"images": x, "processor": 2 + 1e-5 * x * x} for x in (100, 1000, 10000)], "images")[
            "residual"
        ]
        > 0.3
    )
