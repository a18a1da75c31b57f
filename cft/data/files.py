"""A user's own files, row by row: CSV, TSV, JSONL (each also gzipped) and Parquet.

Every problem is told by the file, the data row (counted from 1), the line where there are lines, the column, and
what to do. Problems of a row can be skipped; problems of the whole file cannot.
"""

import csv
import gzip
import json
import math
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

from cft.data.records import ScoredPair, Triplet
from cft.system.errors import UserError, first_line
from cft.system.text import did_you_mean, nearest

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".txt", ".txt.gz")
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz", ".parquet")

# The csv module refuses texts above 131,072 characters by itself; this is the most that every platform takes.
_LONGEST_CELL = 2**31 - 1
_MOST_COLUMNS_TOLD = 20
_MOST_REASONS_TOLD = 3
# A message is to be read in one look, whatever a file holds: so many characters of a value, a name, all names, a cause.
_VALUE_TOLD = 60
_NAME_TOLD = 40
_NAMES_TOLD = 160
_CAUSE_TOLD = 160

# How files begin that are no text in UTF-8, and what they are. No text begins so: of Parquet and zip, the last byte
# told is a control character that has no place in one, and the others are not UTF-8.
_SAVE_AS_UTF8 = "save it as UTF-8"
_FOREIGN = {
    b"\xff\xfe\0\0": f"is text in UTF-32; {_SAVE_AS_UTF8}",
    b"\0\0\xfe\xff": f"is text in UTF-32; {_SAVE_AS_UTF8}",
    b"\xff\xfe": f"is text in UTF-16; {_SAVE_AS_UTF8}",
    b"\xfe\xff": f"is text in UTF-16; {_SAVE_AS_UTF8}",
    b"PAR1\x15": "holds Parquet; let its name end in .parquet",
    b"PK\x03\x04": "is a zip file or a spreadsheet; unpack it, or save it as CSV",
}
_GZIP = b"\x1f\x8b"
_LONGEST_FOREIGN = 5

# Of a value's nested lists and objects, the outermost are told; six levels of them are a book.
_REPR = reprlib.Repr()
_REPR.maxlevel = 2

_Converted = TypeVar("_Converted")


class BadRows(str, Enum):
    """What to do with a row that cannot be used."""

    RAISE = "raise"
    SKIP = "skip"


@dataclass(frozen=True)
class Skipped:
    """A row that was left out, and why."""

    where: str
    reason: str


class _BadRow(Exception):
    """A reason why one row cannot be used."""


class _RawRow(NamedTuple):
    """One data row: its number from 1, its first line if the format has lines, and its cells by column.

    A row that has no cells to speak of holds the reason instead.
    """

    number: int
    line: int | None
    cells: dict[str, Any] | _BadRow


@dataclass(frozen=True)
class _Source:
    """A file, what is wanted from it, and the words that errors about it need.

    key: the config key that named the file. columns: each needed column and the config key that names it, or "".
    column_advice, row_advice: what to do about a missing column and a bad row. lines: whether files of plain lines
    are taken too, each a text of the only column.
    """

    path: Path
    key: str
    columns: dict[str, str]
    column_advice: str
    row_advice: str
    lines: bool = False

    @property
    def ending(self) -> str:
        """The file's format, such as `.csv.gz`."""
        endings = (*_LINES, *ENDINGS) if self.lines else ENDINGS
        for ending in endings:
            if self.path.name.lower().endswith(ending):
                return ending
        raise self.fail(f"unknown kind of file; these are read: {', '.join(endings)}")

    def place(self, row: _RawRow) -> str:
        """A row as messages call it."""
        line = "" if row.line is None else f":{row.line}"
        return f"data row {row.number} ({_printable(self.path.name)}{line})"

    def fail(self, problem: str) -> UserError:
        """An error about the file as a whole."""
        path = _printable(str(self.path))
        return UserError(f"{self.key}={path}: {problem}" if self.key else f"{path}: {problem}")


