"""Files to numbered rows of cells: CSV, TSV, JSONL and JSON (each also gzipped), Parquet, and plain lines of text."""

import contextlib
import gzip
import itertools
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cft.data import delimited
from cft.data.cells import BadRow
from cft.data.delimited import BrokenQuoting, Dialect
from cft.system.errors import UserError, first_line
from cft.system.overrides import override
from cft.system.text import described, did_you_mean, printable, shorten

_TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
ENDINGS = (*_TEXT_ENDINGS, *(f"{ending}.gz" for ending in _TEXT_ENDINGS), ".parquet")
_PLAIN_ENDINGS = (".txt", ".txt.gz")

# A message is read at a glance, whatever the file holds.
_MAX_NAMES = 20
_NAME_LENGTH = 40
_NAMES_LENGTH = 160
_CAUSE_LENGTH = 160
_MAX_JOINED = 3

_LIST_BEGINS = re.compile(r"\s*\[\s*($|\{)")
_BLANKS = re.compile(r"[ \t\r\n]*")  # as JSON has them
_LINE_ENDS = re.compile(r"\r\n?|\n")

log = logging.getLogger(__name__)


def log_note(note: "Note") -> None:
    """Say it now."""
    log.log(logging.WARNING if note.warning else logging.INFO, "%s", note.text)


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Say nothing of how files are read: they are only looked at, and it is said when they are read."""
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


# How files begin that are not text in UTF-8; the last byte of the marks of Parquet and zip is a control character.
_FOREIGN = {
    b"\xff\xfe\0\0": "is text in UTF-32; save it as UTF-8",
    b"\xff\xfe": "is text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "is text in UTF-16; save it as UTF-8",
    b"PAR1\x15": "holds Parquet; let its name end in .parquet",
    b"PK\x03\x04": "is a zip file or a spreadsheet; unpack it, or save it as CSV",
}
_GZIP = b"\x1f\x8b"

_Cells = dict[str, Any] | BadRow  # a row's cells by column, or why there are none
_Lines = Iterator[tuple[int, _Cells]]  # with the line that a row starts on


class Note(NamedTuple):
    """How a file was read, where that is not plain from its name."""

    text: str
    warning: bool = False


class RawRow(NamedTuple):
    """One data row."""

    number: int  # from 1
    line: int | None  # its first line, if the format has lines
    cells: _Cells


@dataclass(frozen=True)
class Source:
    """A file, the columns it must have, and the words for errors about it."""

    path: Path
    key: str  # the config key that named the file, or ""
    columns: dict[str, str]  # each needed column, and the config key that names it or ""
    column_advice: str  # what to do about a missing column
    row_advice: str  # what to do about a bad row
    plain: bool = False  # whether plain text is read too, each line as a cell of the only column
    optional: tuple[str, ...] = ()  # columns that are read where a file has them
    # columns that are read instead where a file has none of `columns`
    instead: tuple[str, ...] = ()
    delimiter: str | None = None  # of CSV and TSV; None finds it out
    note: Callable[[Note], None] = field(default=log_note)  # takes what is worth saying about how the file is read
    called: str = ""  # what messages call the file, where its path says nothing to its owner

    @property
    def name(self) -> str:
        """The file's name in messages."""
        return printable(self.called or self.path.name)

    @property
    def ending(self) -> str:
        """The file's format, such as `.csv.gz`."""
        endings = (*_PLAIN_ENDINGS, *ENDINGS) if self.plain else ENDINGS
        for ending in endings:
            if self.path.name.lower().endswith(ending):
                return ending
        raise self.error(f"unknown kind of file; these are read: {', '.join(endings)}")

    def place(self, row: RawRow) -> str:
        """A row as messages call it."""
        line = "" if row.line is None else f":{row.line}"
        return f"data row {row.number} ({self.name}{line})"

    def error(self, problem: str) -> UserError:
        """An error about the file as a whole."""
        path = printable(self.called or str(self.path))
        if self.key:  # a name that cannot be printed cannot be pasted either
            path = override(self.key, path) if path == str(self.path) else "=".join((self.key, path))
        return UserError(f"{path}: {problem}")


