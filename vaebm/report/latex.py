r"""The table as LaTeX: one `table` per experiment and per table of the paper, for \input into a document that loads booktabs."""

from __future__ import annotations

import re

from vaebm.records.metrics import arrowed
from vaebm.report.paper import Paper
from vaebm.report.table import LEGEND, Measured, overview, paper_cells

HEAD = "% \\input this file into a document that has \\usepackage{booktabs} in its preamble. Nothing else is needed."

SYMBOLS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "–": "--",
    "ε": r"$\varepsilon$", "σ": r"$\sigma$", "η": r"$\eta$",
}  # fmt: skip
"""Character → what prints it; those that are special to LaTeX, and those outside ASCII that our names and the paper's have."""

CHARACTER, GAP, PAGE = 4.25, 8.0, 500.0
"""Estimates in points at \\footnotesize: of a digit, of the space between two columns, and of a page without narrow margins."""

WITHOUT = "; spreads and intervals stand in benchmarks.csv"


def escape(text: str) -> str:
    """`text` as LaTeX that prints it, a minus before a digit as one; letters outside ASCII are left as they are, LaTeX reads UTF-8."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return "".join(SYMBOLS.get(character, character) for character in text)


def _row(cells: list[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def _pairs(metrics: list[str]) -> list[str]:
    """The upper line of a header, each metric over its two columns, and the rules below it."""
    over = "".join(rf" & \multicolumn{{2}}{{c}}{{{escape(metric)}}}" for metric in metrics) + r" \\"
    return [over, "".join(rf"\cmidrule(lr){{{column}-{column + 1}}}" for column in range(2, 2 + 2 * len(metrics), 2))]


def width(header: list[str], rows: list[list[str]]) -> float:
    """About how wide a table is, in points."""
    return sum(CHARACTER * max(map(len, column)) + GAP for column in zip(header, *rows, strict=True))


def tabular(title: str, header: list[str], rows: list[list[str]], above: list[str] | None = None) -> list[str]:
    """The lines of a `table` with its caption, the first column left-aligned and the others right-aligned.

    Args:
        above: lines between the upper rule and the header.
    """
    return [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escape(title)}}}",
        r"\makebox[\textwidth][c]{%",  # what is wider than the text stands in the middle of the page
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        *(above or []),
        _row(header),
        r"\midrule",
        *map(_row, rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def latex(measured: Measured, paper: Paper) -> str:
    """What was measured, experiment by experiment, then the paper's tables with our figures beside."""
    tables = []
    for experiment, variants in measured.records.items():
        fits = width(*overview(variants)) <= PAGE
        tables.append(tabular(f"Measured: {experiment}{'' if fits else WITHOUT}", *overview(variants, certain=fits)))
    for table in paper.tables:
        header, rows = (
            ["model", *["paper", "measured"] * len(table.metrics)],
            [paper_cells(table, row, measured) for row in table.rows],
        )
        tables.append(tabular(table.title, header, rows, _pairs([arrowed(metric) for metric in table.metrics])))
    return "\n".join([HEAD, f"% {LEGEND}".replace("±", "+-"), *("\n" + "\n".join(lines) for lines in tables), ""])
