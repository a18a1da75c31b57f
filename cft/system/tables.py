"""Tables for people, and the same ones for a README, a spreadsheet and a paper."""

import csv
import io
import re
from collections.abc import Sequence

Row = tuple[str, ...]


def as_text(table: Sequence[Row]) -> str:
    """The table for a terminal."""
    header, *rows = table
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]

    def line(row: Row) -> str:
        first = row[0].ljust(widths[0])
        return "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows)])


def as_markdown(table: Sequence[Row], *, left: bool = False) -> str:
    """The table for a README; its numbers stand to the right, or all its words to the left."""
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


_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$", "—": "---"}


def as_latex(table: Sequence[Row], caption: str) -> str:
    """The table for a paper that uses the booktabs package."""

    def line(row: Row) -> str:
        escaped = [re.sub(r"[&%$#_{}~^\\±—]", lambda found: _LATEX[found[0]], cell) for cell in row]
        return " & ".join(escaped) + r" \\"

    header, *rows = table
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            line(header),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{line((caption,)).removesuffix(chr(92) * 2).strip()}}}",
            r"\end{table}",
        ]
    )
