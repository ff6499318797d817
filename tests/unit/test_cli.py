"""The command line: its way in, its examples, and what the shells complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from vaebm.cli.commands import app
from vaebm.cli.overview import guide

ROOT = Path(__file__).parents[2]
VAEBM = Path(sys.executable).parent / "vaebm"


def tree(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """`command` and every command under it, with its name in parts."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from tree(child, (*path, name))


COMMANDS = [path for path, _ in tree(get_command(app))]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "vaebm")
def test_example_of_every_help_is_a_command_line(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of this command, or of one under it, and gives all that the command needs, under names that it knows."""
    monkeypatch.chdir(ROOT)
    whole = get_command(app)
    commands = dict(tree(whole))
    called: list[dict[str, Any]] = []
    for command in commands.values():
        if not hasattr(command, "commands"):
            monkeypatch.setattr(command, "callback", lambda **arguments: called.append(arguments))
    match = re.fullmatch(r"Example: `([^`]*)`", commands[path].epilog)
    assert match is not None
    arguments = shlex.split(match[1])
    assert arguments[: 1 + len(path)] == ["vaebm", *path]
    whole.main(arguments[1:], prog_name="vaebm", standalone_mode=False)
    assert len(called) == 1


def run(*command: str, folder: Path = ROOT, **environment: str) -> str:
    """What a command prints; it has to succeed."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("_VAEBM", "_TYPER", "COMP_"))}
    path = f"{VAEBM.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env=inherited | {"PATH": path} | environment, capture_output=True, text=True, check=True
    ).stdout


COMPLETED = {
    "describe dig": {"digits", "digits_ablation", "digits_replay"},
    "describe config/exp": set(),  # none: bash then completes paths
    "data dig": {"digits"},
    "nvae res": set(),
    "ebm --time": {"--time-limit"},
    "convert ": {"nvae", "energy", "results"},
    "eval": {"evaluation"},
}
"""What was typed after `vaebm` when the tabulator key was pressed → candidates."""


def test_bash_completes() -> None:
    """The function that `vaebm --show-completion` gives to a real bash, called as bash calls it."""
    lines = [["vaebm", *typed.split(" ")] for typed in COMPLETED]
    calls = [
        f"COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}; _vaebm_completion vaebm; echo ${{COMPREPLY[*]}}"
        for words in lines
    ]
    script = "\n".join(['eval "$(vaebm --show-completion)"', "complete -p vaebm", *calls])
    registered, *found = run("bash", "--norc", "-c", script).splitlines()
    assert registered == "complete -o default -F _vaebm_completion vaebm"
    assert [set(candidates.split()) for candidates in found] == list(COMPLETED.values())


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        ("zsh", '_arguments \'*: :(("digits":"8×8, 1 channel(s), 1,500 training images"))\''),
        ("fish", "digits\t8×8, 1 channel(s), 1,500 training images"),
    ],
)
def test_zsh_and_fish_complete_and_tell_more(shell: str, expected: str) -> None:
    """Their protocol: the line so far in, candidates with a remark out."""
    asked = {
        "_VAEBM_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "vaebm data dig",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    assert run("vaebm", **asked).strip() == expected


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], {}),
        (["--help"], {}),
        (["nvae", "--help"], {}),
        ([], {"_VAEBM_COMPLETE": "complete_bash", "COMP_WORDS": "vaebm data ", "COMP_CWORD": "2"}),
    ],
    ids=["alone", "help", "help of a stage", "completion"],
)
def test_what_should_answer_at_once_imports_nothing_heavy(arguments: list[str], environment: dict[str, str]) -> None:
    code = f"""
import atexit, sys
from vaebm.cli import main
heavy = ("torch", "numpy", "mlflow", "sklearn", "scipy", "pandas", "snakemake")
atexit.register(lambda: print([name for name in heavy if name in sys.modules]))
sys.argv = ["vaebm", *{arguments!r}]
main()
"""
    *printed, heavy = run(sys.executable, "-c", code, **environment).splitlines()
    assert printed and heavy == "[]"


def test_vaebm_alone_shows_the_stages_in_order_and_succeeds() -> None:
    printed = run("vaebm")
    stages = [line.split()[0] for line in printed.splitlines() if line.startswith("  ")]
    assert stages == ["data", "nvae", "prior", "ebm", "samples", "evaluation", "benchmarks"]
    assert {(stage,) for stage in stages} <= set(COMMANDS)
    assert len(printed.splitlines()) < 20


def test_what_to_type_next_depends_on_the_folder(tmp_path: Path) -> None:
    def last() -> str:
        return guide(tmp_path).splitlines()[-1]

    assert "go to a checkout" in last()
    (tmp_path / "config" / "experiments").mkdir(parents=True)
    (tmp_path / "Snakefile").touch()
    assert last() == "Next: `make run` makes the experiments of config/config.yaml."
    assert (
        guide(tmp_path / "config" / "experiments").splitlines()[-1] == f"Next: `cd {tmp_path}`, where the pipeline is."
    )
    results = tmp_path / "results"
    (results / "digits" / "nvae" / "seed0").mkdir(parents=True)  # settings files alone: a dry run
    assert "makes the experiments" in last()
    (results / "digits" / "nvae" / "seed0" / "nvae.log").touch()
    assert "resumes the run" in last()
    (results / "benchmarks.md").touch()
    assert "read results/benchmarks.md" in last()
