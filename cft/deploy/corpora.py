"""Texts that are searched, and their vectors, which are embedded once and kept by embedder and content."""

import contextlib
import hashlib
import logging
import os
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from cft.data.files import Skipped, stream_texts, stream_texts_with_ids
from cft.deploy import vectors
from cft.deploy.load import TextFileOptions
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import atomic_write, cache_folder, exclusive_lock, read_record
from cft.system.text import counted

if TYPE_CHECKING:
    from cft.model.embedder import Embedder

log = logging.getLogger(__name__)

Row = TypeVar("Row")

_IN_MEMORY = 64_000_000  # bytes of a corpus; the texts of a larger one are on disk
_KEY_BYTES = 16  # of a text's hash
_KEY = f"S{_KEY_BYTES}"  # which numpy can search; that it drops zeros at the end makes no two of one length equal
_INDEX = "index.npy"
_ROWS = 65_536  # vectors that are copied at a time where some are left out


class Corpus:
    """Texts to be searched: their content, their rows, and each of them by its number. A large one is on disk."""

    def __init__(self, rows: Iterable[tuple[int, str]]) -> None:
        """Read all texts, each with its row."""
        # The system's folder for temporary files is TMPDIR.
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self.digest = vectors.TextsDigest()
        self._ends, self._rows = array("q", [0]), array("q")
        self.ids: dict[int, str] = {}  # of the file's own, by row; empty where none were asked for
        keys, end = bytearray(), 0
        for number, text in rows:
            keys += self.digest.add(text)[:_KEY_BYTES]
            end += self._file.write(text.encode())
            self._ends.append(end)
            self._rows.append(number)
        self.keys = np.frombuffer(bytes(keys), dtype=_KEY)  # (texts,) hashes
        self.distinct = np.sort(
            np.unique(self.keys, return_index=True)[1]
        )  # numbers of texts that stand nowhere before

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


def of_file(path: Path, options: TextFileOptions, id_column: str = "") -> Corpus:
    """The texts of a file.

    Args:
        path: the file. options: how it is read. id_column: a column that holds ids, which are kept; none without one.

    Raises:
        UserError: naming a row that cannot be read.
    """
    how: dict[str, Any] = {"column": options.column, "on_bad_row": options.on_bad_row}
    if not id_column:
        return Corpus(usable(stream_texts(path, **how), str(path)))
    ids: dict[int, str] = {}

    def rows() -> Iterator[tuple[int, str]]:
        for number, (text, id) in usable(stream_texts_with_ids(path, id_column=id_column, **how), str(path)):
            ids[number] = id
            yield number, text

    corpus = Corpus(rows())
    corpus.ids = ids
    return corpus


def usable(rows: Iterator[Row | Skipped], name: str) -> Iterator[tuple[int, Row]]:
    """The rows that hold something with their numbers from 1; how many were left out is said on stderr."""
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
    found = _kept(folder, record)
    if found is None:
        with exclusive_lock(folder, wait=True):  # two searches of one new file embed it once
            found = _kept(folder, record)
            if found is None:
                earlier = _embedded_before(root, record, corpus, embedder) if gigabytes else None
                found = _embedded(folder, record, corpus, embedder, earlier)
        if gigabytes:
            make_room(root, int(gigabytes * 1e9))  # what is open stays readable
    return found


def _kept(folder: Path, record: vectors.VectorsRecord) -> np.ndarray | None:
    """The vectors of an earlier search, mapped into memory; None if there are none, or they are damaged."""
    target = folder / _INDEX
    if not target.exists():
        return None
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        os.utime(folder)  # by which `make_room` knows when it was used
    try:
        return np.asarray(vectors.open_vectors(target, record, ""))  # still mapped
    except UserError:
        log.warning("%s is damaged: its vectors are computed again", target)
        target.unlink(missing_ok=True)
        return None