def read_rows(source: Source) -> Iterator[RawRow]:
    """Every data row of a file.

    Raises:
        UserError: if the content is not of the format, or lacks a column.
        OSError, EOFError, zlib.error: if the file cannot be read or unpacked.
    """
    ending = source.ending.removesuffix(".gz")
    if ending == ".parquet":
        rows: Iterator[tuple[int | None, _Cells]] = ((None, cells) for cells in _parquet_rows(source))
    else:
        _check_beginning(source)
        if ending == ".txt":
            rows = _plain_rows(source)
        elif ending in (".csv", ".tsv"):
            rows = _delimited_rows(source)
        else:
            rows = _json_list_rows(source) if ending == ".json" else _json_rows(source)
    for number, (line, cells) in enumerate(rows, start=1):
        yield RawRow(number, line, cells)


def _open(source: Source, mode: str, **options: Any) -> Any:
    if source.ending.endswith(".gz"):
        return gzip.open(source.path, mode, **options)
    return source.path.open(mode, **options)


def _check_beginning(source: Source) -> None:
    """Refuse what is not text in UTF-8, saying what it is."""
    with _open(source, "rb") as stream:
        begin = stream.read(5)
    for mark, problem in _FOREIGN.items():
        if begin.startswith(mark):
            raise source.error(problem)
    if begin.startswith(_GZIP):
        zipped = source.ending.endswith(".gz")
        raise source.error("is gzip within gzip; unpack it once" if zipped else "is gzip; let its name end in .gz")
    if b"\0\0" in (begin[0:4:2], begin[1:4:2]):
        raise source.error("looks like text in UTF-16 (every other byte is NUL); save it as UTF-8")


