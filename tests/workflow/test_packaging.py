"""One set of versions, and commands that say what they lack."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def normal(requirement: str) -> str:
    """Name of a requirement, as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """Name → version of lines such as torch==2.13.0."""
    exact = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {normal(name): version.strip() for name, version in exact}


def direct() -> set[str]:
    """Names that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {normal(requirement) for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]}


def test_conda_environment_has_the_same_pins():
    """environment.yml holds what pyproject.toml asks for, in the versions of constraints.txt."""
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert pins(listed) == {name: constraints[name] for name in direct()}


def test_constraints_fit_every_build():
    """No local version, which only one index has."""
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    assert constraints["torch"] == "2.13.0" and not any("+" in version for version in constraints.values())


def test_no_python_is_one_line(tmp_path):
    """make says what it expected; nothing is installed."""
    for tool in ("make", "sh", "test"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        ["make", "run"], cwd=tmp_path, env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True
    )
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("make: expected Python 3.11 or newer")
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_what_a_newcomer_runs():
    """Lint, then exactly `make test`."""
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert commands == ["make lint", "make test"]


def test_nothing_names_a_folder_of_one_machine():
    """Also not the folder beside the project that its makers share."""
    foreign = re.compile("|".join([r"(?<![\w.])/wo" + "rk/", r"(?<![\w.])/op" + "t/", r"\.\./sha" + "red"]))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = Path(ROOT, name)
        if (
            path.suffix in {".py", ".smk", ".yaml", ".yml", ".toml", ".md", ".txt", ".rst", ".j2", ""}
            and path.is_file()
        ):
            assert not foreign.search(path.read_text()), name
