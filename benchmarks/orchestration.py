"""Overhead of the pipeline: a run in a copy of the project, with each job's time split up.

    python benchmarks/orchestration.py                                      # the default run; 15 minutes on two cores
    python benchmarks/orchestration.py tiny --json orchestration.json       # one experiment; 90 seconds
    python benchmarks/orchestration.py --dry-run                            # only the plan of the paper's experiments

Snakemake records when jobs begin and end. Each process records the time of its interpreter and imports
(`recorder/sitecustomize.py`). The rest of the jobs `tracking` and `track` counts as MLflow's, and all of `dvc` as
DVC's. A core is idle while a job is ready, that is, all jobs that make its inputs have ended, and fewer jobs run than
there are cores.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vaebm.config.datasets import DATASETS, raw_folder
from vaebm.config.yaml_files import read_yaml
from vaebm.system.files import write_json

ROOT = Path(__file__).parent.parent
RECORDER = Path(__file__).parent / "recorder"
PAPER = ("cifar10", "celeba64", "lsun_church64", "celebahq256", "stacked_mnist")
"""The paper's experiments."""
PLANS = 5
"""Number of dry runs; the result is their median."""


@dataclass
class Job:
    """One job of a run; times in seconds since 1970."""

    rule: str
    began: float
    ended: float
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of `start` (shell, interpreter, imports), `end` (exit, Snakemake's notice), DVC, MLflow, work."""

    @property
    def seconds(self) -> float:
        """Duration of the job."""
        return self.ended - self.began


# the run
def copy_project(folder: Path) -> None:
    """Copy the present files that git tracks to a new repository, which DVC needs."""
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    identity = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for command in (("init", "--quiet"), ("add", "--all"), (*identity, "commit", "--quiet", "--message", "copy")):
        subprocess.run(["git", *command], cwd=folder, check=True)


def environment(*paths: Path) -> dict[str, str]:
    """This process's environment with these folders of Python modules.

    Python may write compiled files, as it does for users.
    """
    left_out = ("MLFLOW_", "SNAKEMAKE_", "DVC_", "GIT_", "MAKE", "PYTHONDONTWRITEBYTECODE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": programs, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def run(folder: Path, experiments: list[str], cores: int) -> tuple[float, float]:
    """Run Snakemake in `folder`; return the times of its begin and end."""
    record = folder / ".record"
    record.mkdir()
    command = ["snakemake", "--cores", str(cores), "--config", f"experiments=[{','.join(experiments)}]"]
    began, env = time.time(), environment(RECORDER, folder) | {"VAEBM_RECORD": str(record)}
    done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"snakemake ended with status {done.returncode}:\n{done.stdout}")
    return began, time.time()


def jobs_of(folder: Path) -> list[Job]:
    """The jobs of the run in `folder`, sorted by their begin."""
    found: dict[str, Job] = {}
    metadata = folder / ".snakemake" / "metadata"
    for path in metadata.rglob("*"):
        if path.is_file():
            one = json.loads(path.read_text())
            job = found.setdefault(one["log"][0], Job(one["rule"], one["starttime"], one["endtime"]))
            job.inputs |= set(one["input"])
            # the file's path is the output's in base64, cut into parts
            name = "".join(part.removeprefix("@") for part in path.relative_to(metadata).parts)
            job.outputs.add(base64.b64decode(name).decode())
    processes = [json.loads(path.read_text()) for path in (folder / ".record").glob("*.json")]
    logs = {command[command.index("--log") + 1]: one for one in processes if "--log" in (command := one["command"])}
    commits = [one for one in processes if one["command"][:2] == ["-m", "dvc"]]
    for log, job in found.items():
        process = logs[log]
        own = [one for one in commits if job.rule == "pin" and process["began"] <= one["began"] <= job.ended]
        dvc = sum(one["ended"] - one["began"] for one in own)
        start = process["began"] - job.began + process["interpreter"] + process["imports"]
        end = job.ended - process["ended"]
        rest = job.seconds - start - end - dvc
        mlflow = rest if job.rule in ("tracking", "track") else 0.0
        job.parts = {"start": start, "end": end, "DVC": dvc, "MLflow": mlflow, "work": rest - mlflow}
    return sorted(found.values(), key=lambda job: job.began)


# the results
def idle(jobs: list[Job], cores: int, began: float) -> float:
    """Seconds in which a core was idle although a job was ready."""
    makers = {output: job for job in jobs for output in job.outputs}
    ready = {id(job): max((makers[name].ended for name in job.inputs if name in makers), default=began) for job in jobs}
    moments = sorted({began, *(job.began for job in jobs), *(job.ended for job in jobs)})
    total = 0.0
    for first, last in zip(moments, moments[1:], strict=False):
        running = sum(job.began <= first < job.ended for job in jobs)
        waiting = any(ready[id(job)] <= first < job.began for job in jobs)
        total += (last - first) * (running < cores and waiting)
    return total


def summary(jobs: list[Job], cores: int, began: float, ended: float) -> dict[str, Any]:
    """Results of a run: seconds by stage and in total, and idle time."""
    first, last = min(job.began for job in jobs), max(job.ended for job in jobs)
    rows = [{"rule": job.rule, "jobs": 1, "seconds": job.seconds, **job.parts} for job in jobs]
    stages = pd.DataFrame(rows).groupby("rule", sort=False).sum()
    work, total = float(stages["work"].sum()), float(stages["seconds"].sum())
    snakemake = (first - began) + (ended - last)
    waiting = idle(jobs, cores, first)
    return {
        "wall_seconds": ended - began,
        "snakemake_seconds": snakemake,
        "job_seconds": total,
        "overhead_share": 1 - work / (total + snakemake),
        "idle_seconds": waiting,
        "idle_share": waiting / (ended - began),
        "busy_share": total / (cores * (ended - began)),
        "stages": stages.to_dict("index"),
        "timeline": [
            {
                "rule": job.rule,
                "began": job.began - began,
                "ended": job.ended - began,
                "outputs": sorted(job.outputs)[:1],
            }
            for job in jobs
        ],
    }


def plan(folder: Path) -> dict[str, Any]:
    """Seconds of a dry run of the paper's experiments, with empty files in place of users' raw data."""
    for dataset, facts in DATASETS.items():
        for name in () if facts.raw is None or facts.raw.downloaded else facts.raw.alternatives[0]:
            (folder / raw_folder(dataset, None)).mkdir(parents=True, exist_ok=True)
            (folder / raw_folder(dataset, None) / name).touch()
    command = ["snakemake", "--dry-run", "--quiet", "all", "--cores", "1"]
    command += ["--config", f"experiments=[{','.join(PAPER)}]"]
    times = []
    for _ in range(PLANS + 1):  # the first, a warm-up, is not counted
        began = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
        times.append(time.monotonic() - began)
        if done.returncode:
            sys.exit(f"snakemake cannot plan the paper's experiments:\n{(done.stderr or done.stdout).strip()}")
    return {"experiments": list(PAPER), "seconds": statistics.median(times[1:]), "of": times[1:]}


def show(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    if "run" in results:
        run = results["run"]
        table = pd.DataFrame.from_dict(run["stages"], orient="index")
        table.loc["all"] = table.sum()
        table["overhead"] = 1 - table["work"] / table["seconds"]
        formats = {"jobs": "{:.0f}".format, "overhead": "{:.0%}".format}
        lines += [
            f"{', '.join(results['experiments'])} on {results['cores']} cores, load {results['load'][0]:.1f} before: "
            f"{run['wall_seconds']:.0f} s, "
            f"{run['job_seconds']:.0f} s of jobs, Snakemake before and after them {run['snakemake_seconds']:.1f} s",
            "",
            table.to_string(float_format="{:.1f}".format, formatters=formats),
            "",
            f"overhead, Snakemake's own time included: {run['overhead_share']:.1%} (at most 20 %)",
            f"a core idle although a job was ready: {run['idle_share']:.1%} of the wall time (at most 15 %); "
            f"cores busy: {run['busy_share']:.0%}",
        ]
    if "plan" in results:
        plan = results["plan"]
        lines.append(f"dry run of {', '.join(plan['experiments'])}: {plan['seconds']:.1f} s (below 5 s)")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "experiments", nargs="*", help="names in config/experiments; default: those of config/config.yaml"
    )
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--keep", type=Path, help="a folder for the copy, which then stays")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", action="store_true", help="only the run")
    what.add_argument("--dry-run", action="store_true", help="only the plan of the paper's experiments")
    arguments = parser.parse_args()
    if arguments.keep and arguments.keep.exists():
        sys.exit(f"{arguments.keep}: expected a folder that is not there yet")
    results: dict[str, Any] = {"load": os.getloadavg(), "cores": arguments.cores}
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.keep or Path(scratch) / "project").absolute()
        copy_project(folder)
        if not arguments.dry_run:
            results["experiments"] = (
                arguments.experiments or read_yaml(folder / "config" / "config.yaml")["experiments"]
            )
            began, ended = run(folder, results["experiments"], arguments.cores)
            results["run"] = summary(jobs_of(folder), arguments.cores, began, ended)
        if not arguments.run:
            results["plan"] = plan(folder)
    print(show(results))
    if arguments.json is not None:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
