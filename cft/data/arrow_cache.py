"""Training triplets as an Arrow file that is mapped into memory: read row by row, whatever their number.

    CACHE/triplets/DIGEST.arrow    columns anchor, positive, negatives, again; the digest is of the user's file and of
                                   how it is read
    CACHE/triplets/DIGEST.json     what was noticed when the file was read: its portrait, and the rows that were skipped

A user's file is converted once, in blocks; later only its content is hashed.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from cft.data.files import Skipped
from cft.data.formats import Note
from cft.data.portrait import Painter, Portrait, portrait_from
from cft.data.records import Triplet, in_blocks
from cft.system.digest import digest, sha256_of_file
from cft.system.errors import UserError
from cft.system.files import atomic_write, cache_folder, write_json

log = logging.getLogger(__name__)

# Raise when the same file would be read as other rows.
_FORMAT = 3

# Rows of one Arrow batch, and of what is held as Python objects at one time.
_BLOCK = 10_000

# Columns of a triplet; behind them stands whether it is another positive of the row before.
_COLUMNS = 3

_MAX_REASONS = 10
_UNUSED_DAYS = 30


_Stream = Iterator[list[Triplet] | Skipped]


class Rows(Sequence[Triplet]):
    """Triplets in an Arrow file, or a selection of them; a row becomes Python objects when it is read."""

    def __init__(self, blocks: list[Any], selection: np.ndarray | None = None) -> None:
        self._blocks = blocks  # record batches
        self._starts = np.cumsum([0, *map(len, blocks)])  # (blocks + 1,) number of each one's first row
        self._selection = np.arange(self._starts[-1]) if selection is None else selection  # (n,) ascending

    def __len__(self) -> int:
        return len(self._selection)

    @overload
    def __getitem__(self, index: int) -> Triplet: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Triplet | Rows":
        if isinstance(index, slice):
            return Rows(self._blocks, self._selection[index])
        number = int(self._selection[index])
        block = int(np.searchsorted(self._starts, number, side="right")) - 1
        row = number - int(self._starts[block])
        return _triplet(*(column[row].as_py() for column in self._blocks[block].columns[:_COLUMNS]))

    def __iter__(self) -> Iterator[Triplet]:
        """All rows in order, block by block: many times faster than one by one."""
        ends = np.searchsorted(self._selection, self._starts[1:-1])
        for number, rows in enumerate(np.split(self._selection, ends)):
            block = self._blocks[number].take(rows - self._starts[number])
            yield from map(_triplet, *(column.to_pylist() for column in block.columns[:_COLUMNS]))

    def select(self, indices: np.ndarray) -> "Rows":
        """The rows of these indices, (n,) ascending, without a copy."""
        return Rows(self._blocks, self._selection[indices])

    @staticmethod
    def joined(parts: "Sequence[Rows]") -> "Rows":
        """The rows of several files, one file after the other."""
        return Rows([block for part in parts for block in part._blocks])

    def starts(self) -> np.ndarray:
        """(rows of the file,) the first triplet of each of the file's rows, which gave one for each positive."""
        again = [block.columns[_COLUMNS].to_numpy(zero_copy_only=False) for block in self._blocks]
        rows = np.cumsum(~np.concatenate(again))[self._selection]
        return np.flatnonzero(np.diff(rows, prepend=0))


@dataclass(frozen=True)
class Corpus:
    """The content of a user's file."""

    rows: Rows
    skipped: int  # how many bad rows were left out
    reasons: list[Skipped]  # the first of them
    notes: list[Note]  # how the file was read, where that is not plain from its name
    portrait: Portrait  # what the rows are like


def open_corpus(path: Path, facts: Any, read: Callable[[Callable[[Note], None]], _Stream]) -> Corpus:
    """The triplets of a file, converted unless this very content was before.

    Args:
        path: the user's file.
        facts: plain data that says how it is read.
        read: reads it row by row, and hands what is worth saying about that to its argument.

    Raises:
        UserError: by `read`, about the file; or if the cache cannot be written.
    """
    folder = cache_folder() / "triplets"
    try:
        if not path.is_file():
            next(read(_ignore))  # raises the UserError; hashing a pipe would wait for its writer
        content = sha256_of_file(path)
    except OSError as error:
        next(read(_ignore))  # raises a more precise UserError, if it cannot read the file either
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    table = folder / f"{digest([_FORMAT, facts, content])}.arrow"
    corpus = _open(table)
    if corpus is None:
        try:
            _convert(read, table)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror or error}): triplets are kept there in a quick form; set "
                "the environment variable CFT_CACHE to a folder with room"
            ) from error
        _tidy(folder)
        corpus = _open(table)
        assert corpus is not None, f"{table} cannot be read again"
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        table.touch()  # by which `_tidy` knows when it was used
    return corpus


def _open(table: Path) -> Corpus | None:
    """What was converted before; None if it is missing or damaged."""
    import pyarrow as arrow

    try:
        notes = json.loads(_notes(table).read_text(encoding="utf-8"))
        with arrow.memory_map(str(table)) as mapped, arrow.ipc.open_file(mapped) as file:
            blocks = [file.get_batch(number) for number in range(file.num_record_batches)]
    except (OSError, ValueError, arrow.ArrowException):
        return None
    return Corpus(
        Rows(blocks),
        notes["skipped"],
        [Skipped(**reason) for reason in notes["reasons"]],
        [Note(**note) for note in notes["notes"]],
        portrait_from(notes["portrait"]),
    )


def _notes(table: Path) -> Path:
    return table.with_suffix(".json")


def _ignore(note: Note) -> None:
    """For a reading that is only to fail."""


def _convert(read: Callable[[Callable[[Note], None]], _Stream], table: Path) -> None:
    """Write the Arrow file, after its notes: where the table is, they are."""
    import pyarrow as arrow

    text = arrow.large_string()  # plain strings hold at most 2 GB a block
    schema = arrow.schema(
        [("anchor", text), ("positive", text), ("negatives", arrow.list_(text)), ("again", arrow.bool_())]
    )
    skipped, reasons, noted, painter = 0, [], list[Note](), Painter()

    def triplets() -> Iterator[dict[str, Any]]:
        nonlocal skipped
        for row in read(noted.append):
            if isinstance(row, Skipped):
                skipped += 1
                reasons.extend([asdict(row)] if skipped <= _MAX_REASONS else [])
                continue
            for number, triplet in enumerate(row):
                painter.add(triplet, again=number > 0)
                yield {**triplet._asdict(), "again": number > 0}

    with atomic_write(table) as part:
        with arrow.OSFile(str(part), "wb") as sink, arrow.ipc.new_file(sink, schema) as writer:
            for block in in_blocks(triplets(), _BLOCK):
                writer.write(arrow.RecordBatch.from_pylist(block, schema))
        notes = {"notes": [note._asdict() for note in noted], "portrait": asdict(painter.portrait())}
        write_json(_notes(table), {"skipped": skipped, "reasons": reasons, **notes})


def _tidy(folder: Path) -> None:
    """Remove what no job has opened for a month; its file can be converted again."""
    for table in folder.glob("*.arrow"):
        with contextlib.suppress(OSError):
            if time.time() - table.stat().st_mtime > _UNUSED_DAYS * 86_400:
                table.unlink()
                _notes(table).unlink()


def _triplet(anchor: str, positive: str, negatives: list[str]) -> Triplet:
    return Triplet(anchor, positive, tuple(negatives))
