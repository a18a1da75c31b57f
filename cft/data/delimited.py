"""Delimited text (CSV, TSV and their kin): which sign separates the cells, and what quotation marks mean.

Nothing here knows a file: lines go in, records come out.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cft.config.schema import DELIMITERS

# The csv module's own limit is 131,072 characters; this is the largest that every platform takes.
_MAX_CELL = 2**31 - 1

# Excel's first line, by which it is told the delimiter.
_SEP_LINE = re.compile(r'"?sep=(?P<delimiter>[^"\r\n])"?\s*', re.IGNORECASE)

_Lines = Iterable[str]  # with their ends


class Record(NamedTuple):
    """One row of a delimited text."""

    line: int  # that it starts on, from 1
    lines: int  # that it goes over
    cells: list[str]  # empty for a blank line
    lines_fit: bool = True  # whether each of its lines has as many cells as the header, split wherever a delimiter is

    @property
    def joins_rows(self) -> bool:
        """Whether an unpaired quotation mark may have joined several rows into this one."""
        return self.lines > 1 and self.lines_fit and len(self.cells) > 1


class BrokenQuoting(Exception):
    """A record whose quotation marks do not pair."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line  # that the record starts on


@dataclass(frozen=True)
class Dialect:
    """How a delimited text is written."""

    delimiter: str
    literal: bool = False  # whether quotation marks are part of the texts, as in GLUE's files
    after: int = 0  # lines at the beginning that are not rows


def name_of(delimiter: str) -> str:
    """A delimiter in words."""
    return next((name for name, sign in DELIMITERS.items() if sign == delimiter), repr(delimiter))


def sign_of(name: str | None) -> str | None:
    """A delimiter out of its name, such as `semicolon`; a sign stands for itself."""
    return None if name is None else DELIMITERS.get(name, name)


def separator_line(lines: _Lines) -> tuple[int, str | None]:
    """Excel's line `sep=;` at the top: how many lines it and blank ones take, and the delimiter; 0 and None without."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = _SEP_LINE.fullmatch(line)
            return (number, found["delimiter"]) if found else (0, None)
    return 0, None


def header(lines: _Lines, delimiter: str) -> list[str]:
    """Names of the columns, read by a delimiter; none if they cannot be read by it."""
    csv.field_size_limit(_MAX_CELL)
    try:
        return next(filter(None, csv.reader(lines, delimiter=delimiter, strict=True)), [])
    except csv.Error:
        return []


def choose_delimiter(usual: str, header_by: Callable[[str], list[str]], fits: Callable[[list[str]], bool]) -> str:
    """The usual delimiter if it gives the needed columns, else another that does; else what gives most columns.

    Args:
        usual: for the file's ending.
        header_by: names of the columns by a delimiter.
        fits: whether they hold what is needed.
    """
    for delimiter in dict.fromkeys((usual, *DELIMITERS.values())):
        if fits(header_by(delimiter)):
            return delimiter
    return max(dict.fromkeys((usual, *DELIMITERS.values())), key=lambda sign: len(header_by(sign)))


def records(lines: _Lines, dialect: Dialect) -> Iterator[Record]:
    """The header and the rows of a text, in their order.

    Raises:
        BrokenQuoting: if quotation marks do not pair, unless they are literal.
    """
    csv.field_size_limit(_MAX_CELL)
    recent: list[str] = []  # lines of the record that is being read

    def recorded() -> Iterator[str]:
        for number, line in enumerate(lines, start=1):
            if number > dialect.after:
                recent.append(line)
                yield line

    reader = csv.reader(
        recorded(),
        delimiter=dialect.delimiter,
        strict=True,
        quoting=csv.QUOTE_NONE if dialect.literal else csv.QUOTE_MINIMAL,
    )
    start, width = dialect.after + 1, 0
    try:
        for cells in reader:
            width = width or len(cells)
            fit = all(_cells_of(line, dialect.delimiter) == width for line in recent)
            yield Record(start, len(recent), cells, fit)
            start += len(recent)
            recent.clear()
    except csv.Error as error:
        raise BrokenQuoting(start, str(error)) from error


def quotes_are_literal(lines: Callable[[], Iterator[str]], dialect: Dialect) -> bool:
    """Whether quotation marks in a text separated by tabs are part of its texts.

    Spreadsheets and pandas put a cell that holds a tab, a quote or a line break in quotes, and double the quotes in
    it; files such as GLUE's know no quoting, so that a cell may begin with a quote that never closes. A header in
    quotes decides for quoting. Otherwise what makes sense in one reading only is counted, up to the first broken
    quoting, and the greater number decides:

    - for quoting: rows with the header's number of cells whose lines by themselves have another, and doubled quotes;
    - for literal quotes: rows each of whose lines has the header's number of cells by itself, which with quoting are
      joined, have another number of cells, or are broken.

    Args:
        lines: opens the text anew. dialect: its delimiter.
    """
    first = next((line for line in _after(lines(), dialect.after) if line.strip()), "")
    if re.search(rf'(?:^|{re.escape(dialect.delimiter)})"', first):
        return False
    doubled = re.compile(rf'(?:^|{re.escape(dialect.delimiter)})"(?:[^"{re.escape(dialect.delimiter)}]|"")*""[^"]')
    width = _cells_of(first, dialect.delimiter)
    quoted = literal = 0

    def watched() -> Iterator[str]:
        nonlocal quoted
        for line in lines():
            quoted += '""' in line and doubled.search(line) is not None
            yield line

    try:
        for record in records(watched(), dialect):
            fits = len(record.cells) == width
            quoted += bool(record.cells) and fits and not record.lines_fit
            literal += bool(record.cells) and record.lines_fit and (record.joins_rows or not fits)
    except BrokenQuoting as error:
        broken = next(_after(lines(), error.line - 1), "")
        literal += _cells_of(broken, dialect.delimiter) == width
    return literal > quoted


def _after(lines: Iterator[str], count: int) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number >= count:
            yield line


def _cells_of(line: str, delimiter: str) -> int:
    """Cells of a line that is split wherever the delimiter stands."""
    return line.count(delimiter) + 1
