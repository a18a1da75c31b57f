"""A user's own files, row by row: training triplets, scored pairs, and texts to embed.

Every problem is reported by file, data row (from 1), line where there are lines, and column, with what to do about it.
Bad rows can be skipped; problems of the whole file cannot.
"""

import gzip
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from cft.data import formats
from cft.data.cells import BadRow, id_of, negatives_of, number_of, text_of, texts_of
from cft.data.formats import Note, Source, log_note
from cft.data.records import ScoredPair, Triplet
from cft.system.errors import UserError
from cft.system.files import LFS_POINTER, is_lfs_pointer
from cft.system.text import did_you_mean, printable

log = logging.getLogger(__name__)

_MAX_REASONS = 3

# The keys of FlagEmbedding's files: a query, a list of positives and a list of negatives.
_FLAG_ANCHOR, _FLAG_POSITIVES, _FLAG_NEGATIVES = "query", "pos", "neg"

# What to say where rows have no negatives.
PAIRS_ADVICE = "pairs without negatives: data.negative_columns='[]' loss=in_batch"

# The columns of scored pairs, as the STS sets have them.
PAIR_COLUMNS = ("sentence1", "sentence2", "score")

_Record = TypeVar("_Record")
_Convert = Callable[[dict[str, Any]], _Record]


class BadRows(str, Enum):
    """What to do with a row that cannot be used."""

    RAISE = "raise"
    SKIP = "skip"


@dataclass(frozen=True)
class Skipped:
    """A row that was left out, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class TripletColumns:
    """Where a file has its triplets, and how it is read.

    A file that has none of these columns, but FlagEmbedding's `query` and `pos`, is read by those and `neg`.
    """

    anchor: str
    # a cell holds a text, or a list of texts: then the row gives a triplet for each of them, or for one
    positive: str
    # hard negatives, perhaps none; a cell holds a text or a list of texts, and may be empty behind the first column
    negatives: Sequence[str]
    on_bad_row: BadRows = BadRows.RAISE  # stop at a bad row, or leave it out
    draw: bool = False  # of several positives take one, always the same for one anchor
    delimiter: str | None = None  # of CSV and TSV; None finds it out


def stream_triplets(
    path: str | Path, columns: TripletColumns, *, note: Callable[[Note], None] = log_note
) -> Iterator[Triplet | Skipped]:
    """What `stream_triplet_rows` reads, one triplet after the other."""
    for row in stream_triplet_rows(path, columns, note=note):
        yield from [row] if isinstance(row, Skipped) else row


def stream_triplet_rows(
    path: str | Path, columns: TripletColumns, *, note: Callable[[Note], None] = log_note
) -> Iterator[list[Triplet] | Skipped]:
    """Read training triplets, texts verbatim, row by row, with the rows that were left out.

    A row has a triplet for each of its positives.

    Args:
        path: the file.
        columns: what to read of it.
        note: takes what is worth saying about how the file is read.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    anchor, positive, negatives = columns.anchor, columns.positive, columns.negatives
    flag_negatives = [_FLAG_NEGATIVES] if negatives else []
    source = Source(
        Path(path),
        "data.train",
        dict.fromkeys(negatives, "data.negative_columns")
        | {positive: "data.positive_column", anchor: "data.anchor_column"},
        column_advice="Set data.anchor_column, data.positive_column and data.negative_columns to columns of the file "
        f"({PAIRS_ADVICE})",
        row_advice="mend or drop it, or set data.on_bad_row=skip",
        instead=(_FLAG_ANCHOR, _FLAG_POSITIVES),
        optional=tuple(flag_negatives),
        delimiter=columns.delimiter,
        note=note,
    )

    def triplets(cells: dict[str, Any]) -> list[Triplet]:
        named = (anchor, positive, negatives)
        if not any(name in cells for name in source.columns) and _FLAG_ANCHOR in cells and _FLAG_POSITIVES in cells:
            named = (_FLAG_ANCHOR, _FLAG_POSITIVES, flag_negatives)
        text, others = text_of(cells, named[0], "anchor"), negatives_of(cells, named[2])
        positives = texts_of(cells, named[1], "positive")
        if columns.draw:
            # By the text alone: neither other rows nor their order change what is drawn.
            positives = [positives[zlib.crc32(text.encode()) % len(positives)]]
        return [Triplet(text, each, others) for each in positives]

    return stream_rows(source, triplets, columns.on_bad_row)


# The key that names the columns of scored pairs, by that of their file.
_COLUMNS_OF_PAIRS = {"data.dev": "data.dev_columns", "data.scored": "data.scored_columns"}


def read_scored_pairs(
    path: str | Path,
    *,
    columns: Sequence[str] = PAIR_COLUMNS,
    on_bad_row: BadRows = BadRows.RAISE,
    key: str = "eval.folder",
) -> tuple[list[ScoredPair], list[Skipped]]:
    """What `stream_scored_pairs` reads: the pairs, and the rows that were left out."""
    return apart(stream_scored_pairs(path, columns=columns, on_bad_row=on_bad_row, key=key))


def apart(rows: Iterable[ScoredPair | Skipped]) -> tuple[list[ScoredPair], list[Skipped]]:
    """The pairs, and the rows that were left out."""
    known = list(rows)
    return [row for row in known if isinstance(row, ScoredPair)], [row for row in known if isinstance(row, Skipped)]


