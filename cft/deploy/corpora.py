"""Texts that are searched, and their vectors, which are embedded once and kept by embedder and content."""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from cft.data.files import Skipped, stream_texts
from cft.deploy import vectors
from cft.deploy.load import TextFileOptions
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import cache_folder
from cft.system.text import counted

if TYPE_CHECKING:
    from cft.model.embedder import Embedder

log = logging.getLogger(__name__)

_IN_MEMORY = 64_000_000  # bytes of a corpus; the texts of a larger one are on disk
_KEY_BYTES = 16  # of a text's hash
_ROWS = 65_536  # vectors that are copied at a time where some are left out


class Corpus:
    """Texts to be searched: their content, their rows, and each of them by its number. A large one is on disk."""

    def __init__(self, rows: Iterable[tuple[int, str]]) -> None:
        """Read all texts, each with its row."""
        # The system's folder for temporary files is TMPDIR.
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self.digest = vectors.TextsDigest()
        self._ends, self._rows = array("q", [0]), array("q")
        keys, end = bytearray(), 0
        for number, text in rows:
            keys += self.digest.add(text)[:_KEY_BYTES]
            end += self._file.write(text.encode())
            self._ends.append(end)
            self._rows.append(number)
        hashes = np.frombuffer(bytes(keys), dtype=f"V{_KEY_BYTES}")
        self.distinct = np.sort(np.unique(hashes, return_index=True)[1])  # numbers of texts that stand nowhere before

    def close(self) -> None:
        """Remove the copy of the texts."""
        self._file.close()

    def row(self, number: int) -> int:
        """The row of a text, by its number from 0."""
        return self._rows[number]

    def text(self, number: int) -> str:
        """A text, by its number from 0."""
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number]).decode()

    def texts(self) -> Iterator[str]:
        """All texts, in their order."""
        return map(self.text, range(len(self._rows)))


def of_file(path: Path, options: TextFileOptions) -> Corpus:
    """The texts of a file.

    Raises:
        UserError: naming a row that cannot be read.
    """
    rows = stream_texts(path, column=options.column, on_bad_row=options.on_bad_row)
    return Corpus(usable(rows, str(path)))


def usable(rows: Iterator[str | Skipped], name: str) -> Iterator[tuple[int, str]]:
    """The texts among rows with their numbers from 1; how many were left out is said on stderr."""
    skipped = 0
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Skipped):
            skipped += 1
        else:
            yield number, row
    if skipped:
        sys.stderr.write(f"{name}: {counted(skipped, 'row')} left out\n")


def vectors_of(embedder: "Embedder", corpus: Corpus, stack: contextlib.ExitStack, gigabytes: int) -> np.ndarray:
    """The vectors (texts, D) of a corpus, out of the cache if they are there, mapped into memory.

    Args:
        embedder: under the prompt of the texts. stack: holds what is not kept. gigabytes: of the cache; 0 keeps none.
    """
    from cft.evaluation.vector_cache import make_room

    record = vectors.VectorsRecord.of(embedder, corpus.digest)
    # Beside the vectors that evaluations keep, and under the same limit.
    root = cache_folder() / "vectors"
    folder = root / digest([record.name, embedder.device.type])
    if gigabytes:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("vectors are not kept in %s (%s)", root, error.strerror or error)
            gigabytes = 0
    if not gigabytes:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    target = folder / "index.npy"
    if target.exists():
        with contextlib.suppress(OSError):  # a shared cache may be read-only
            os.utime(folder)  # by which `make_room` knows when it was used
        try:
            return np.asarray(vectors.open_vectors(target, record, ""))  # still mapped
        except UserError:
            log.warning("%s is damaged: its vectors are computed again", target)
            shutil.rmtree(folder, ignore_errors=True)
    with vectors.in_blocks(target, record) as blocks:
        blocks.embed(embedder, corpus.texts())
        blocks.write_npy()
    if embedder.texts_cut:
        sys.stderr.write(vectors.cut_message(embedder))
    found = np.asarray(vectors.open_vectors(target, record, ""))
    if gigabytes:
        make_room(root, int(gigabytes * 1e9))  # what is open stays readable
    return found


def distinct_vectors(corpus: Corpus, stored: "np.ndarray | vectors.Restored") -> Iterator[np.ndarray]:
    """The vectors (n, D) of texts that stand nowhere before, in their order, block by block.

    Args:
        stored: (texts, D) of the whole corpus, perhaps on disk.
    """
    distinct = corpus.distinct
    for start in range(0, len(stored), _ROWS):
        first, last = np.searchsorted(distinct, (start, start + _ROWS))
        if last > first:
            block = stored[start : start + _ROWS]
            yield block if last - first == len(block) else block[distinct[first:last] - start]
