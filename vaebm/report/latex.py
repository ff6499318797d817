r"""The results as LaTeX: one `table` per experiment and per table of the paper, for \input, with booktabs."""

import re

from vaebm.records.metrics import with_direction
from vaebm.report.paper import Paper
from vaebm.report.table import LEGEND, Measured, overview, paper_cells

HEAD = "% \\input this file into a document that has \\usepackage{booktabs} in its preamble. Nothing else is needed."

SYMBOLS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "–": "--",
    "ε": r"$\varepsilon$", "σ": r"$\sigma$", "η": r"$\eta$",
}  # fmt: skip
"""Character → LaTeX that prints it."""

CHARACTER, GAP, PAGE = 4.25, 8.0, 500.0
"""Estimated widths in points at \\footnotesize: digit, space between columns, page."""

WITHOUT = "; spreads and intervals stand in benchmarks.csv"


def escape(text: str) -> str:
    """Escape text for LaTeX; a hyphen before a digit becomes a minus."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return "".join(SYMBOLS.get(character, character) for character in text)


def _row(cells: list[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def _pairs(metrics: list[str]) -> list[str]:
    """The upper header line, each metric over its two columns, and its rules."""
    over = "".join(rf" & \multicolumn{{2}}{{c}}{{{escape(metric)}}}" for metric in metrics) + r" \\"
    return [over, "".join(rf"\cmidrule(lr){{{column}-{column + 1}}}" for column in range(2, 2 + 2 * len(metrics), 2))]


def width(header: list[str], rows: list[list[str]]) -> float:
    """Estimated width of a table in points."""
    return sum(CHARACTER * max(map(len, column)) + GAP for column in zip(header, *rows, strict=True))


def tabular(title: str, header: list[str], rows: list[list[str]], above: list[str] | None = None) -> list[str]:
    """The lines of a `table` with caption, first column left-aligned, the others right-aligned.

    Args:
        above: lines between the upper rule and the header.
    """
    return [
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escape(title)}}}",
        r"\makebox[\textwidth][c]{%",  # centres a table wider than the text
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
    """All experiments, then the paper's tables with our values."""
    tables = []
    for experiment, variants in measured.records.items():
        fits = width(*overview(variants)) <= PAGE
        tables.append(tabular(f"Measured: {experiment}{'' if fits else WITHOUT}", *overview(variants, certain=fits)))
    for table in paper.tables:
        header = ["model", *["paper", "measured"] * len(table.metrics)]
        rows = [paper_cells(table, row, measured) for row in table.rows]
        tables.append(tabular(table.title, header, rows, _pairs([with_direction(metric) for metric in table.metrics])))
    return "\n".join([HEAD, f"% {LEGEND}".replace("±", "+-"), *("\n" + "\n".join(lines) for lines in tables), ""])
