"""Tables as text for a terminal, Markdown for a page, CSV for a spreadsheet and LaTeX for a paper."""

import csv
import io
import re
from collections.abc import Sequence

from tabulate import tabulate

Row = tuple[str, ...]


def as_text(table: Sequence[Row]) -> str:
    """The table for a terminal; its first row is the header."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    ruled = [table[0], tuple("-" * width for width in widths), *table[1:]]
    return _aligned(ruled, "plain")


def as_lines(facts: Sequence[tuple[str, str]]) -> str:
    """Names and what is to be said of each, a line a fact."""
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name.ljust(width)}  {text}".rstrip() for name, text in facts)


def as_markdown(table: Sequence[Row], *, left: bool = False) -> str:
    """The table for a page: numbers to the right, or all words to the left.

    Cells are not padded: tabulate's Markdown would make every row of a page as long as its longest cell.
    """
    header, *rows = [tuple(map(_in_markdown, row)) for row in table]
    lines = ["| " + " | ".join(header) + " |", "| --- |" + (" --- |" if left else " ---: |") * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _in_markdown(cell: str) -> str:
    """A cell without what would be a tag on the page that a README becomes, or the end of the cell."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", cell).replace("|", "\\|")


def as_csv(table: Sequence[Row]) -> str:
    """The table for a spreadsheet."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(table)
    return stream.getvalue()


# What a backslash before a sign does not give the sign.
_IN_LATEX = {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}


def as_latex(table: Sequence[Row], caption: str) -> str:
    """The table for a paper that uses the booktabs package."""
    body = _aligned(table, "latex_booktabs", headers="firstrow").replace("±", r"$\pm$").replace("—", "---")
    caption = re.sub(r"[&%$#_{}~^\\]", lambda sign: _IN_LATEX.get(sign[0], f"\\{sign[0]}"), caption)
    return "\n".join([r"\begin{table}", r"\centering", body, rf"\caption{{{caption}}}", r"\end{table}"])


def _aligned(table: Sequence[Row], form: str, **settings: str) -> str:
    """The first column to the left, the others to the right; cells as they are."""
    alignment = ["left"] + ["right"] * (len(table[0]) - 1)
    return tabulate(
        table, tablefmt=form, colalign=alignment, disable_numparse=True, preserve_whitespace=True, **settings
    )
