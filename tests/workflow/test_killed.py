"""After a kill at any moment the same command builds the rest; a dry run changes nothing.

Run as a program, this file prints the jobs that a dry run leaves out after a kill.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

METADATA, INCOMPLETE = Path(".snakemake/metadata"), Path(".snakemake/incomplete")


def planned() -> Counter[str]:
    """Rule → number of jobs that a run would start. In this process: starting Snakemake takes seconds."""
    from snakemake.cli import main

    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(out),
        contextlib.suppress(SystemExit),
    ):
        main(["--dry-run", "--quiet", "rules"])
    return Counter({rule: int(jobs) for rule, jobs in re.findall(r"^(\w+) +(\d+)$", out.getvalue(), re.MULTILINE)})


def left_out() -> Iterator[str]:
    """Output whose job was killed, and missing jobs of which the plan has too few.

    Each output of each job is marked as incomplete while every older output is there; one of each rule also alone.
    """
    records = {path: json.loads(path.read_text()) for path in METADATA.rglob("*") if path.is_file()}
    made = {Path(base64.b64decode(path.name).decode()): (one["rule"], *one["log"]) for path, one in records.items()}
    made = {path: job for path, job in made.items() if path.exists()}
    times = {path: path.stat().st_mtime_ns for path in made}
    INCOMPLETE.mkdir(exist_ok=True)
    rules = set[str]()
    for killed, (rule, *_) in made.items():
        marker = INCOMPLETE / base64.b64encode(str(killed).encode()).decode()
        marker.touch()
        for oldest in {times[killed], times[killed] if rule in rules else 0}:
            missing = [path for path in made if times[path] > oldest and path != killed]
            for path in missing:
                path.rename(path.with_name(f"{path.name}.kept"))
            lacking = Counter(job[0] for job in {made[path] for path in (killed, *missing)}) - planned()
            for path in missing:
                path.with_name(f"{path.name}.kept").rename(path)
            if lacking:
                yield f"{killed}: {dict(lacking)}"
        marker.unlink()
        rules.add(rule)


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Path → time and size of everything in a folder."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_dry_run_and_run_beside_another_plan_a_changed_setting_and_write_nothing(finished):
    finished.edit("config/experiments/tiny.yaml", "iterations: 20", "iterations: 21")
    before, changed = state(finished.folder / "results"), "results/tiny/vaebm/seed0/ebm.yaml"
    plan = {"ebm": 1, "samples": 2, "evaluation": 1, "benchmarks": 1, "track": 1}
    assert finished.planned() == plan
    lock = finished.folder / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(changed)
    refused = finished.snakemake(fails=True).splitlines()[-1]
    assert refused.startswith(f"{changed}: expected the settings of the run that holds the lock") and lock.exists()
    assert finished.planned() == plan
    finished.snakemake("--unlock")
    assert state(finished.folder / "results") == before and not lock.exists()
    assert "ebm" in finished.snakemake("--list-rules")
    assert "iterations: 21" in (finished.folder / changed).read_text()


def test_comparison_with_the_pin_hides_no_change(finished):
    """It runs for another data.dvc; the table, which depends on it through `ancient` inputs, for another paper.yaml."""
    for name in ("data.dvc", "config/paper.yaml"):
        with (finished.folder / name).open("a") as file:
            file.write("# a remark\n")
    finished.snakemake("results/benchmarks.json")
    assert "benchmarks" not in finished.planned()


def test_run_killed_in_any_job_is_planned_whole(finished):
    checked = finished.run(sys.executable, __file__).splitlines()
    assert int(checked.pop()) > 20 and checked == []


if __name__ == "__main__":
    sys.path.insert(0, ".")
    print(*left_out(), sum(path.is_file() for path in METADATA.rglob("*")), sep="\n")
