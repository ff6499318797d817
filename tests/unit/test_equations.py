"""docs/explanation/model.md: each link to code names something that the linked module defines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "model.md"


def defined(body: list[ast.stmt], prefix: str = "") -> set[str]:
    """Dotted names of the functions, classes, methods and constants in a program."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            found |= defined(node.body, f"{prefix}{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_links_of_the_equations_name_what_the_module_defines() -> None:
    links = re.findall(r"\[`([^`]+)`\]\(([^)]+\.py)\)", PAGE.read_text())
    assert len(links) > 80
    for name, path in links:
        program = (PAGE.parent / path).resolve()
        assert name in defined(ast.parse(program.read_text()).body), f"{name} in {path}"


def test_every_row_of_an_equation_has_a_link() -> None:
    text = PAGE.read_text().partition("## Kernels")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| what", "|---"))]
    assert len(rows) > 60 and [row for row in rows if ".py)" not in row] == []