def stream_scored_pairs(
    path: str | Path,
    *,
    columns: Sequence[str] = PAIR_COLUMNS,
    on_bad_row: BadRows = BadRows.RAISE,
    key: str = "eval.folder",
    score_of: Callable[[dict[str, Any], str, str], float] = number_of,
    delimiter: str | None = None,
) -> Iterator[ScoredPair | Skipped]:
    """Read pairs of sentences, texts verbatim, with scores on any scale, and the rows that were left out.

    Args:
        path: the file.
        columns: of the two sentences and of the score, a finite number.
        on_bad_row: stop at a bad row, or leave it out.
        key: the config key that named the file, for messages.
        score_of: reads a score out of a row's cells, given its column and what messages call it.
        delimiter: between columns of CSV and TSV; None finds it out.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    sentence1, sentence2, score = columns
    columns_key = _COLUMNS_OF_PAIRS.get(key, "eval.columns")
    source = Source(
        Path(path),
        key,
        dict.fromkeys(columns, columns_key),
        column_advice=f"Scored pairs need two columns of sentences and one of scores: set {columns_key} to their names",
        # No setting skips rows of an evaluation: scores on different rows cannot be compared.
        row_advice="mend or drop it" + (", or set data.on_bad_row=skip" if key == "data.scored" else ""),
        delimiter=delimiter,
    )

    def pair(cells: dict[str, Any]) -> ScoredPair:
        return ScoredPair(
            text_of(cells, sentence1, PAIR_COLUMNS[0]),
            text_of(cells, sentence2, PAIR_COLUMNS[1]),
            score_of(cells, score, PAIR_COLUMNS[2]),
        )

    return stream_rows(source, pair, on_bad_row)


def warn_of_skipped(listed: Sequence[Skipped], count: int) -> None:
    """Say which rows were left out: those that are listed, and how many of all `count` are not."""
    for row in listed:
        log.warning("skipped %s: %s", row.where, row.reason)
    if count > len(listed):
        log.warning("skipped %d more bad rows", count - len(listed))


def stream_texts(
    path: str | Path,
    *,
    column: str = "text",
    on_bad_row: BadRows = BadRows.RAISE,
    column_key: str = "column",
    called: str = "",
) -> Iterator[str | Skipped]:
    """Read texts, verbatim, one after the other, with the rows that were left out.

    Args:
        path: the file, of rows or of plain lines.
        column: that holds the texts, where there are columns.
        on_bad_row: stop at a bad row, or leave it out.
        column_key: the option that named the column, for messages.
        called: what messages call the file; empty for its name.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    source = Source(
        Path(path),
        "",
        {column: column_key},
        column_advice=f"Set {column_key}= to a column of the file",
        row_advice="mend or drop it, or set on_bad_row=skip",
        plain=True,
        called=called,
    )
    return stream_rows(source, lambda cells: text_of(cells, column, "text"), on_bad_row)


def stream_texts_with_ids(
    path: str | Path, *, column: str, id_column: str, on_bad_row: BadRows = BadRows.RAISE
) -> Iterator[tuple[str, str] | Skipped]:
    """Read texts, verbatim, one after the other, each with its id, with the rows that were left out.

    Args:
        path: the file, of rows.
        column: that holds the texts. id_column: that holds their ids, texts or whole numbers.
        on_bad_row: stop at a bad row, or leave it out.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    source = Source(
        Path(path),
        "",
        {column: "column", id_column: "id_column"},
        column_advice="Set column= and id_column= to columns of the file",
        row_advice="mend or drop it, or set on_bad_row=skip",
    )
    return stream_rows(source, lambda cells: (text_of(cells, column, "text"), id_of(cells, id_column)), on_bad_row)


def stream_rows(source: Source, convert: _Convert[_Record], on_bad_row: BadRows) -> Iterator[_Record | Skipped]:
    """Convert every row of a file; errors of reading become errors about the file.

    Args:
        source: the file. convert: a row's cells to a record; raises BadRow for a row that cannot be used.
        on_bad_row: stop at a bad row, or leave it out.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    usable = skipped = 0
    reasons: list[str] = []
    try:
        _check_path(source)
        for row in formats.read_rows(source):
            try:
                if isinstance(row.cells, BadRow):
                    raise row.cells
                yield convert(row.cells)
                usable += 1
            except BadRow as reason:
                where = source.place(row)
                if on_bad_row is BadRows.RAISE:
                    raise UserError(f"{where} {reason}; {source.row_advice}") from None
                skipped += 1
                reasons += [f"{where} {reason}"] if skipped <= _MAX_REASONS else []
                yield Skipped(where, str(reason))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise source.error(f"not a whole gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        raise source.error(f"cannot be read ({error.strerror or error})") from error
    if not usable:
        useless = f"none of its {skipped} rows can be used: {'; '.join(reasons)}"
        raise source.error(useless if skipped else "has no data rows")


def _check_path(source: Source) -> None:
    path, folder = source.path, source.path.parent
    if path.is_dir():
        raise source.error("is a folder; name a file in it")
    if path.is_symlink() and not path.exists():
        raise source.error(f"is a link to {printable(str(path.readlink()))}, which is not there")
    if not path.exists():
        if not folder.is_dir():
            raise source.error(f"no such file, nor is there a folder {printable(str(folder))}")
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
        guess = did_you_mean(path.name, names, show=lambda name: printable(str(folder / name)), cutoff=0.75)
        raise source.error(f"no such file{guess}")
    if not path.is_file():
        # files are read more than once, and to their end: a pipe would wait, a device need not end
        raise source.error("is a pipe or a device, not a regular file; write what it gives to a file first")
    if path.stat().st_size == 0:
        raise source.error("is empty")
    if is_lfs_pointer(path):
        raise source.error(LFS_POINTER)
