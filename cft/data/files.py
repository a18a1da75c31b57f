"""A user's own files, row by row: training triplets, scored pairs, and texts to embed.

Every problem is reported by file, data row (from 1), line where there are lines, and column, with what to do about it.
Bad rows can be skipped; problems of the whole file cannot.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from cft.data import formats
from cft.data.cells import BadRow, id_of, negatives_of, number_of, text_of
from cft.data.formats import Source, printable
from cft.data.records import ScoredPair, Triplet
from cft.system.errors import UserError
from cft.system.text import did_you_mean

_MAX_REASONS = 3

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


def stream_triplets(
    path: str | Path,
    *,
    anchor: str,
    positive: str,
    negatives: Sequence[str],
    on_bad_row: BadRows = BadRows.RAISE,
) -> Iterator[Triplet | Skipped]:
    """Read training triplets, texts verbatim, one after the other, with the rows that were left out.

    Args:
        path: the file.
        anchor, positive: their columns.
        negatives: columns of hard negatives, perhaps none. A cell may hold a list of texts (JSONL, Parquet), and may
            be empty behind the first of the columns.
        on_bad_row: stop at a bad row, or leave it out.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    source = Source(
        Path(path),
        "data.train",
        dict.fromkeys(negatives, "data.negative_columns")
        | {positive: "data.positive_column", anchor: "data.anchor_column"},
        column_advice="Set data.anchor_column, data.positive_column and data.negative_columns to columns of the file "
        "(pairs without negatives: data.negative_columns='[]' loss=in_batch)",
        row_advice="mend or drop it, or set data.on_bad_row=skip",
    )

    def triplet(cells: dict[str, Any]) -> Triplet:
        return Triplet(
            text_of(cells, anchor, "anchor"), text_of(cells, positive, "positive"), negatives_of(cells, negatives)
        )

    return stream_rows(source, triplet, on_bad_row)


def read_scored_pairs(
    path: str | Path,
    *,
    sentence1: str = "sentence1",
    sentence2: str = "sentence2",
    score: str = "score",
    on_bad_row: BadRows = BadRows.RAISE,
    key: str = "eval.folder",
) -> tuple[list[ScoredPair], list[Skipped]]:
    """Read pairs of sentences, texts verbatim, with scores on any scale; returned with the rows that were left out.

    Args:
        path: the file.
        sentence1, sentence2, score: the columns; a score is a finite number.
        on_bad_row: stop at a bad row, or leave it out.
        key: the config key that named the file, for messages.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    source = Source(
        Path(path),
        key,
        dict.fromkeys((sentence1, sentence2, score), ""),
        column_advice=f"Scored pairs need the columns {sentence1!r}, {sentence2!r} and {score!r}",
        # No setting skips rows of an evaluation: scores on different rows cannot be compared.
        row_advice="mend or drop it",
    )

    def pair(cells: dict[str, Any]) -> ScoredPair:
        return ScoredPair(
            text_of(cells, sentence1, "sentence1"),
            text_of(cells, sentence2, "sentence2"),
            number_of(cells, score, "score"),
        )

    rows = list(stream_rows(source, pair, on_bad_row))
    return [row for row in rows if isinstance(row, ScoredPair)], [row for row in rows if isinstance(row, Skipped)]


def stream_texts(
    path: str | Path, *, column: str = "text", on_bad_row: BadRows = BadRows.RAISE
) -> Iterator[str | Skipped]:
    """Read texts, verbatim, one after the other, with the rows that were left out.

    Args:
        path: the file, of rows or of plain lines.
        column: that holds the texts, where there are columns.
        on_bad_row: stop at a bad row, or leave it out.

    Raises:
        UserError: naming the file, row, column and remedy.
    """
    source = Source(
        Path(path),
        "",
        {column: "column"},
        column_advice="Set column= to a column of the file",
        row_advice="mend or drop it, or set on_bad_row=skip",
        plain=True,
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
        guess = did_you_mean(path.name, names, show=lambda name: printable(str(folder / name)))
        raise source.error(f"no such file{guess}")
    if not path.is_file():
        # files are read more than once, and to their end: a pipe would wait, a device need not end
        raise source.error("is a pipe or a device, not a regular file; write what it gives to a file first")
    if path.stat().st_size == 0:
        raise source.error("is empty")
