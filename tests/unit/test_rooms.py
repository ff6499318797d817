"""The rooms of the package: a module imports from rooms below its own, and no modules import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = [
    "__main__",
    "__init__",
    "cli",
    "tracking",
    "report",
    "evaluation",
    "ebm",
    "prior",
    "samples",
    "model",
    "fast",
    "chain",
    "energy",
    "nvae",
    "training",
    "data",
    "plots",
    "measures",
    "records",
    "noise",
    "config",
    "system",
]
"""From the top floor down."""

TOP = {"__init__", "__main__", "noise", "samples"}
"""The modules that stand in no folder."""

Imports = dict[str, set[str]]
"""Module → the modules that it imports; a package is the module in its `__init__`."""


def read(modules: dict[str, str]) -> Imports:
    """The imports in the programs of modules, also those within functions and for type checkers."""

    def targets(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports name the whole path"
            for alias in node.names:
                yield whole if (whole := f"{node.module}.{alias.name}") in modules else node.module

    return {
        name: {target for node in ast.walk(ast.parse(text)) for target in targets(node)}
        for name, text in modules.items()
    }


def package() -> dict[str, str]:
    """The programs of all modules of the package."""
    paths = {path.relative_to(ROOT).with_suffix("").parts: path for path in (ROOT / "vaebm").rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path.read_text() for parts, path in paths.items()}


def room(module: str) -> str:
    """The room of a module of the package; that of the package itself is `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def problems(imports: Imports) -> list[str]:
    """Imports of an unknown module or from a room above, then the first circle."""
    inside = {
        name: {target for target in targets if target.split(".")[0] == "vaebm"} for name, targets in imports.items()
    }
    found = [f"{name}: {room(name)} is no room" for name in inside if room(name) not in ROOMS]
    for name, targets in inside.items():
        found += [f"{name} imports {target}: there is no such module" for target in targets - set(inside)]
        above = [
            target
            for target in targets & set(inside)
            if {room(name), room(target)} <= set(ROOMS) and ROOMS.index(room(target)) < ROOMS.index(room(name))
        ]
        found += [f"{name} imports {target}: {room(target)} is above {room(name)}" for target in above]
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        found.append(f"a circle: {' ← '.join(error.args[1])}")
    return sorted(found)


def test_imports_go_down() -> None:
    assert problems(read(package())) == []


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({"vaebm.nvae.layers": "import vaebm.system.files, torch", "vaebm.system.files": ""}, []),
        (
            {"vaebm.chain.langevin": "def f():\n    from vaebm.fast import fold"}
            | {"vaebm.fast.fold": "", "vaebm.fast": ""},
            ["fast is above chain"],
        ),
        (
            {"vaebm.config": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vaebm import noise"}
            | {"vaebm.noise": ""},
            ["noise is above config"],
        ),
        ({"vaebm.ebm.train": "from vaebm import VAEBM", "vaebm": ""}, ["__init__ is above ebm"]),
        (
            {"vaebm.data.a": "from vaebm.data import b", "vaebm.data.b": "def f():\n    import vaebm.data.a"}
            | {"vaebm.data": ""},
            ["a circle"],
        ),
        ({"vaebm.sampler": ""}, ["sampler is no room"]),
        ({"vaebm.cli.main": "from vaebm.settings import read"}, ["there is no such module"]),
    ],
)  # fmt: skip
def test_an_import_that_goes_up_or_round_is_found(modules: dict[str, str], expected: list[str]) -> None:
    found = problems(read(modules))
    assert len(found) == len(expected) and all(
        part in problem for part, problem in zip(expected, found, strict=True)
    ), found


def test_five_modules_stand_at_the_top() -> None:
    assert {path.stem for path in (ROOT / "vaebm").glob("*.py")} == TOP


def test_no_file_is_long() -> None:
    """Past 350 lines there are two ideas in it."""
    files = [path for folder in ("vaebm", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert len(lengths) > 200 and {name: length for name, length in lengths.items() if length > 350} == {}


def test_no_function_is_long() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}": node.end_lineno - node.lineno + 1
        for path in (ROOT / "vaebm").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    }
    assert len(lengths) > 1000 and {name: length for name, length in lengths.items() if length >= 80} == {}
