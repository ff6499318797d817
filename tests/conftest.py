"""One finished run of the whole pipeline, shared by the tests; a test that changes something works in a copy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

# Several tests and their programs run at once: with more threads than cores, torch's threads wait in loops.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent
PROJECT = (
    "Snakefile", "workflow", "config", "profiles", "vaebm", "environment.yml", "constraints.txt", "pyproject.toml",
    "Makefile", "data.dvc", "dvc.yaml", ".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore", ".gitignore",
    "results/README.md",
)  # fmt: skip
"""What a clone holds, as far as runs and these tests need it."""


@dataclass(frozen=True)
class Project:
    """A folder with the project in it."""

    folder: Path

    def run(self, *command: str, fails: bool = False, **environment: str) -> str:
        """Output of a command (both streams) with this interpreter first on PATH; it has to succeed, or to fail."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (done.returncode != 0) == fails, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}"
        return done.stdout

    def snakemake(self, *arguments: str, fails: bool = False) -> str:
        """Snakemake on two cores."""
        return self.run("snakemake", "--cores", "2", *arguments, fails=fails)

    def planned(self, *arguments: str) -> dict[str, int]:
        """Rule → number of jobs that a run would start, `all` left out."""
        jobs = re.findall(r"^(\w+) +(\d+)$", self.snakemake("--dry-run", *arguments), re.MULTILINE)
        return {rule: int(count) for rule, count in jobs if rule not in ("all", "total")}

    def copy(self, folder: Path) -> Project:
        """A copy, also while another test mirrors this project: files that are there for a moment stay behind."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*.tmp", "*-journal"))
        return Project(folder)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace `old`, which has to be there."""
        text = (self.folder / path).read_text()
        assert old in text
        (self.folder / path).write_text(text.replace(old, new))

    @staticmethod
    def environment() -> dict[str, str]:
        """This process's environment, without what could lead a run elsewhere."""
        name = {
            f"GIT_{role}_{what}": f"{what.lower()}@localhost"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MLFLOW_", "SNAKEMAKE_", "DVC_", "GIT_", "MAKE", "AWS_"))
        }
        return kept | name | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: the cluster, which mostly waits, then the whole pipeline."""
    items.sort(
        key=lambda item: 0 if item.get_closest_marker("slurm") else 1 if item.path.parent.name == "workflow" else 2
    )


def make_project(folder: Path) -> Project:
    """The project as a clone has it: the files of a run in a git repository of their own."""
    for name in PROJECT:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    project = Project(folder)
    for command in ("git init --quiet", "git add --all", "git commit --quiet --message clone"):
        project.run(*command.split())
    return project


@pytest.fixture
def clone(tmp_path: Path) -> Project:
    """A fresh clone; nothing has run in it."""
    return make_project(tmp_path / "clone")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with the experiment `tiny` as its default, run once for all tests; nobody may change it.

    `dvc repro` is its first command, which runs `snakemake --cores all`: both work in a fresh clone.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one run for all workers
        folder = folder.parent
    project, done = Project(folder / "tiny" / "project"), folder / "tiny" / "done"
    with FileLock(folder / "tiny.lock"):
        if not done.exists():
            shutil.rmtree(done.parent, ignore_errors=True)
            make_project(project.folder)
            project.edit("config/config.yaml", "  - digits\n  - stacked_digits\n", "  - tiny\n")
            project.run("git", "commit", "--quiet", "--all", "--message", "tiny")
            assert "Running stage 'pipeline'" in project.run("dvc", "repro")
            done.touch()
    return project


@pytest.fixture
def finished(tiny_run: Project, tmp_path: Path) -> Project:
    """A copy of the finished run, to change."""
    return tiny_run.copy(tmp_path / "finished")


@pytest.fixture
def python() -> Callable[..., tuple[str, ...]]:
    """The command line of the package: python("track", "results/tiny") is a command for `Project.run`."""
    return lambda *arguments: (sys.executable, "-m", "vaebm", *arguments)
