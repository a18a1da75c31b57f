"""Vectors kept on disk, so that no embedder has to embed a text twice: not on other sets, not in another sweep.

    CACHE/vectors/CONTRACT-DIGEST/PART.npy    rows of (hash of the text, vector); PART is a hash of the file's content

What the vectors depend on names the folder: the contract, the kind of device and the version of the computation. A
vector's last bits depend on which texts shared its batch (about 1e-7), so they may depend on what was kept before.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cft.model.embedder import Embedder
from cft.system.digest import digest
from cft.system.files import atomic_write, cache_folder

log = logging.getLogger(__name__)

_KEY_BYTES = 16


class _Found(NamedTuple):
    part: np.ndarray
    row: int


class CachedEncoder:
    """An embedder that keeps its vectors, and does not run texts whose vectors it has.

    Its contract must say all about its weights, so it is not for an embedder in the middle of its training.
    """

    def __init__(self, embedder: Embedder, *, gigabytes: float, version: int) -> None:
        """Look vectors up and keep new ones.

        Args:
            embedder: a base model, or one with weights that its contract names.
            gigabytes: what all kept vectors together may take; those not used for longest go first. 0 keeps none.
            version: of the computation; vectors of other versions are not used.
        """
        self._embedder = embedder
        self._limit = int(gigabytes * 1e9)
        facts = [embedder.contract, embedder.device.type, version]
        self._folder = cache_folder() / "vectors" / digest(facts)

    def encode(self, texts: Sequence[str], *, progress: str | None = None) -> np.ndarray:
        """As `Embedder.encode`, but only texts that are new go through the model."""
        if not self._limit:
            return self._embedder.encode(texts, progress=progress)
        distinct = list(dict.fromkeys(texts))
        known = self._known()
        keys = {text: _key(text) for text in distinct}
        new = [text for text in distinct if keys[text] not in known]
        if len(new) < len(distinct):
            log.info(
                "%d of %d texts were embedded before by this very embedder", len(distinct) - len(new), len(distinct)
            )
        fresh = self._embedder.encode(new, progress=progress)
        if new:
            self._keep([keys[text] for text in new], fresh)
        row_of = {text: row for row, text in enumerate(new)}

        def vector(text: str) -> np.ndarray:
            if text in row_of:
                return fresh[row_of[text]]
            found = known[keys[text]]
            return found.part[found.row]["vector"]

        return np.stack([vector(text) for text in texts]) if len(texts) else fresh

    def _known(self) -> dict[bytes, _Found]:
        """Every vector that is kept for this embedder. Broken parts are removed: they can be made again."""
        found: dict[bytes, _Found] = {}
        for path in sorted(self._folder.glob("*.npy")):
            part = _read(path)
            if part is None:
                log.warning("%s is damaged: its vectors are computed again", path)
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            found |= {key.tobytes(): _Found(part, row) for row, key in enumerate(part["key"])}
        if found:
            with contextlib.suppress(OSError):  # of somebody else's cache; this only keeps it young
                os.utime(self._folder)
        return found

    def _keep(self, keys: list[bytes], vectors: np.ndarray) -> None:
        """Add a part. What is kept only saves time, so that a full or read-only disk is no reason to stop."""
        part = np.empty(len(keys), dtype=[("key", np.uint8, _KEY_BYTES), ("vector", np.float32, vectors.shape[1])])
        part["key"] = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), _KEY_BYTES)
        part["vector"] = vectors
        try:
            with atomic_write(self._folder / f"{_content(part)}.npy") as scratch, scratch.open("wb") as stream:
                np.save(stream, part, allow_pickle=False)
            _make_room(self._folder.parent, self._limit)
        except OSError as error:
            log.warning("vectors are not kept in %s (%s)", self._folder, error.strerror or error)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:_KEY_BYTES]


def _content(part: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(part).view(np.uint8).data).hexdigest()[:32]


def _read(path: Path) -> np.ndarray | None:
    """A part of a known content; None if it is not what its name says."""
    try:
        part = np.load(path, mmap_mode="r", allow_pickle=False)
        return part if _content(part) == path.stem else None
    except (OSError, ValueError, TypeError):
        return None


def _make_room(root: Path, limit: int) -> None:
    """Remove the embedders not used for longest until the rest fits."""
    sizes = {}
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # another process may be making room too
            sizes[folder] = (folder.stat().st_mtime, sum(path.stat().st_size for path in folder.iterdir()))
    total = sum(size for _, size in sizes.values())
    for folder, (_, size) in sorted(sizes.items(), key=lambda entry: entry[1]):
        if total <= limit:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= size
