"""Training triplets as an Arrow file that is mapped into memory: read row by row, whatever their number.

    CACHE/triplets/DIGEST.arrow    columns anchor, positive, negatives; the digest is of the user's file and its columns
    CACHE/triplets/DIGEST.json     how many of the file's rows were left out, and why the first of them

A user's file is converted once, in blocks, and looked at again only to see that its content is the same.
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
from cft.data.records import Triplet
from cft.system.digest import digest, sha256_of_file
from cft.system.errors import UserError
from cft.system.files import atomic_write, cache_folder, write_json

log = logging.getLogger(__name__)

# Raise when the same file would be read as other rows.
_FORMAT = 1

# Rows of one Arrow batch, and of what is held as Python objects at one time.
_BLOCK = 10_000

_SKIPPED_TOLD = 10
_UNUSED_DAYS = 30


class Rows(Sequence[Triplet]):
    """Triplets in an Arrow file, or a selection of them; a row becomes Python objects when it is asked for."""

    def __init__(self, blocks: list[Any], selection: np.ndarray | None = None) -> None:
        """Show an Arrow file's rows.

        Args:
            blocks: record batches, all but the last of `_BLOCK` rows.
            selection: (n,) ascending row numbers; None for all rows.
        """
        self._blocks = blocks
        self._selection = np.arange(sum(len(block) for block in blocks)) if selection is None else selection

    def __len__(self) -> int:
        return len(self._selection)

    @overload
    def __getitem__(self, place: int) -> Triplet: ...
    @overload
    def __getitem__(self, place: slice) -> "Rows": ...
    def __getitem__(self, place: int | slice) -> "Triplet | Rows":
        if isinstance(place, slice):
            return self.select(np.arange(len(self))[place])
        block, row = divmod(int(self._selection[place]), _BLOCK)
        return _triplet(*(column[row].as_py() for column in self._blocks[block].columns))

    def __iter__(self) -> Iterator[Triplet]:
        """All rows in order, block by block: many times faster than one by one."""
        ends = np.searchsorted(self._selection, np.arange(1, len(self._blocks) + 1) * _BLOCK)
        begin = 0
        for number, end in enumerate(ends):
            block = self._blocks[number].take(self._selection[begin:end] - number * _BLOCK)
            begin = end
            yield from map(_triplet, *(column.to_pylist() for column in block.columns))

    def select(self, places: np.ndarray) -> "Rows":
        """These rows alone; nothing is copied.

        Args:
            places: (n,) ascending numbers below `len(self)`.
        """
        return Rows(self._blocks, self._selection[places])


@dataclass(frozen=True)
class Corpus:
    """What a file gave. skipped: how many of its rows were left out; reasons: of the first of them."""

    rows: Rows
    skipped: int
    reasons: list[Skipped]


def open_corpus(path: Path, facts: Any, read: Callable[[], Iterator[Triplet | Skipped]]) -> Corpus:
    """The triplets of a file, converted if this very content was not before.

    Args:
        path: the user's file.
        facts: plain data that says how it is read.
        read: reads it.

    Raises:
        UserError: by `read`, about the file; or if the cache cannot be written.
    """
    folder = cache_folder() / "triplets"
    try:
        if not path.is_file():
            next(read())  # which says what is wrong; to hash a pipe would be to wait for its writer
        content = sha256_of_file(path)
    except OSError as error:
        next(read())  # which says what is wrong in better words, if it meets it too
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    table = folder / f"{digest([_FORMAT, facts, content])}.arrow"
    kept = _open(table)
    if kept is None:
        try:
            _convert(read(), table)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror or error}): triplets are kept there in a quick form; set "
                "the environment variable CFT_CACHE to a folder with room"
            ) from error
        _tidy(folder)
        kept = _open(table)
        assert kept is not None, f"{table} cannot be read again"
    with contextlib.suppress(OSError):  # a cache that others wrote may be read-only; this only keeps it young
        table.touch()
    return kept


def _open(table: Path) -> Corpus | None:
    """What was converted before; None if it is not there, or not whole."""
    import pyarrow as arrow

    try:
        told = json.loads(_notes(table).read_text(encoding="utf-8"))
        with arrow.memory_map(str(table)) as mapped, arrow.ipc.open_file(mapped) as file:
            blocks = [file.get_batch(number) for number in range(file.num_record_batches)]
    except (OSError, ValueError, arrow.ArrowException):
        return None
    return Corpus(Rows(blocks), told["skipped"], [Skipped(**reason) for reason in told["reasons"]])


def _notes(table: Path) -> Path:
    return table.with_suffix(".json")


def _convert(rows: Iterator[Triplet | Skipped], table: Path) -> None:
    """Write the Arrow file, its notes first: whoever sees the table finds them."""
    import pyarrow as arrow

    text = arrow.large_string()  # a block may have more than the 2 GB that Arrow's plain strings count
    schema = arrow.schema([("anchor", text), ("positive", text), ("negatives", arrow.list_(text))])
    skipped, reasons = 0, []
    with atomic_write(table) as part:
        with arrow.OSFile(str(part), "wb") as sink, arrow.ipc.new_file(sink, schema) as writer:
            block: list[Triplet] = []
            for row in rows:
                if isinstance(row, Skipped):
                    skipped += 1
                    reasons += [row] if skipped <= _SKIPPED_TOLD else []
                    continue
                block.append(row)
                if len(block) == _BLOCK:
                    writer.write(_as_batch(block, schema))
                    block.clear()
            if block:
                writer.write(_as_batch(block, schema))
        write_json(_notes(table), {"skipped": skipped, "reasons": [asdict(reason) for reason in reasons]})


def _as_batch(block: list[Triplet], schema: Any) -> Any:
    import pyarrow as arrow

    columns = zip(schema, zip(*block, strict=True), strict=True)
    return arrow.record_batch([arrow.array(column, type=field.type) for field, column in columns], schema)


def _tidy(folder: Path) -> None:
    """Remove what no job has opened for a month; its file can be converted again."""
    for table in folder.glob("*.arrow"):
        with contextlib.suppress(OSError):
            if time.time() - table.stat().st_mtime > _UNUSED_DAYS * 86_400:
                table.unlink()
                _notes(table).unlink()


def _triplet(anchor: str, positive: str, negatives: list[str]) -> Triplet:
    return Triplet(anchor, positive, tuple(negatives))
