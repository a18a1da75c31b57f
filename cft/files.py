"""A user's own files, row by row: CSV, TSV, JSONL (each also gzipped) and Parquet.

Every problem is told by the file, the data row (counted from 1), the line where there are lines, the column, and
what to do. Problems of a row can be skipped; problems of the whole file cannot.
"""

import csv
import difflib
import gzip
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TextIO, TypeVar

from cft.errors import UserError
from cft.records import ScoredPair, Triplet

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")
_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz", ".parquet")

Row = TypeVar("Row")


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


@dataclass(frozen=True)
class _Source:
    """A file, and the name of the config key that named it."""

    path: Path
    key: str

    def place(self, number: int, line: int | None) -> str:
        """A row as messages call it."""
        return f"data row {number} ({self.path.name}{'' if line is None else f':{line}'})"

    def fail(self, problem: str) -> UserError:
        """An error about the file as a whole."""
        return UserError(f"{self.key}={self.path}: {problem}")


# One data row: its number from 1, its line, and its cells by column; None for cells marks a broken row with a reason.
_Numbered = tuple[int, int | None, dict[str, Any] | _BadRow]


def read_triplets(
    path: str | Path,
    *,
    anchor: str,
    positive: str,
    negatives: Sequence[str],
    on_bad_row: BadRows = BadRows.RAISE,
    key: str = "data.train",
) -> tuple[list[Triplet], list[Skipped]]:
    """Read training triplets.

    Args:
        path: the file.
        anchor: column of the anchor. positive: column of its positive.
        negatives: columns of hard negatives: none, one or several. A cell may hold a list of texts (JSONL, Parquet);
            empty cells of the second column and later mean that the row has fewer negatives.
        on_bad_row: stop at a bad row, or leave it out.
        key: the config key that named the file, for messages.

    Returns:
        The triplets, texts verbatim, and the rows that were left out.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    columns = {anchor: "data.anchor_column", positive: "data.positive_column"}
    columns |= {name: "data.negative_columns" for name in negatives}

    def triplet(cells: dict[str, Any]) -> Triplet:
        found = [text for place, name in enumerate(negatives) for text in _negatives(cells, name, first=place == 0)]
        return Triplet(_text(cells, anchor, "anchor"), _text(cells, positive, "positive"), tuple(found))

    return _read(_Source(Path(path), key), columns, triplet, on_bad_row)


def read_scored_pairs(
    path: str | Path,
    *,
    sentence1: str = "sentence1",
    sentence2: str = "sentence2",
    score: str = "score",
    on_bad_row: BadRows = BadRows.RAISE,
    key: str = "eval.folder",
) -> tuple[list[ScoredPair], list[Skipped]]:
    """Read pairs of sentences with scores on any scale; arguments and errors as in `read_triplets`."""

    def pair(cells: dict[str, Any]) -> ScoredPair:
        return ScoredPair(_text(cells, sentence1, sentence1), _text(cells, sentence2, sentence2), _number(cells, score))

    return _read(_Source(Path(path), key), dict.fromkeys((sentence1, sentence2, score), ""), pair, on_bad_row)


def _read(
    source: _Source, columns: dict[str, str], convert: Callable[[dict[str, Any]], Row], on_bad_row: BadRows
) -> tuple[list[Row], list[Skipped]]:
    """Convert every row of a file; `columns` gives each needed column the config key that names it."""
    _check_path(source)
    rows: list[Row] = []
    skipped: list[Skipped] = []
    try:
        for number, line, cells in _rows(source, columns):
            try:
                if isinstance(cells, _BadRow):
                    raise cells
                rows.append(convert(cells))
            except _BadRow as reason:
                where = source.place(number, line)
                if on_bad_row is BadRows.RAISE:
                    raise UserError(f"{where} {reason}; mend or drop it, or set data.on_bad_row=skip") from None
                skipped.append(Skipped(where, str(reason)))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise source.fail(f"not a whole gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        raise source.fail(f"cannot be read ({error})") from error
    if not rows and skipped:
        reasons = "; ".join(f"{row.where} {row.reason}" for row in skipped[:3])
        raise source.fail(f"none of its {len(skipped)} rows can be used: {reasons}")
    if not rows:
        raise source.fail("has no data rows")
    return rows, skipped


def _check_path(source: _Source) -> None:
    path = source.path
    if path.is_dir():
        raise source.fail("is a folder; name a file in it")
    if not path.exists():
        folder = path.parent
        siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        raise source.fail("no such file" + (f"; did you mean {folder / near[0]}?" if near else ""))
    if not path.name.lower().endswith(_ENDINGS):
        raise source.fail(f"unknown kind of file; these are read: {', '.join(_ENDINGS)}")


def _rows(source: _Source, columns: dict[str, str]) -> Iterator[_Numbered]:
    name = source.path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(source, columns)
        return
    kind = Path(name.removesuffix(".gz")).suffix
    opener: Any = gzip.open if name.endswith(".gz") else open
    # utf-8-sig takes a byte order mark away; newline="" leaves line ends inside quotes to the csv module.
    with opener(source.path, "rt", encoding="utf-8-sig", newline="" if kind in _DELIMITERS else None) as stream:
        if kind in _DELIMITERS:
            yield from _delimited_rows(source, stream, _DELIMITERS[kind], columns)
        else:
            yield from _json_rows(source, stream, columns)


def _delimited_rows(source: _Source, stream: TextIO, delimiter: str, columns: dict[str, str]) -> Iterator[_Numbered]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts above 131,072 characters
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    number, start = 0, 1
    try:
        header = next(reader, None)
        if header is None:
            raise source.fail("is empty")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise source.fail(f"has the column {twice[0]!r} more than once; rename one")
        _check_columns(source, header, columns)
        start = reader.line_num + 1
        for cells in reader:
            if cells:  # a blank line is no row
                number += 1
                yield number, start, _named(header, cells)
            start = reader.line_num + 1
    except csv.Error as error:
        raise source.fail(f"line {start}: broken quoting ({error}); quote texts with \" and double quotes in them") from error
    except UnicodeDecodeError as error:
        raise _undecodable(source, start, error) from error


def _named(header: list[str], cells: list[str]) -> dict[str, Any] | _BadRow:
    if len(cells) != len(header):
        return _BadRow(f"has {len(cells)} cells where the header has {len(header)} columns")
    return dict(zip(header, cells, strict=True))


def _json_rows(source: _Source, stream: TextIO, columns: dict[str, str]) -> Iterator[_Numbered]:
    number = line = 0
    try:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            number += 1
            try:
                cells = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield number, line, _BadRow(f"is not valid JSON ({error})")
                continue
            if not isinstance(cells, dict):
                yield number, line, _BadRow(f"is a JSON {type(cells).__name__}, not an object of named texts")
                continue
            if number == 1:
                _check_columns(source, list(cells), columns)
            yield number, line, cells
    except UnicodeDecodeError as error:
        raise _undecodable(source, line + 1, error) from error


def _parquet_rows(source: _Source, columns: dict[str, str]) -> Iterator[_Numbered]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(source.path) as table:
            _check_columns(source, table.schema_arrow.names, columns)
            number = 0
            for batch in table.iter_batches(columns=list(columns)):
                for cells in batch.to_pylist():
                    number += 1
                    yield number, None, cells
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise source.fail(f"not a whole Parquet file of texts ({str(error).splitlines()[0]})") from error


def _check_columns(source: _Source, found: list[str], columns: dict[str, str]) -> None:
    for name, key in columns.items():
        if name in found:
            continue
        near = difflib.get_close_matches(name, found, n=1)
        named = f" ({key} names it)" if key else ""
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise source.fail(f"has no column {name!r}{named}; its columns are {', '.join(map(repr, found))}.{guess}")


def _undecodable(source: _Source, line: int, error: UnicodeDecodeError) -> UserError:
    return source.fail(f"not valid UTF-8 at or after line {line} ({error.reason}); save it as UTF-8")


def _text(cells: dict[str, Any], column: str, role: str) -> str:
    what = f"{role!r}" if role == column else f"{role!r} (column {column!r})"
    if column not in cells:
        raise _BadRow(f"has no {what}")
    return _checked(cells[column], what)


def _checked(value: Any, what: str) -> str:
    if value is None:
        raise _BadRow(f"has no {what}: the cell is null")
    if not isinstance(value, str):
        raise _BadRow(f"has a {type(value).__name__} ({str(value)[:40]}) where {what} should be a text")
    if not value.strip():
        raise _BadRow(f"has an empty {what}")
    if "\0" in value:
        raise _BadRow(f"has a NUL byte in {what}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _BadRow(f"has half a character (an unpaired surrogate) in {what}") from None
    return value


def _negatives(cells: dict[str, Any], column: str, *, first: bool) -> list[str]:
    value = cells.get(column)
    what = f"'negative' (column {column!r})"
    if not first and (value is None or value == ""):
        return []
    if isinstance(value, list):
        if first and not value:
            raise _BadRow(f"has an empty list as {what}")
        return [_checked(text, what) for text in value]
    if column not in cells:
        raise _BadRow(f"has no {what}")
    return [_checked(value, what)]


def _number(cells: dict[str, Any], column: str) -> float:
    value = cells.get(column)
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _BadRow(f"has {str(value)[:40]!r} as {column!r}, which is not a finite number")
    return number