def stream_triplets(
    path: str | Path,
    *,
    anchor: str,
    positive: str,
    negatives: Sequence[str],
    on_bad_row: BadRows = BadRows.RAISE,
    key: str = "data.train",
) -> Iterator[Triplet | Skipped]:
    """Read training triplets one after the other.

    Args:
        path: the file.
        anchor: column of the anchor.
        positive: column of its positive.
        negatives: columns of hard negatives: none, one or several. A cell may hold a list of texts (JSONL, Parquet);
            empty cells of the second column and later mean that the row has fewer negatives.
        on_bad_row: stop at a bad row, or leave it out.
        key: the config key that named the file, for messages.

    Yields:
        The triplets, texts verbatim, and the rows that were left out.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    assert not isinstance(negatives, str), "a text is a sequence of texts too, but not of columns"
    source = _Source(
        Path(path),
        key,
        {name: "data.negative_columns" for name in negatives}
        | {positive: "data.positive_column", anchor: "data.anchor_column"},
        column_advice="Set data.anchor_column, data.positive_column and data.negative_columns to columns of the file "
        "(pairs without negatives: data.negative_columns='[]' loss=in_batch)",
        row_advice="mend or drop it, or set data.on_bad_row=skip",
    )

    def triplet(cells: dict[str, Any]) -> Triplet:
        return Triplet(
            _text(cells, anchor, "anchor"), _text(cells, positive, "positive"), _all_negatives(cells, negatives)
        )

    return _stream(source, triplet, on_bad_row)


def read_scored_pairs(
    path: str | Path,
    *,
    sentence1: str = "sentence1",
    sentence2: str = "sentence2",
    score: str = "score",
    on_bad_row: BadRows = BadRows.RAISE,
    key: str = "eval.folder",
) -> tuple[list[ScoredPair], list[Skipped]]:
    """Read pairs of sentences with scores on any scale.

    Args:
        path: the file.
        sentence1: column of the first sentence.
        sentence2: column of the second sentence.
        score: column of the score, a finite number.
        on_bad_row: stop at a bad row, or leave it out.
        key: the config key that named the file, for messages.

    Returns:
        The pairs, texts verbatim, and the rows that were left out.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    source = _Source(
        Path(path),
        key,
        dict.fromkeys((sentence1, sentence2, score), ""),
        column_advice=f"Scored pairs need the columns {sentence1!r}, {sentence2!r} and {score!r}",
        # No config key leaves evaluation rows out: scores on other rows than everybody's compare with nothing.
        row_advice="mend or drop it",
    )

    def pair(cells: dict[str, Any]) -> ScoredPair:
        return ScoredPair(
            _text(cells, sentence1, "sentence1"), _text(cells, sentence2, "sentence2"), _number(cells, score, "score")
        )

    found = list(_stream(source, pair, on_bad_row))
    return [row for row in found if isinstance(row, ScoredPair)], [row for row in found if isinstance(row, Skipped)]


