"""Vectors kept on disk, so that no embedder embeds a text twice, in whatever set or sweep it recurs.

    CACHE/vectors/CONTRACT-DIGEST/PART.npy    rows of (hash of the text, vector); PART is a hash of the file's content

The folder is named by what vectors depend on: the contract, the kind of device and the version of the computation. A
vector's last bits (about 1e-7) also depend on the texts of its batch, so on what was in the cache before.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from cft.config.schema import Role
from cft.data.texts import checked_texts
from cft.model.embedder import Embedder
from cft.system.digest import digest
from cft.system.files import atomic_write, cache_folder

log = logging.getLogger(__name__)

_KEY_BYTES = 16


class CachedEncoder:
    """An embedder that keeps its vectors, and runs only texts whose vectors it does not have.

    Its contract must identify its weights, which that of an embedder in training does not.
    """

    def __init__(self, embedder: Embedder, *, gigabytes: float, version: int) -> None:
        """Put a cache in front of an embedder.

        Args:
            embedder: a base model, or one with weights that its contract names.
            gigabytes: limit of the whole cache; embedders not used for longest are removed first. 0 keeps nothing.
            version: of the computation; vectors of other versions are not used.
        """
        self._embedder = embedder
        self._limit = int(gigabytes * 1e9)
        self._version = version
        self._folder = _folder_of(embedder, version)

    def in_role(self, role: Role) -> "CachedEncoder":
        """The same in front of the embedder under the prompt of a role; itself if all roles have the same."""
        embedder = self._embedder.in_role(role)
        if embedder is self._embedder:
            return self
        return CachedEncoder(embedder, gigabytes=self._limit / 1e9, version=self._version)

    def encode(self, texts: Iterable[str], *, progress: str | None = None) -> np.ndarray:
        """As `Embedder.encode`, but only texts that are new go through the model."""
        texts = checked_texts(texts)  # here, where they are counted as they were given
        if not self._limit:
            return self._embedder.encode(texts, progress=progress)
        keys = {text: _key(text) for text in texts}
        vectors = self._load(set(keys.values()))
        new = [text for text, key in keys.items() if key not in vectors]
        if len(new) < len(keys):
            log.info("%d of %d texts were embedded before by this very embedder", len(keys) - len(new), len(keys))
        if new or not texts:
            fresh = self._embedder.encode(new, progress=progress)
        if not texts:
            return fresh
        if new:
            self._save([keys[text] for text in new], fresh)
            vectors |= zip((keys[text] for text in new), fresh, strict=True)
        return np.stack([vectors[keys[text]] for text in texts])

    def _load(self, wanted: Collection[bytes]) -> dict[bytes, np.ndarray]:
        """The vectors of these keys that are kept; of others, none stays in memory. Damaged parts are removed."""
        vectors: dict[bytes, np.ndarray] = {}
        paths = sorted(self._folder.glob("*.npy"))
        for path in paths:
            part = _read(path)
            if part is None:
                log.warning("%s is damaged: its vectors are computed again", path)
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            kept = {key.tobytes(): row for row, key in enumerate(part["key"])}
            found = [key for key in wanted if key in kept]
            vectors |= zip(found, part["vector"][[kept[key] for key in found]], strict=True)  # a copy
        if paths:
            with contextlib.suppress(OSError):  # a shared cache may be read-only
                os.utime(self._folder)  # by which `make_room` knows when it was used
        return vectors

    def _save(self, keys: list[bytes], vectors: np.ndarray) -> None:
        """Add a part. The cache only saves time: a full or read-only disk gives a warning, not an error."""
        part = np.empty(len(keys), dtype=[("key", np.uint8, _KEY_BYTES), ("vector", np.float32, vectors.shape[1])])
        part["key"] = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), _KEY_BYTES)
        part["vector"] = vectors
        try:
            with atomic_write(self._folder / f"{_content(part)}.npy") as scratch, scratch.open("wb") as stream:
                np.save(stream, part, allow_pickle=False)
            make_room(self._folder.parent, self._limit)
        except OSError as error:
            log.warning("vectors are not kept in %s (%s)", self._folder, error.strerror or error)


def kept_vectors(embedder: Embedder, wanted: np.ndarray, *, version: int) -> tuple[np.ndarray, np.ndarray]:
    """What evaluations keep of an embedder's vectors; damaged parts are passed over.

    Args:
        embedder: whose contract identifies its weights.
        wanted: (n,) first bytes of SHA-256 of texts, as many as are kept.
        version: of the computation.

    Returns:
        (m,) those of them that are kept, each once, and their vectors (m, D), m from 0 to n.
    """
    keys, vectors = [np.empty(0, dtype=wanted.dtype)], [np.empty((0, embedder.width), dtype=np.float32)]
    for path in sorted(_folder_of(embedder, version).glob("*.npy")):
        part = _read(path)
        if part is None:
            continue
        theirs = np.ascontiguousarray(part["key"]).view(wanted.dtype)[:, 0]
        is_wanted = np.isin(theirs, wanted)
        keys.append(theirs[is_wanted])
        vectors.append(part["vector"][is_wanted])
    every, first = np.unique(np.concatenate(keys), return_index=True)
    return every, np.concatenate(vectors)[first]


def _folder_of(embedder: Embedder, version: int) -> Path:
    return cache_folder() / "vectors" / digest([embedder.contract.facts, embedder.device.type, version])


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:_KEY_BYTES]


def _content(part: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(part).view(np.uint8).data).hexdigest()[:32]


def _read(path: Path) -> np.ndarray | None:
    """A part, mapped into memory; None if its content is not the one that its name says."""
    try:
        part = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        return part if _content(part) == path.stem else None
    except (OSError, ValueError, TypeError):
        return None


def make_room(root: Path, limit: int) -> None:
    """Remove the folders not used for longest until the rest fits into so many bytes."""
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
