r"""The results as LaTeX: one `table` per experiment and per table of the paper, for \input, with booktabs."""

import re

from vaebm.records.metrics import with_direction
from vaebm.records.templates import render
from vaebm.report.paper import Paper
from vaebm.report.table import LEGEND, Measured, overview, paper_cells

SYMBOLS = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "–": "--",
    "ε": r"$\varepsilon$", "σ": r"$\sigma$", "η": r"$\eta$",
})  # fmt: skip
"""Character → LaTeX that prints it."""

CHARACTER, GAP, PAGE = 4.25, 8.0, 500.0
"""Estimated widths in points at \\footnotesize: digit, space between columns, page."""

WITHOUT = "; spreads and intervals are in benchmarks.csv"


def escape(text: str) -> str:
    """Escape text for LaTeX; a hyphen before a digit becomes a minus."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text).translate(SYMBOLS)


def width(header: list[str], rows: list[list[str]]) -> float:
    """Estimated width of a table in points."""
    return sum(CHARACTER * max(map(len, column)) + GAP for column in zip(header, *rows, strict=True))


def latex(measured: Measured, paper: Paper) -> str:
    """All experiments, then the paper's tables with our values."""
    tables: list[tuple[str, list[str], list[str], list[list[str]]]] = []
    for experiment, variants in measured.records.items():
        fits = width(*overview(variants)) <= PAGE
        title = f"Measured: {experiment}{'' if fits else WITHOUT}"
        tables.append((title, [], *overview(variants, certain=fits)))
    for table in paper.tables:
        header = ["model", *["paper", "measured"] * len(table.metrics)]
        rows = [paper_cells(table, row, measured) for row in table.rows]
        tables.append((table.title, [with_direction(name) for name in table.metrics], header, rows))
    return render("report/benchmarks.tex.j2", tables=tables, legend=LEGEND.replace("±", "+-"), escape=escape)
