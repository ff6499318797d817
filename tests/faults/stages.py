"""Kills and damage of the stages of `tiny`, for tests/faults/run.py."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

from mutations import REFUSED, SURVIVED, TRACEBACK, WRONG, damaged

from vaebm import cli
from vaebm.config.pipeline import resolve

RUN, NVAE, DATA = "results/tiny/vaebm/seed0", "results/tiny/nvae/seed0", "--data data/digits/manifest.json"
CLASSIFIER = "results/tiny/classifier/model.safetensors"
MODELS = f"--nvae {NVAE}/model.safetensors --energy {RUN}/model.safetensors"
COMMANDS = {
    "data": "data digits --folder data/digits",
    "classifier": f"classifier results/tiny/classifier/classifier.yaml {DATA} --model {CLASSIFIER}",
    "reference": f"reference results/tiny/reference/classifier.yaml {DATA} --classifier {CLASSIFIER} "
    "--output results/tiny/reference/classifier.npz",
    "nvae": f"nvae {NVAE}/nvae.yaml {DATA} --model {NVAE}/model.safetensors",
    "ebm": f"ebm {RUN}/ebm.yaml {DATA} --nvae {NVAE}/model.safetensors --model {RUN}/model.safetensors",
    "samples0": f"samples {RUN}/samples/samples.yaml {MODELS} --shard 0 --output {RUN}/samples/shard-000.npy",
    "samples1": f"samples {RUN}/samples/samples.yaml {MODELS} --shard 1 --output {RUN}/samples/shard-001.npy",
    "evaluation": f"evaluation {RUN}/evaluation/evaluation.yaml {DATA} {MODELS} --classifier {CLASSIFIER} "
    "--extractor results/tiny/reference/classifier.yaml --reference results/tiny/reference/classifier.npz "
    f"--metrics {RUN}/evaluation/metrics.json {RUN}/samples/shard-000.npy {RUN}/samples/shard-001.npy",
    "benchmarks": f"benchmarks {RUN}/evaluation/metrics.json",
    "compare": "benchmarks --compare other",
    "pin": "pin data/digits --pins data.dvc",
}
READ = {
    "data/digits/images.npy": ("classifier", "reference", "evaluation", "pin"),
    "data/digits/labels.npy": ("classifier", "reference", "pin"),
    "data/digits/manifest.json": ("evaluation", "reference", "pin"),
    CLASSIFIER: ("reference", "evaluation"),
    "results/tiny/reference/classifier.npz": ("evaluation",),
    f"{NVAE}/model.safetensors": ("samples0", "evaluation"),
    f"{RUN}/model.safetensors": ("samples1", "evaluation"),
    f"{RUN}/samples/shard-000.npy": ("evaluation",),
    f"{RUN}/samples/shard-001.json": ("evaluation",),
}
"""File → the stages that read it. They have to end as without the damage, or in one line."""
EDITED = {
    f"{NVAE}/nvae.yaml": ("evaluation",),
    f"{RUN}/ebm.yaml": ("ebm", "evaluation"),
    f"{RUN}/samples/samples.yaml": ("samples0", "evaluation"),
    f"{RUN}/evaluation/evaluation.yaml": ("evaluation",),
    "results/tiny/classifier/classifier.yaml": ("classifier",),
    "results/tiny/reference/classifier.yaml": ("reference", "evaluation"),
    f"{NVAE}/training.json": ("evaluation",),
    f"{RUN}/training.json": ("evaluation",),
    f"{RUN}/evaluation/metrics.json": ("benchmarks",),
    "results/tiny/vaebm/metrics.json": ("compare",),
    "results/tiny/tracking.json": ("benchmarks",),
    "results/benchmarks.json": ("compare",),
    "config/paper.yaml": ("benchmarks",),
    "config/experiments/tiny.yaml": ("benchmarks",),
    "data.dvc": ("pin",),
}
"""The same for text that users may edit: another number there is no damage that a program can see."""
TRAININGS = {"nvae": NVAE, "ebm": RUN}
STEPS = {"nvae": 30, "ebm": 16}
"""Steps after which trainings are interrupted to damage their checkpoints; the energy then has a good snapshot."""
DIFFERENT = ("seconds", "seconds-per-50", "system", "tracking")
"""Keys of JSON whose values differ from run to run: times, memory, and the name of MLflow's run."""
LONGEST = 240
"""Seconds for a command."""