def stream_texts(
    path: str | Path, *, column: str = "text", on_bad_row: BadRows = BadRows.RAISE
) -> Iterator[str | Skipped]:
    """Read texts one after the other.

    Args:
        path: the file, of rows or of plain lines.
        column: that holds the texts; not looked at in files of plain lines.
        on_bad_row: stop at a bad row, or leave it out.

    Yields:
        The texts, verbatim, and the rows that were left out.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    source = _Source(
        Path(path),
        "",
        {column: "column"},
        column_advice="Set column= to a column of the file",
        row_advice="mend or drop it, or set on_bad_row=skip",
        lines=True,
    )
    return _stream(source, lambda cells: _text(cells, column, "text"), on_bad_row)


# Reading: from a file to numbered rows


def _stream(
    source: _Source, convert: Callable[[dict[str, Any]], _Converted], on_bad_row: BadRows
) -> Iterator[_Converted | Skipped]:
    """Convert every row of a file, and word what goes wrong with the file itself."""
    used = skipped = 0
    reasons: list[Skipped] = []
    try:
        _check_path(source)
        for row in _convert_rows(source, convert, on_bad_row):
            if isinstance(row, Skipped):
                skipped += 1
                reasons += [row] if skipped <= _MOST_REASONS_TOLD else []
            else:
                used += 1
            yield row
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise source.fail(f"not a whole gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        raise source.fail(f"cannot be read ({error.strerror or error})") from error
    if not used and skipped:
        told = "; ".join(f"{row.where} {row.reason}" for row in reasons)
        raise source.fail(f"none of its {skipped} rows can be used: {told}")
    if not used:
        raise source.fail("has no data rows")


def _convert_rows(
    source: _Source, convert: Callable[[dict[str, Any]], _Converted], on_bad_row: BadRows
) -> Iterator[_Converted | Skipped]:
    for row in _rows(source):
        try:
            if isinstance(row.cells, _BadRow):
                raise row.cells
            yield convert(row.cells)
        except _BadRow as reason:
            if on_bad_row is BadRows.RAISE:
                raise UserError(f"{source.place(row)} {reason}; {source.row_advice}") from None
            yield Skipped(source.place(row), str(reason))


def _check_path(source: _Source) -> None:
    path, folder = source.path, source.path.parent
    if path.is_dir():
        raise source.fail("is a folder; name a file in it")
    if path.is_symlink() and not path.exists():
        raise source.fail(f"is a link to {_printable(str(path.readlink()))}, which is not there")
    if not path.exists():
        if not folder.is_dir():
            raise source.fail(f"no such file, nor is there a folder {_printable(str(folder))}")
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
        guess = did_you_mean(path.name, names, show=lambda name: _printable(str(folder / name)))
        raise source.fail(f"no such file{guess}")
    if not path.is_file():
        # files are read more than once, and before that as a whole: a pipe would wait, a device need not end
        raise source.fail("is a pipe or a device, not a regular file; write what it gives to a file first")
    if path.stat().st_size == 0:
        raise source.fail("is empty")


def _rows(source: _Source) -> Iterator[_RawRow]:
    return _parquet_rows(source) if source.ending == ".parquet" else _text_rows(source)


def _text_rows(source: _Source) -> Iterator[_RawRow]:
    delimiter = _DELIMITERS.get(source.ending.removesuffix(".gz"))
    _check_beginning(source)
    try:
        with _open_text(source) as stream:
            if source.ending in _LINES:
                yield from _plain_rows(source, stream)
            elif delimiter is None:
                yield from _json_rows(source, stream)
            else:
                yield from _delimited_rows(source, stream, delimiter)
    except UnicodeDecodeError as error:
        line = _undecodable_line(source)
        raise source.fail(f"line {line} is not valid UTF-8 ({error.reason}); save the file as UTF-8") from error


def _check_beginning(source: _Source) -> None:
    """Refuse what is no text in UTF-8 by saying what it is: "save it as UTF-8" would help little with a spreadsheet."""
    zipped = source.ending.endswith(".gz")
    with gzip.open(source.path, "rb") if zipped else source.path.open("rb") as stream:
        begin = stream.read(_LONGEST_FOREIGN)
    for mark, problem in _FOREIGN.items():
        if begin.startswith(mark):
            raise source.fail(problem)
    if begin.startswith(_GZIP):
        raise source.fail("is gzip within gzip; unpack it once" if zipped else "is gzip; let its name end in .gz")
    if [sign == 0 for sign in begin[:4]] in ([False, True] * 2, [True, False] * 2):
        raise source.fail(f"looks like text in UTF-16 (every other byte is NUL); {_SAVE_AS_UTF8}")


def _open_text(source: _Source, errors: str = "strict") -> TextIO:
    """Open a text file without its byte order mark, leaving line ends inside quotes to the csv module."""
    if source.ending.endswith(".gz"):
        return gzip.open(source.path, "rt", encoding="utf-8-sig", errors=errors, newline="")
    return source.path.open(encoding="utf-8-sig", errors=errors, newline="")


def _undecodable_line(source: _Source) -> int:
    """The first line that is not UTF-8.

    Decoding runs ahead of the lines by a buffer, so that the failing read itself cannot tell. Read once more, with
    each bad byte turned into a surrogate, which valid UTF-8 never gives.
    """
    with _open_text(source, errors="surrogateescape") as stream:
        return next(line for line, text in enumerate(stream, start=1) if _has_surrogate(text))


def _plain_rows(source: _Source, stream: TextIO) -> Iterator[_RawRow]:
    (column,) = source.columns
    for number, line in enumerate(stream, start=1):
        yield _RawRow(number, number, {column: line.rstrip("\r\n")})


def _delimited_rows(source: _Source, stream: TextIO, delimiter: str) -> Iterator[_RawRow]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    number, start = 0, 1
    try:
        # A blank line is no row, neither here nor below.
        header = next(filter(None, reader), None)
        if header is None:
            raise source.fail("is empty")
        _check_columns(source, header)
        start = reader.line_num + 1
        for cells in reader:
            if cells:
                number += 1
                yield _RawRow(number, start, _by_column(header, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise source.fail(
            f"the row that starts on line {start} has broken quoting ({_printable(str(error))}); "
            'put a text that begins with " in quotes and double the quotes within'
        ) from error


def _by_column(header: list[str], cells: list[str]) -> dict[str, Any] | _BadRow:
    if len(cells) == len(header):
        return dict(zip(header, cells, strict=True))
    amount = "many" if len(cells) > len(header) else "few"
    return _BadRow(f"has too {amount} cells: {len(cells)} where the header has {len(header)}")


def _json_rows(source: _Source, stream: TextIO) -> Iterator[_RawRow]:
    number, checked = 0, False
    for line, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        number += 1
        cells = _json_object(text)
        if not checked and isinstance(cells, dict):
            _check_keys(source, cells)
            checked = True
        yield _RawRow(number, line, cells)


def _json_object(text: str) -> dict[str, Any] | _BadRow:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return _BadRow(f"is not valid JSON ({error.msg} at character {error.pos + 1}); a line holds one object")
    except RecursionError:
        return _BadRow("is not JSON that can be read (brackets within brackets, too many)")
    except ValueError:
        return _BadRow("is not JSON that can be read (a number of thousands of digits)")
    return value if isinstance(value, dict) else _BadRow(f"is not a JSON object but {_described(value)}")


def _check_keys(source: _Source, first: dict[str, Any]) -> None:
    """Refuse a file of which no object has a needed key.

    Objects may leave out keys, so that one which the first lacks is looked for in the whole file: without it in any,
    the column's name is wrong; with it in some, rows are judged one by one.
    """
    if source.columns.keys() <= first.keys():
        return
    with _open_text(source) as stream:
        objects = (cells for cells in map(_json_object, stream) if isinstance(cells, dict))
        found = dict.fromkeys(key for cells in objects for key in cells)
    _check_columns(source, list(found))


def _parquet_rows(source: _Source) -> Iterator[_RawRow]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    number = 0
    # Opened here, for then an OSError inside comes from the content (pyarrow raises it for pages it cannot read).
    with source.path.open("rb") as stream:
        try:
            table = parquet.ParquetFile(stream)
            _check_columns(source, table.schema_arrow.names)
            for batch in table.iter_batches(columns=list(source.columns)):
                for cells in zip(*batch.columns, strict=True):
                    number += 1
                    row = dict(zip(batch.schema.names, cells, strict=True))
                    yield _RawRow(number, None, _from_arrow(row, arrow.ArrowException))
        except UnicodeDecodeError as error:
            where = f"data row {number}" if number else "the name of a column"
            raise source.fail(f"{where} is not valid UTF-8 ({error.reason}); write it as UTF-8") from error
        except (arrow.ArrowException, OSError) as error:
            # pyarrow passes on names of what was thrown within, which tell a user nothing
            cause = _cut(_printable(re.sub(r"\w+Exception: ", "", first_line(error))), _CAUSE_TOLD)
            raise source.fail(f"not a whole Parquet file ({cause}); fetch or write it again") from error


def _from_arrow(cells: dict[str, Any], of_arrow: type[Exception]) -> dict[str, Any] | _BadRow:
    """Arrow's cells as Python's; some have no like there, such as a date in a million years."""
    found = {}
    for name, cell in cells.items():
        try:
            found[name] = cell.as_py()
        except UnicodeDecodeError:
            raise
        except (ValueError, ArithmeticError, LookupError, of_arrow):  # a TypeError of Python's own is a defect of ours
            return _BadRow(f"has a {cell.type} in column {_named(name)} that cannot be read")
    return found


def _check_columns(source: _Source, found: list[str]) -> None:
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise source.fail(f"has the column {_named(twice[0])} more than once; rename one")
    for name, key in source.columns.items():
        if name not in found:
            named = f" ({key} names it)" if key else ""
            near = _nearest(name, found)
            guess = "" if near is None else f" Did you mean {_named(near)}?"
            raise source.fail(
                f"has no column {name!r}{named}; its columns are {_listed(found)}.{guess} {source.column_advice}."
            )


def _nearest(name: str, found: list[str]) -> str | None:
    """The column that was meant, whatever its case and the blanks around it."""
    folded = {each.strip().casefold(): each for each in reversed(found)}
    near = nearest(name.strip().casefold(), folded)
    return folded[near] if near else None


def _listed(names: list[str]) -> str:
    """The first names: few enough to be read, and at least one."""
    told: list[str] = []
    for name in map(_named, names[:_MOST_COLUMNS_TOLD]):
        if told and len(", ".join([*told, name])) > _NAMES_TOLD:
            break
        told.append(name)
    more = len(names) - len(told)
    return (", ".join(told) or "none") + (f" and {more} more" if more else "")


# Validation: from cells to texts and numbers, the same for every format


def _text(cells: dict[str, Any], column: str, role: str) -> str:
    what = _called(role, column)
    return _checked_text(_cell(cells, column, what), what)


def _all_negatives(cells: dict[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for place, column in enumerate(columns):
        if place == 0 or not _is_blank(cells.get(column)):
            found += _negatives(cells, column)
    return tuple(found)


def _negatives(cells: dict[str, Any], column: str) -> list[str]:
    """The hard negatives of one cell, which holds a text or a list of texts."""
    what = _called("negative", column)
    value = _cell(cells, column, what)
    if value == []:
        raise _BadRow(f"has an empty list as {what}")
    return [_checked_text(text, what) for text in (value if isinstance(value, list) else [value])]


def _is_blank(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _number(cells: dict[str, Any], column: str, role: str) -> float:
    what = _called(role, column)
    value = _cell(cells, column, what)
    number = _as_float(value)
    if not math.isfinite(number):
        raise _BadRow(f"has {_described(value)} as {what}, which is not a finite number")
    return number


def _as_float(value: Any) -> float:
    """A float, or NaN for what is no number.

    Python reads true as 1 and "4_4", as often a slip for 4.4, as 44: neither is a score.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str) or "_" in str(value):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _cell(cells: dict[str, Any], column: str, what: str) -> Any:
    if column not in cells:
        raise _BadRow(f"has no {what}")
    if cells[column] is None:
        raise _BadRow(f"has no {what}: the cell is null")
    return cells[column]


def _checked_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _BadRow(f"has {_described(value)} as {what}, which is not a text")
    if not value.strip():
        raise _BadRow(f"has an empty {what}")
    if "\0" in value:
        raise _BadRow(f"has a NUL byte in {what}")
    if _has_surrogate(value):
        raise _BadRow(f"has half a character (an unpaired surrogate) in {what}")
    return value


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _called(role: str, column: str) -> str:
    """A cell as messages call it, by what it is for and by where it is."""
    return f"{role!r}" if role == column else f"{role!r} (column {column!r})"


def _described(value: Any) -> str:
    """A value and its type, cut short."""
    return "null" if value is None else f"{_cut(_REPR.repr(value), _VALUE_TOLD)} ({type(value).__name__})"


def _named(column: str) -> str:
    """A column's name in quotes, cut short: without a header it is a text of the first row."""
    return _cut(repr(column[: _NAME_TOLD * 2]), _NAME_TOLD)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _printable(text: str) -> str:
    """A text that cannot upset a terminal nor break a line: what is not printable stands as Python writes it."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
