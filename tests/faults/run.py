"""The fault suite: random kills, damaged files, experiment files and pictures.

    python tests/faults/run.py --kills 400 --damage 300 --configurations 500 --pictures 100000

Prints a table and ends with status 1 after a traceback or a wrong result. Trial k depends only on `--seed` and k, but
the moment of a kill is a share of the time that a stage takes here. Commands run in forks of this process, which has
imported the package: the same program without the seconds of its imports. Each 25th kill is one of the whole pipeline.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path[:0] = [str(HERE), str(ROOT)]

from mutations import REFUSED, SURVIVED, TRACEBACK, WRONG, Pictures, configuration  # noqa: E402
from stages import Project, damage, kill, pipelines  # noqa: E402

COLUMNS = (SURVIVED, REFUSED, TRACEBACK, WRONG)
LIMIT = {"pictures": 20, "configurations": 60}
"""Seconds of work after which a trial counts as one that hangs; kills and damage have limits of their own."""

Trial = Callable[[int], tuple[str, str]]
"""Number of a trial → its result, and details of one that is not right."""
Found = tuple[int, str, str]


def guarded(trial: Callable[[int], str]) -> Trial:
    """`trial`, whose exceptions are results."""

    def run(number: int) -> tuple[str, str]:
        try:
            return trial(number), ""
        except Exception:
            return TRACEBACK, traceback.format_exc()

    return run


def in_forks(numbers: list[int], trial: Trial, limit: int) -> list[Found]:
    """Run trials in a fork, and those after a crash of it in another one."""
    found: list[Found] = []
    while len(found) < len(numbers):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native code prints there
            with os.fdopen(writer, "w") as out:
                for number in numbers[len(found) :]:
                    signal.setitimer(signal.ITIMER_PROF, limit)
                    signal.alarm(20 * limit)
                    print(json.dumps([number, *trial(number)]), file=out, flush=True)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            found += [tuple(json.loads(line)) for line in lines]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if len(found) < len(numbers):
            hangs = status in (-signal.SIGPROF, -signal.SIGALRM)
            # `vaebm data` reads pictures in a child process, whose crash is one line
            result = (WRONG, "hangs") if hangs else (REFUSED, "") if status < 0 else (TRACEBACK, f"status {status}")
            found.append((numbers[len(found)], *result))
    return found


def share(count: int, job: int, jobs: int) -> list[int]:
    """Numbers of the trials of a job."""
    return list(range(count))[job::jobs]


def run_job(options: argparse.Namespace, job: int, folder: Path) -> dict[str, list[Found]]:
    """The trials of one job."""
    found: dict[str, list[Found]] = {}
    if numbers := share(options.pictures, job, options.jobs):
        made = Pictures(options.seed, folder)
        found["pictures"] = in_forks(numbers, guarded(made.trial), LIMIT["pictures"])
    if numbers := share(options.configurations, job, options.jobs):
        files = sorted((ROOT / "config" / "experiments").glob("*.yaml"))
        files += [file for file in files if file.stem in ("tiny", "digits")] * 5
        one = guarded(lambda number: configuration(random.Random(f"configurations {options.seed} {number}"), files))
        found["configurations"] = in_forks(numbers, one, LIMIT["configurations"])
    kills, damages = share(options.kills, job, options.jobs), share(options.damage, job, options.jobs)
    if kills or damages:
        project = Project(folder, ROOT)
        for name, numbers, trial in (("damage", damages, damage), ("kills", kills, kill)):
            whole = [number for number in numbers if name == "kills" and number % 25 == 24]
            for number in [number for number in numbers if number not in whole]:
                chance = random.Random(f"{name} {options.seed} {number}")
                found.setdefault(name, []).append((number, *trial(project, chance)))
            if whole:
                chance = random.Random(f"pipelines {options.seed} {job}")
                found["kills of the pipeline"] = [
                    (n, *result) for n, result in zip(whole, pipelines(ROOT, folder, chance, len(whole)), strict=True)
                ]
    return found


def main() -> None:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("kills", "damage", "configurations", "pictures"):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    if options.kills or options.damage:  # once, for all forks
        for name in (
            "nvae.train",
            "ebm.train",
            "samples",
            "evaluation.stage",
            "evaluation.reference",
            "report.aggregate",
            "report.compare",
        ):
            importlib.import_module(f"vaebm.{name}")
    with tempfile.TemporaryDirectory(prefix="faults", ignore_cleanup_errors=True) as name:
        children = {}
        for job in range(options.jobs):
            (folder := Path(name, str(job))).mkdir()
            if (child := os.fork()) == 0:
                (folder / "found.json").write_text(json.dumps(run_job(options, job, folder)))
                sys.stdout.flush()
                os._exit(0)
            children[child] = folder / "found.json"
        broken = [child for child in children if os.waitpid(child, 0)[1]]
        found: dict[str, list[Found]] = {}
        for file in children.values():
            for kind, results in (json.loads(file.read_text()) if file.is_file() else {}).items():
                found.setdefault(kind, []).extend(results)
    print(f"{'':24}{'tried':>9}" + "".join(f"{column:>22}" for column in COLUMNS))
    bad = bool(broken)
    for kind, results in found.items():
        counts = Counter(result for _, result, _ in results)
        print(f"{kind:24}{len(results):9}" + "".join(f"{counts[column]:22}" for column in COLUMNS))
        bad |= bool(counts[TRACEBACK] or counts[WRONG])
    for kind, results in found.items():
        for number, result, details in sorted(results):
            if result in (TRACEBACK, WRONG):
                print(f"\n{kind}, seed {options.seed}, trial {number}: {result}\n{details.strip()[-3000:]}")
    print(f"{time.monotonic() - began:.0f} s" + (f"; {len(broken)} jobs ended early" if broken else ""))
    sys.exit(bad)


if __name__ == "__main__":
    main()