def _lines(source: Source) -> Iterator[str]:
    """The lines of a text file with their ends, which within quotes belong to the text."""
    # A strict decoder would fail a buffer ahead of the lines; surrogates keep bad bytes where they are.
    with _open(source, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.encode("utf-8", "surrogateescape").decode("utf-8")
            except UnicodeDecodeError as error:
                problem = (
                    f"line {number} is not valid UTF-8 ({error.reason}); save the file as UTF-8, or convert it: a file "
                    "of Excel on Windows mostly by iconv -f cp1252 -t utf-8 FILE > NEW_FILE"
                )
                raise source.error(problem) from error
            yield line


def _plain_rows(source: Source) -> _Lines:
    (column,) = source.columns
    for number, line in enumerate(_lines(source), start=1):
        yield number, {column: line.rstrip("\r\n")}


def _delimited_rows(source: Source) -> _Lines:
    dialect = _dialect(source)
    rows = delimited.records(_lines(source), dialect)
    joined = 0
    try:
        columns = next((record.cells for record in rows if record.cells), None)  # a blank line is no row
        if columns is None:
            raise source.error("is empty")
        _check_columns(source, columns)
        for record in rows:
            joined += record.joins_rows
            if record.joins_rows and joined <= _MAX_JOINED:
                source.note(_joined_note(source, record))
            if len(record.cells) == len(columns):
                yield record.line, dict(zip(columns, record.cells, strict=True))
            elif record.cells:
                amount = "many" if len(record.cells) > len(columns) else "few"
                cells = f"{len(record.cells)} where the header has {len(columns)}"
                yield record.line, BadRow(f"has too {amount} cells: {cells}")
    except BrokenQuoting as error:
        raise source.error(
            f"the row that starts on line {error.line} has broken quoting ({printable(str(error))}); "
            'put a text that begins with " in quotes and double the quotes within'
        ) from error
    if joined > _MAX_JOINED:
        source.note(Note(f"{source.name}: {joined - _MAX_JOINED} more rows of that kind", warning=True))


def _joined_note(source: Source, record: delimited.Record) -> Note:
    return Note(
        f"{source.name}: the row on lines {record.line} to {record.line + record.lines - 1} has a text "
        f"in quotes that goes over {record.lines} lines, each of which would be a row of its own: if a quotation mark "
        "is unpaired there, rows were joined",
        warning=True,
    )


def _dialect(source: Source) -> Dialect:
    """How a delimited file is written; what is not plain from its name is noted."""
    usual = "\t" if source.ending.startswith(".tsv") else ","
    after, named = delimited.separator_line(_lines(source))
    delimiter = source.delimiter or named
    if delimiter is None:

        def header_by(delimiter: str) -> list[str]:
            return delimited.header(itertools.islice(_lines(source), after, None), delimiter)

        delimiter = delimited.choose_delimiter(usual, header_by, lambda columns: _needed(source, columns) is not None)
    name = source.name
    if delimiter != usual:
        how = "data.delimiter" if source.delimiter else "its first line" if named else "its header"
        source.note(Note(f"{name}: columns are separated by {delimited.name_of(delimiter)}, as {how} says"))
    dialect = Dialect(delimiter, after=after)
    if delimiter == "\t" and delimited.quotes_are_literal(lambda: _lines(source), dialect):
        source.note(
            Note(f"{name}: quotation marks are read as parts of the texts, because they do not pair as quoting")
        )
        return replace(dialect, literal=True)
    return dialect


def _json_rows(source: Source) -> _Lines:
    checked = False
    for line, text in enumerate(_lines(source), start=1):
        if not text.strip():
            continue
        if not checked and _LIST_BEGINS.match(text):
            raise source.error("holds one JSON list; let its name end in .json")
        cells = _json_object(text)
        if not checked and isinstance(cells, dict):
            _check_keys(source, cells, lambda: map(_json_object, _lines(source)))
            checked = True
        yield line, cells


def _json_object(text: str) -> _Cells:
    text = text.rstrip("\r\n")  # at the end of a line that was cut off, the end is what is wrong
    try:
        # `json.loads` names a byte order mark
        value = json.loads(text) if text.startswith("\ufeff") else _DECODER.decode(text)
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at")
        return BadRow(f"is not valid JSON ({problem} at character {error.pos + 1}); a line holds one object")
    except (RecursionError, ValueError):
        return BadRow("is not JSON that can be read (too many nested brackets, or a number of thousands of digits)")
    return _object(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that has a key twice, of which Python would take the last, is marked as such."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    return _Twice(found, key=next(key for key in keys if keys.count(key) > 1))


class _Twice(dict[str, Any]):
    """An object that has a key more than once."""

    def __init__(self, content: dict[str, Any], *, key: str) -> None:
        super().__init__(content)
        self.key = key


# One for all rows: `json.loads` would make one for each, which takes as long as the row.
_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _object(value: Any) -> _Cells:
    if isinstance(value, _Twice):
        return BadRow(f"has the key {value.key!r} more than once; keep one")
    return value if isinstance(value, dict) else BadRow(f"is not a JSON object but {described(value)}")


def _json_list_rows(source: Source) -> _Lines:
    """The objects of one JSON list; a file of one object a line, which many call .json too, is read as such."""
    begin = next((line.lstrip() for line in _lines(source) if line.strip()), "")
    if not begin.startswith("["):
        yield from _json_rows(source)
        return
    checked = False
    for line, value in _list_entries(source):
        cells = _object(value)
        if not checked and isinstance(cells, dict):
            _check_keys(source, cells, lambda: (_object(value) for _, value in _list_entries(source)))
            checked = True
        yield line, cells


def _list_entries(source: Source) -> Iterator[tuple[int, Any]]:
    """The entries of a JSON list one by one, each with the line that it starts on; the text is held whole."""
    text, decoder = "".join(_lines(source)), _DECODER
    place, line, counted = text.index("[") + 1, 1, 0

    def skip_blanks(place: int) -> int:
        return _BLANKS.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too

    def broken(problem: str, place: int) -> UserError:
        return source.error(f"is not a JSON list that can be read ({problem} on line {_line_of(text, place)})")

    place = skip_blanks(place)
    closed = text.startswith("]", place)
    while not closed:
        line, counted = line + len(_LINE_ENDS.findall(text, counted, place)), place
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise broken(error.msg, error.pos) from error
        except (RecursionError, ValueError) as error:
            raise broken("too many nested brackets, or a number of thousands of digits,", place) from error
        yield line, value
        place = skip_blanks(place)
        closed = text.startswith("]", place)
        if not closed:
            if not text.startswith(",", place):
                raise broken("Expecting ',' delimiter", place)
            place = skip_blanks(place + 1)
    if skip_blanks(place + 1) < len(text):
        raise broken("more behind the list", skip_blanks(place + 1))


def _line_of(text: str, place: int) -> int:
    return 1 + len(_LINE_ENDS.findall(text, 0, place))


def _check_keys(source: Source, first: dict[str, Any], every: Callable[[], Iterator[_Cells]]) -> None:
    """Refuse a file of which no object has a needed key; where some have it, rows are judged one by one."""
    if _needed(source, list(first)) is None:
        objects = (cells for cells in every() if isinstance(cells, dict))
        _check_columns(source, list(dict.fromkeys(key for cells in objects for key in cells)))


def _parquet_rows(source: Source) -> Iterator[_Cells]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    number = 0
    # Opened before, so that an OSError within is about the content: pyarrow raises it for pages that it cannot read.
    with source.path.open("rb") as stream:
        try:
            table = parquet.ParquetFile(stream)
            needed = _check_columns(source, table.schema_arrow.names)
            wanted = [*needed, *(name for name in source.optional if name in table.schema_arrow.names)]
            for batch in table.iter_batches(columns=list(dict.fromkeys(wanted))):
                for cells in zip(*batch.columns, strict=True):
                    number += 1
                    yield _from_arrow(dict(zip(batch.schema.names, cells, strict=True)), arrow.ArrowException)
        except UnicodeDecodeError as error:
            where = f"data row {number}" if number else "the name of a column"
            raise source.error(f"{where} is not valid UTF-8 ({error.reason}); write it as UTF-8") from error
        except (arrow.ArrowException, OSError) as error:
            cause = printable(re.sub(r"\w+Exception: ", "", first_line(error)))  # without the names of C++ classes
            cause = cause if len(cause) <= _CAUSE_LENGTH else f"{cause[:_CAUSE_LENGTH]}..."
            raise source.error(f"not a whole Parquet file ({cause}); fetch or write it again") from error


def _from_arrow(row: dict[str, Any], arrow_error: type[Exception]) -> _Cells:
    """Arrow's cells as Python's, which has no value for some, such as a date in a million years."""
    cells = {}
    for name, cell in row.items():
        try:
            cells[name] = cell.as_py()
        except UnicodeDecodeError:
            raise
        except (ValueError, ArithmeticError, LookupError, arrow_error):
            return BadRow(f"has a {cell.type} in column {_named(name)} that cannot be read")
    return cells


def _needed(source: Source, columns: list[str]) -> list[str] | None:
    """Those of a file's columns that are to be read; None if some are missing."""
    if source.columns.keys() <= set(columns):
        return list(source.columns)
    known = source.instead and set(source.instead) <= set(columns) and not source.columns.keys() & set(columns)
    return list(source.instead) if known else None


def _check_columns(source: Source, columns: list[str]) -> list[str]:
    """Those of a file's columns that are to be read.

    Raises:
        UserError: if one is missing, or two have one name.
    """
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise source.error(
            f"has the column {_named(twice[0])} more than once; rename one, or give the file a header if that is a row"
        )
    needed = _needed(source, columns)
    if needed is not None:
        if not source.columns.keys() <= set(columns):
            missing = " or ".join(source.columns)
            source.note(Note(f"{source.name}: read by its {' and '.join(needed)}, as it has no {missing}"))
        return needed
    folded = {_folded(column): _named(column) for column in reversed(columns)}
    name, key = next((name, key) for name, key in source.columns.items() if name not in columns)
    named = f" ({key} names it)" if key else ""
    listed = shorten(", ".join(map(_named, columns[:_MAX_NAMES])), _NAMES_LENGTH) or "none"
    more = f" and {len(columns) - _MAX_NAMES} more" if len(columns) > _MAX_NAMES else ""
    guess = did_you_mean(_folded(name), folded, sentence=True, show=folded.__getitem__)
    if unicodedata.normalize("NFC", name) in (unicodedata.normalize("NFC", column) for column in columns):
        guess = " One of them is this one in another of Unicode's forms: write it as the file does, or rename it there."
    raise source.error(f"has no column {name!r}{named}; its columns are {listed}{more}.{guess} {source.column_advice}.")


def _folded(name: str) -> str:
    """By which a column's name is guessed."""
    return unicodedata.normalize("NFC", name.strip().casefold())


def _named(column: str) -> str:
    """A column's name in quotes, shortened: without a header it is a text of the first row."""
    return shorten(repr(column[: _NAME_LENGTH * 2]), _NAME_LENGTH)