def contents(folder: Path) -> dict[str, Any]:
    """Path → content of every file, without times, logs and what a stage leaves behind on purpose."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = comparable(path)
    return found


def comparable(path: Path) -> Any:
    """Bytes of a file; of JSON its values without seconds and the name of MLflow's run."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(part) for key, part in value.items() if key not in DIFFERENT}
        return [without(part) for part in value] if isinstance(value, list) else value

    content = path.read_bytes()
    try:
        return without(json.loads(content)) if path.suffix == ".json" else content
    except ValueError:
        return content


class Project:
    """A finished run of `tiny`, stage by stage, and a copy of it to damage."""

    def __init__(self, folder: Path, root: Path):
        self.base, self.work, self.interrupted = folder / "base", folder / "work", folder / "interrupted"
        shutil.copytree(root / "config", self.base / "config")
        pins = (root / "data.dvc").read_text()
        (self.base / "data.dvc").write_text(pins)
        (self.base / "config" / "config.yaml").write_text("experiments: [tiny]\nseeds: [0]\n")
        with chdir(self.base):
            resolve({}, write=True)
            Path("results/tiny/tracking.json").write_text('{"status": "", "run": "0"}\n')
        self.outputs: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}
        for stage in COMMANDS:
            if stage == "compare":
                shutil.copytree(self.base / "results", self.base / "other")
            before, began = set(contents(self.base)), time.monotonic()
            status, output = self.run(stage, self.base)
            assert status == 0, f"{stage}: {output}"
            self.seconds[stage] = time.monotonic() - began
            self.outputs[stage] = set(contents(self.base)) - before
        shutil.copytree(self.base, self.work)
        self.expected = contents(self.base)

    def run(
        self,
        stage: str,
        folder: Path,
        kill_after: float | None = None,
        until: tuple[Path, int] | None = None,
        options: str = "",
    ) -> tuple[int, str]:
        """Status (negative: killed by this signal) and output of a command in a fork.

        Args:
            kill_after: seconds until SIGKILL.
            until: folder of checkpoints, and the step of one at which SIGKILL follows.
        """
        log = folder.parent / "output.txt"
        arguments = f"{COMMANDS[stage]} {options}".split()
        began = time.monotonic()
        if (child := os.fork()) == 0:
            status = 70
            try:
                os.setsid()
                os.chdir(folder)
                out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(out, 1), os.dup2(out, 2)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
                sys.argv = ["vaebm", *arguments]
                cli.main()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            taken = time.monotonic() - began
            if ended:
                return os.waitstatus_to_exitcode(status), log.read_text(errors="replace") if log.is_file() else ""
            reached = until is not None and any(_step(path) >= until[1] for path in until[0].glob("*/*.json"))
            if reached or taken > (LONGEST if kill_after is None else kill_after):
                try:
                    os.killpg(child, signal.SIGKILL)
                except ProcessLookupError:  # before it has a group of its own
                    os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return (-signal.SIGKILL if reached or kill_after is not None else 124), ""
            time.sleep(0.002)

    def interrupt(self, stage: str) -> Path:
        """Folder of the checkpoints of a training in the copy, as they were when it was killed at `STEPS`."""
        checkpoints, kept = self.work / TRAININGS[stage] / "checkpoints", self.interrupted / stage
        self.clear(stage)
        if kept.is_dir():
            shutil.copytree(kept, checkpoints)
        else:
            self.run(stage, self.work, until=(checkpoints, STEPS[stage]), options="--checkpoint-every 0")
            shutil.copytree(checkpoints, kept)
        return checkpoints

    def clear(self, stage: str) -> None:
        """Remove the outputs of a stage from the copy."""
        for name in self.outputs[stage]:
            (self.work / name).unlink(missing_ok=True)

    def difference(self) -> list[str]:
        """Files of the copy that are not as in the finished run."""
        found = contents(self.work)
        return sorted(name for name in found.keys() | self.expected if found.get(name) != self.expected.get(name))

    def restore(self) -> None:
        """Make the copy like the finished run again, also its seconds, which tables show."""
        for name in contents(self.work).keys() | self.expected:
            copy, original = self.work / name, self.base / name
            if not (original.is_file() and copy.is_file() and original.read_bytes() == copy.read_bytes()):
                copy.unlink(missing_ok=True)
                if original.is_file():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(original, copy)
        for run in TRAININGS.values():
            shutil.rmtree(self.work / run / "checkpoints", ignore_errors=True)


