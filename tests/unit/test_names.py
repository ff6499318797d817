"""Names: one public name at the top level of a module means one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "vaebm"
SHARED = {"run": "the entry of a stage"}
"""Names that several modules define → their one meaning."""


def defined(program: str) -> Iterator[str]:
    """The public names that the top level of a program defines."""
    for node in ast.parse(program).body:
        targets: list[ast.expr] = []
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                targets = [ast.Name(name)]
            case ast.Assign():
                targets = node.targets
            case ast.AnnAssign():
                targets = [node.target]
        names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        yield from (name for name in names if not name.startswith("_"))


def shared(programs: dict[str, str]) -> dict[str, list[str]]:
    """Name → the modules that define it, if there are several."""
    modules = defaultdict(list)
    for module, program in programs.items():
        for name in defined(program):
            modules[name].append(module)
    return {name: found for name, found in modules.items() if len(found) > 1}


def test_one_name_means_one_thing() -> None:
    programs = {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    assert len(programs) > 100
    found = shared(programs)
    assert {name: modules for name, modules in found.items() if name not in SHARED} == {}
    assert found.keys() == SHARED.keys(), "a listed name that one module defines needs no listing"


def test_a_name_of_two_modules_is_found() -> None:
    programs = {"a": "A, B = 1, 2\nclass C: pass", "b": "B: int = 3\n_C = 4", "c": "def C(): return B"}
    assert shared(programs) == {"B": ["a", "b"], "C": ["a", "c"]}
