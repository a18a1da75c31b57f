"""Vectors in a file: made block by block, so that interrupted work goes on, with a record of what they are of.

VECTORS.npy            (texts, D) float32, every row of length 1, or what `cft.quantize` makes of it
VECTORS.contract.json  which embedder made them, of which texts: by it they are searched or refused
"""

import contextlib
import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cft.model.contract import PRECISION_OF
from cft.model.quantize import Dtype, quantize, ranges_of, restore
from cft.system.digest import digest, sha256_of_file, to_plain
from cft.system.disk import require_free
from cft.system.errors import UserError
from cft.system.files import atomic_write, exclusive_lock, read_record, write_record
from cft.system.overrides import override
from cft.system.text import counted

if TYPE_CHECKING:
    import numpy as np

    from cft.model.embedder import Embedder

_BLOCK = 2_000  # texts embedded between two writes to disk

# Says that shards were at work on blocks.
_SHARDS = "shards"

# Entries of a contract that say how its texts are worded; of two of them, a user can change one.
_PROMPT = "template"
# And what it computes in.
_COMPUTED = "dtype"


class TextsDigest:
    """The content of texts in their order, whatever file they stand in."""

    def __init__(self) -> None:
        """Begin without texts."""
        self._state = hashlib.sha256()
        self.count = 0

    def add(self, text: str) -> bytes:
        """Take the next text; returns its own SHA-256."""
        own = hashlib.sha256(text.encode()).digest()
        self._state.update(own)
        self.count += 1
        return own

    @property
    def name(self) -> str:
        """SHA-256 of all so far."""
        return self._state.hexdigest()


@dataclass(frozen=True)
class VectorsRecord:
    """What vectors in a file are of."""

    contract: dict[str, Any]  # all that they depend on beside the texts
    recipe: int  # the version of the computation
    texts: str  # SHA-256 of the texts in their order
    count: int  # texts
    vectors: str = ""  # SHA-256 of the file
    dimensions: int | None = None  # so many first numbers alone, of length 1 again; None for whole vectors
    dtype: Dtype = "float32"  # what they were made into
    ranges: list[list[float]] | None = None  # (2, D) least and largest numbers of the columns, of int8 and uint8
    width: int | None = None  # numbers of a vector, which single bits do not tell; None for float32

    @classmethod
    def of(cls, embedder: "Embedder", texts: TextsDigest, dimensions: int | None = None) -> "VectorsRecord":
        """What vectors will be of that `embedder.encode` makes of texts."""
        from cft.job.plan import RECIPE

        # encode uses one prompt, whatever the other roles have
        contract = embedder.contract.with_template(embedder.contract.template)
        return cls(to_plain(contract.facts), RECIPE, texts.name, texts.count, dimensions=dimensions)

    @property
    def name(self) -> str:
        """A short name of all that the vectors are of, before they are made into another kind of number."""
        return digest([self.contract, self.recipe, self.texts, *([self.dimensions] if self.dimensions else [])])


def record_of(vectors: Path) -> Path:
    """Where the record of a file of vectors stands."""
    return vectors.with_suffix(".contract.json")


def blocks_of(target: Path) -> Path:
    """The folder of what is embedded already."""
    return target.with_name(f".{target.name}.parts")