def _embedded(
    folder: Path,
    record: vectors.VectorsRecord,
    corpus: Corpus,
    embedder: "Embedder",
    earlier: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    """The vectors of a corpus, computed but for those that `earlier` has, kept and mapped into memory."""
    target = folder / _INDEX
    with vectors.in_blocks(target, record) as blocks:
        cut = blocks.embed(_Knowing(embedder, *earlier) if earlier else embedder, corpus.texts())
        blocks.write_npy()
    sys.stderr.write(vectors.cut_message(embedder, cut))
    with atomic_write(folder / _keys_file(embedder.device.type)) as scratch, scratch.open("wb") as stream:
        np.save(stream, corpus.keys, allow_pickle=False)
    return np.asarray(vectors.open_vectors(target, record, ""))


def _keys_file(device: str) -> str:
    """Name of the file of the hashes of texts whose vectors are beside it."""
    return f"texts-{device}.npy"


def _embedded_before(
    root: Path, record: vectors.VectorsRecord, corpus: Corpus, embedder: "Embedder"
) -> tuple[np.ndarray, np.ndarray] | None:
    """Hashes and vectors of texts that this embedder embedded, in a corpus or an evaluation; None without any.

    They are those of the kept corpus that has the most texts of this one, or of evaluations if they have more.
    """
    from cft.evaluation.vector_cache import kept_vectors

    scored, found = kept_vectors(embedder, corpus.keys, version=record.recipe)
    best, most, where = ((scored, found), int(np.isin(corpus.keys, scored).sum()), "by an evaluation")
    for keys_file in root.glob(f"*/{_keys_file(embedder.device.type)}"):
        with contextlib.suppress(OSError, ValueError, UserError):  # damaged, or removed by another process
            path = keys_file.with_name(_INDEX)
            theirs = read_record(vectors.record_of(path), vectors.VectorsRecord)
            if (theirs.contract, theirs.recipe) != (record.contract, record.recipe):
                continue
            keys = np.load(keys_file, allow_pickle=False)
            known = int(np.isin(corpus.keys, keys).sum())
            if known > most:
                found = np.asarray(vectors.open_vectors(path, replace(record, texts=theirs.texts), ""))
                if len(found) == len(keys):
                    best, most, where = (keys, found), known, "in an earlier version"
    if not most:
        return None
    sys.stderr.write(f"{most:,} of {counted(len(corpus.keys), 'text')} were embedded {where}\n")
    return best


class _Knowing:
    """An embedder that takes the vectors of some texts out of an earlier corpus."""

    def __init__(self, embedder: "Embedder", keys: np.ndarray, known: np.ndarray) -> None:
        """Keep (n,) hashes of texts and their vectors (n, D), which may be on disk."""
        self._embedder, self._known = embedder, known
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def encode(self, texts: list[str], *, dimensions: int | None = None, progress: str | None = None) -> np.ndarray:
        """As `Embedder.encode`; the last bits of a vector may be those of another batch."""
        places, is_known = self._find(texts)
        new = [text for text, known in zip(texts, is_known, strict=True) if not known]
        found = np.empty((len(texts), self._known.shape[1]), dtype=np.float32)
        found[is_known] = self._known[self._order[places[is_known]]]
        if new:
            found[~is_known] = self._embedder.encode(new, dimensions=dimensions, progress=progress)
        return found

    @property
    def texts_cut(self) -> int:
        """How many of the texts that were not known were too long."""
        return self._embedder.texts_cut

    def count_cut(self, texts: list[str]) -> int:
        """How many of the distinct texts that are not known are too long."""
        is_known = self._find(texts)[1]
        return self._embedder.count_cut(text for text, known in zip(texts, is_known, strict=True) if not known)

    def _find(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Where each text is among the known ones, if it is, and whether it is."""
        keys = np.array([hashlib.sha256(text.encode()).digest()[:_KEY_BYTES] for text in texts], dtype=_KEY)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return places, self._keys[places] == keys


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