def _step(record: Path) -> int:
    try:
        return int(json.loads(record.read_text())["step"])
    except (OSError, ValueError):
        return -1


def kill(project: Project, chance: random.Random) -> tuple[str, str]:
    """Kill a stage once or twice, and repeat its command: its files are the same bits."""
    stage = chance.choice([name for name in COMMANDS if name not in ("compare", "pin")])
    options = f"--checkpoint-every {chance.choice([0, 0.2, 60])}" if stage in TRAININGS else ""
    project.clear(stage)
    moments = [chance.uniform(0, 1.1 * project.seconds[stage]) for _ in range(chance.choice([1, 1, 2]))]
    for moment in moments:
        project.run(stage, project.work, kill_after=moment, options=options)
    status, output = project.run(stage, project.work, options=options)
    differing = project.difference()
    project.restore()
    if status == 0 and not differing:
        return SURVIVED, ""
    found = f"{stage} killed after {moments} s: status {status}, other files: {differing}\n{output}"
    return (TRACEBACK if "Traceback" in output else WRONG), found


def damage(project: Project, chance: random.Random) -> tuple[str, str]:
    """Damage a file, and run a stage that reads it."""
    kind = chance.choice([READ, READ, READ, EDITED, EDITED, TRAININGS])
    name = chance.choice(sorted(kind))
    if kind is TRAININGS:
        stage = name
        checkpoints = project.interrupt(stage)
        path = chance.choice(sorted(file for file in checkpoints.rglob("*") if file.is_file()))
    else:
        stage, path = chance.choice(kind[name]), project.work / name
    content = path.read_bytes()
    while (other := damaged(content, chance)) == content:
        pass
    path.write_bytes(other)
    status, output = project.run(stage, project.work)
    differing = [] if kind is EDITED else [one for one in project.difference() if one != name]
    project.restore()
    lines = [line for line in output.splitlines() if line]
    what = f"{path.relative_to(project.work)} damaged, {stage}: status {status}, other files: {differing}\n{output}"
    if "Traceback" in output or status not in (0, 1):
        return TRACEBACK, what
    if status == 0:
        return (WRONG, what) if differing else (SURVIVED, "")
    return (REFUSED, "") if lines and len(lines[-1]) <= 1000 and ": " in lines[-1] else (TRACEBACK, what)


def pipelines(root: Path, folder: Path, chance: random.Random, count: int) -> list[tuple[str, str]]:
    """Kill the process group of Snakemake at a random time, unlock, and repeat the command, `count` times."""
    project, log = folder / "pipeline", folder / "pipeline.txt"
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", "experiments=[tiny]", "seeds=[0]"]
    environment = os.environ | {"PYTHONPATH": str(root), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def snakemake(*more: str, kill_after: float | None = None) -> int:
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *more], cwd=project, env=environment, stdout=out, stderr=out, start_new_session=True
            )
            try:
                return process.wait(kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return process.wait()

    def fresh() -> None:
        shutil.rmtree(project, ignore_errors=True)
        project.mkdir()
        for name in ("Snakefile", "workflow", "config", "profiles", "data.dvc", "environment.yml"):
            (shutil.copytree if (root / name).is_dir() else shutil.copy2)(root / name, project / name)

    def outcome() -> dict[str, Any]:
        kept = (".safetensors", ".npy", ".npz", ".jsonl", "metrics.json", "training.json")
        return {
            name: value
            for name, value in contents(project).items()
            if name.endswith(kept) and name.startswith(("data/", "results/"))
        }

    fresh()
    began = time.monotonic()
    assert snakemake() == 0, log.read_text()
    seconds, expected, found = time.monotonic() - began, outcome(), []
    for _ in range(count):
        fresh()
        moment = chance.uniform(0, seconds)
        snakemake(kill_after=moment)
        snakemake("--unlock")
        status, output = snakemake(), log.read_text(errors="replace")
        same = status == 0 and outcome() == expected
        details = f"pipeline killed after {moment:.1f} s: status {status}\n{output}"
        found.append((SURVIVED, "") if same else (TRACEBACK if "Traceback" in output else WRONG, details))
    return found