def cut_message(embedder: "Embedder", count: int) -> str:
    """How many texts were too long, as a line; nothing if none were."""
    if not count:
        return ""
    return (
        f"{counted(count, 'text')} reached the {embedder.contract.max_length} tokens that this embedder "
        "reads at most: what is behind them was left out\n"
    )


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of the work on a file, for processes side by side."""

    number: int  # from 1
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A shard out of words such as 3/64.

        Raises:
            UserError: if they name none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"{override('shard', text)}: must be NUMBER/OF, as in shard=3/64, from 1 on")
        return cls(int(match[1]), int(match[2]))

    def has(self, block: int) -> bool:
        """Whether a block, numbered from 0, is its own."""
        return block % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class Encoder(Protocol):
    """What makes vectors (n, D) of texts, as `Embedder.encode` does."""

    @property
    def texts_cut(self) -> int:
        """How many texts were too long so far."""

    def count_cut(self, texts: list[str]) -> int:
        """How many of these distinct texts are too long."""

    def encode(self, texts: list[str], *, dimensions: int | None = None, progress: str | None = None) -> "np.ndarray":
        """Their unit vectors; `progress` is the caption of a bar."""


class Blocks:
    """The vectors of a file to come, in blocks on disk."""

    def __init__(self, target: Path, record: VectorsRecord, shard: Shard | None = None) -> None:
        """Keep them beside `target`; `shard` says which of them are made here, None all."""
        self._target, self._folder, self._shard = target, blocks_of(target), shard
        self._record, self._count = record, record.count

    def _files(self) -> list[Path]:
        ending = _ending(self._record)
        return [self._folder / f"{number:06}{ending}" for number in range(-(-self._count // _BLOCK))]

    def embed(self, embedder: Encoder, texts: Iterator[str]) -> int:
        """Embed what is not embedded yet, block by block; progress goes to stderr.

        Args:
            embedder: of the record. texts: of the record, all, in their order.

        Returns:
            How many were too long to be read whole, those that were embedded before counted in.

        Raises:
            UserError: if they are others than those of the record: their file was changed in between.
        """
        import numpy as np
        from tqdm import tqdm

        made_of, paths = TextsDigest(), self._files()
        own = {path for number, path in enumerate(paths) if self._shard is None or self._shard.has(number)}
        count = min(len(own) * _BLOCK, self._count)
        done = sum(path.exists() for path in own)
        if done:
            before = counted(min(done * _BLOCK, count), "text")
            sys.stderr.write(f"{before} of {count:,} were embedded before\n")
        has_room, cut, cut_elsewhere = False, 0, embedder.texts_cut
        with tqdm(total=count, desc="embedding", unit="text") as bar:
            for path in paths:
                block = list(islice(texts, _BLOCK))
                for text in block:
                    made_of.add(text)
                if path not in own:
                    continue
                if not path.exists():
                    caption = f"texts {bar.n + 1:,} to {bar.n + len(block):,}"  # a block may take minutes
                    vectors = embedder.encode(block, dimensions=self._record.dimensions, progress=caption)
                    if not has_room:  # for the blocks to come and, without shards, for the file that is made of all
                        rows = (2 if self._shard is None else 1) * count - done * _BLOCK
                        require_free(self._folder, rows * vectors.shape[1] * vectors.itemsize, "vectors of these texts")
                        has_room = True
                    with atomic_write(path) as scratch, scratch.open("wb") as stream:
                        np.save(stream, vectors, allow_pickle=False)
                else:
                    cut += embedder.count_cut(block)
                bar.update(len(block))
        if made_of.name != self._record.texts or next(texts, None) is not None:
            for path in own:
                path.unlink(missing_ok=True)
            raise UserError("the texts were changed while they were embedded; run the same command again")
        return cut + embedder.texts_cut - cut_elsewhere

    @property
    def missing(self) -> int:
        """How many of all blocks are not there yet."""
        return sum(not path.exists() for path in self._files())

    def arrays(self) -> "Iterator[np.ndarray]":
        """The blocks (n, D), one in memory at a time."""
        import numpy as np

        return (np.load(path, allow_pickle=False) for path in self._files())

    def ranges(self) -> "np.ndarray":
        """Least and largest number (2, D) of each column of all blocks."""
        import numpy as np

        found: np.ndarray | None = None
        for block in self.arrays():
            own = ranges_of(block)
            found = own if found is None else np.stack([np.minimum(found[0], own[0]), np.maximum(found[1], own[1])])
        assert found is not None
        return found

    def write_npy(self, dtype: Dtype = "float32", ranges: "np.ndarray | None" = None) -> None:
        """Write the file, and its record before it is in its place.

        Args:
            dtype, ranges: as `cft.quantize` takes them.
        """
        import numpy as np

        with atomic_write(self._target) as scratch:
            with scratch.open("wb") as stream:
                for number, block in enumerate(self.arrays()):
                    made = np.ascontiguousarray(quantize(block, dtype, ranges))
                    made = made.astype(made.dtype.newbyteorder("<"), copy=False)
                    if number == 0:
                        shape = (self._count, made.shape[1])
                        header = {"descr": made.dtype.str, "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(stream, header)
                    stream.write(made.tobytes())
            record = replace(self._record, vectors=sha256_of_file(scratch))
            if dtype != "float32":
                listed = None if ranges is None else ranges.tolist()
                record = replace(record, dtype=dtype, ranges=listed, width=block.shape[1])
            write_record(record_of(self._target), to_plain(record))


class Restored:
    """Vectors that a file has in fewer bytes, as unit vectors (n, D) float32; a part is made when it is looked at."""

    def __init__(self, stored: "np.ndarray", record: VectorsRecord) -> None:
        """Put them together: what the file has, and the record of it."""
        self._stored, self._record = stored, record
        self.shape = (len(stored), record.width or stored.shape[1])

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, rows: slice) -> "np.ndarray":
        import numpy as np

        ranges = None if self._record.ranges is None else np.array(self._record.ranges, dtype=np.float32)
        made = restore(self._stored[rows], self._record.dtype, ranges, width=self.shape[1])
        lengths = np.linalg.norm(made, axis=1, keepdims=True)
        return made / np.where(lengths == 0, 1, lengths)


@contextlib.contextmanager
def in_blocks(target: Path, record: VectorsRecord, shard: Shard | None = None) -> Iterator[Blocks]:
    """Hold the blocks of a file to come; they are removed when all is done.

    Args:
        target: the file. record: what it will be of: blocks of other texts or of another embedder are removed first,
            or refused if shards are or were at work.
        shard: of several processes side by side, which may be at work on the folder at once; its blocks are left for
            the one that writes the file. None for that one.

    Raises:
        UserError: if blocks of shards are of other work.
    """
    folder = blocks_of(target)
    if shard:
        with exclusive_lock(folder, wait=True):
            _make_ready(folder, record, shard)
            (folder / _SHARDS).touch()
        yield Blocks(target, record, shard)
        return
    with exclusive_lock(folder):
        _make_ready(folder, record, None)
        yield Blocks(target, record)
    shutil.rmtree(folder)


def _ending(record: VectorsRecord) -> str:
    """How names of blocks end: by what they are of, so that those of two works are never taken for one."""
    return f"-{record.name}-{_BLOCK}.npy"


def _make_ready(folder: Path, record: VectorsRecord, shard: Shard | None) -> None:
    """Remove blocks of other work; those of shards, which may be at work and have taken days, are not to be lost."""
    own = _ending(record)
    others = [block for block in folder.glob("*.npy") if not block.name.endswith(own)]
    if others and (shard or (folder / _SHARDS).exists()):
        raise UserError(
            f"{folder} holds {counted(len(others), 'block')} of other texts, another embedder or other settings than "
            "these: give all shards, and the command that writes the file, the same file and settings, or name "
            "another output; to begin anew, remove that folder"
        )
    for block in others:
        block.unlink()


def open_vectors(path: Path, expected: VectorsRecord, corpus: str) -> "np.ndarray | Restored":
    """Vectors of a file, mapped into memory, after they were held to their record.

    They may be whole or their first numbers alone: their width says which.

    Args:
        path: the .npy file. expected: what they must be of. corpus: the file of the texts, for messages.

    Raises:
        UserError: if they are of another embedder, prompt or texts, were changed, or have no record.
    """
    import numpy as np

    name = override("vectors", str(path))
    if path.suffix != ".npy":
        raise UserError(f"{name}: must be an .npy file, as `python -m cft.encode` writes it")
    if not path.is_file():
        raise UserError(
            f"{name}: no such file; `python -m cft.encode` writes it, and without vectors= the texts are embedded here"
        )
    if not record_of(path).exists():
        raise UserError(
            f"{name}: has no {record_of(path).name} beside it, by which its embedder and texts are known; "
            "`python -m cft.encode` writes it with the vectors"
        )
    record = read_record(record_of(path), VectorsRecord)
    _require_embedder(name, record, expected)
    if record.texts != expected.texts:
        raise UserError(
            f"{name}: its {counted(record.count, 'vector')} are not of the {counted(expected.count, 'text')} of "
            f"{corpus}: other texts, another column= or on_bad_row=, or the file was changed since; embed it again"
        )
    if record.vectors != sha256_of_file(path):
        raise UserError(f"{name}: was changed after it was written; embed the texts again")
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored if record.dtype == "float32" else Restored(stored, record)


def with_ranges(path: Path, dtype: Dtype) -> VectorsRecord:
    """The record of a file of int8 or uint8, by whose ranges others of that kind are made.

    Raises:
        UserError: if there is no such file, or it is none of that kind.
    """
    name, record = override("ranges", str(path)), record_of(path)
    if path.suffix != ".npy" or not path.is_file() or not record.is_file():
        raise UserError(f"{name}: no .npy file with its {record.name} beside it")
    found = read_record(record, VectorsRecord)
    if found.ranges is None:
        raise UserError(f"{name}: was made without ranges, which int8 and uint8 have")
    if found.dtype != dtype:
        raise UserError(
            f"{name}: holds {found.dtype}, and {override('dtype', dtype)} is not comparable with it; set "
            f"{override('dtype', found.dtype)}, or name a file of {dtype}"
        )
    return found


def ranges_of_record(name: str, record: VectorsRecord, expected: VectorsRecord, width: int) -> "np.ndarray":
    """The ranges (2, D) of a file, for more vectors of the same embedder, under whatever prompt.

    Args:
        name: of the setting with its value, for messages. record: of the file, from `with_ranges`. expected: what the
            new vectors will be of. width: how many numbers they have.

    Raises:
        UserError: if the file is of another embedder, or of another number of first numbers.
    """
    import numpy as np

    _require_embedder(name, record, expected, any_prompt=True)
    ranges = np.array(record.ranges, dtype=np.float32)
    if ranges.shape[1] != width:
        raise UserError(f"{name}: has {ranges.shape[1]} numbers a vector, not {width}")
    return ranges


def _embedder_of(contract: dict) -> str:
    base, adapter = contract.get("weights"), contract.get("adapter")
    return f"a training of {base} (adapter {adapter[:12]})" if adapter else f"{base}, untrained"


def _require_embedder(name: str, record: VectorsRecord, expected: VectorsRecord, *, any_prompt: bool = False) -> None:
    """Refuse vectors of another embedder, or under another prompt unless any will do; naming both."""
    theirs, ours = record.contract | {"recipe": record.recipe}, expected.contract | {"recipe": expected.recipe}
    different = sorted(key for key in theirs | ours if theirs.get(key) != ours.get(key))
    if any_prompt:
        different = [key for key in different if key != _PROMPT]
    if different == [_PROMPT]:
        again = override("prompt", ours[_PROMPT])
        raise UserError(
            f"{name}: embedded under the prompt {theirs[_PROMPT]!r}, but here documents have {ours[_PROMPT]!r}; embed "
            f"it again with {again}"
        )
    if different == [_COMPUTED]:
        one, other = theirs[_COMPUTED], ours[_COMPUTED]
        add, again = (override("precision", PRECISION_OF[each]) for each in (one, other))
        raise UserError(f"{name}: computed in {one}, here in {other}; add {add}, or embed it again with {again}")
    if theirs.get("adapter") != ours.get("adapter"):
        raise UserError(f"{name}: made by another embedder: {_embedder_of(theirs)} there, {_embedder_of(ours)} here")
    if different:
        both = "; ".join(f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in different[:2])
        raise UserError(f"{name}: made by another embedder ({both})")
