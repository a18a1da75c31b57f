"""Vectors of a file's texts, written whole and resumed where they stopped."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cft.data.files import Skipped, stream_texts
from cft.deploy.load import TextFileOptions, load_embedder
from cft.system.digest import digest, sha256_of_file
from cft.system.disk import require_free
from cft.system.errors import UserError
from cft.system.files import atomic_write, exclusive_lock, read_json, write_json

if TYPE_CHECKING:
    from cft.model.embedder import Embedder

_BLOCK = 2_000  # texts embedded between two writes to disk
_ENDINGS = (".npy", ".parquet")
_PIPE = "-"
_MOST_TOLD = 10  # rows that are left out and named


@dataclass(frozen=True)
class EncodeOptions(TextFileOptions):
    """Embed every text of a file, in the file's order: unit vectors, float32."""

    input: Annotated[
        str, "a .txt of one text a line, .csv, .tsv, .jsonl (each also .gz), .parquet, or - for lines on stdin"
    ]
    output: Annotated[str, ".npy (rows, D), .parquet (text, vector), or - for .npy on stdout"]
    _: KW_ONLY
    overwrite: Annotated[bool, "replace an output that exists"] = False


def encode_file(options: EncodeOptions) -> tuple[int, int]:
    """Embed a file, or what comes through a pipe; progress goes to stderr.

    Returns:
        How many texts were embedded, and how many rows were left out.

    Raises:
        UserError: naming the file and row, before anything is embedded.
    """
    with _file_for(options.input, ".txt") as source, _file_for(options.output, ".npy") as target:
        if options.input == _PIPE:
            with source.open("wb") as stream:
                shutil.copyfileobj(sys.stdin.buffer, stream)
        count, skipped = _encode(options, source, target)
        if options.output == _PIPE:
            with target.open("rb") as stream:
                shutil.copyfileobj(stream, sys.stdout.buffer)
    left_out = f", {_counted(skipped, 'row')} left out" if skipped else ""
    sys.stderr.write(f"{_counted(count, 'text')} embedded{left_out}: {options.output}\n")
    return count, skipped


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def _file_for(name: str, ending: str) -> Iterator[Path]:
    """The file of that name; a temporary one for a pipe."""
    if name != _PIPE:
        yield Path(name).expanduser()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / f"pipe{ending}"


def _encode(options: EncodeOptions, source: Path, target: Path) -> tuple[int, int]:
    _check_output(target, overwrite=options.overwrite)

    def rows() -> Iterator[str | Skipped]:
        return stream_texts(source, column=options.column, on_bad_row=options.on_bad_row)

    def texts() -> Iterator[str]:
        return (row for row in rows() if isinstance(row, str))

    count, skipped = _count(rows())  # every row is checked before the first is embedded: a bad one may be the last
    embedder = load_embedder(options.run, prompt=options.prompt, device=options.device)
    facts = [embedder.contract.facts, sha256_of_file(source), options.column, options.on_bad_row.value, _BLOCK]
    blocks = target.with_name(f".{target.name}.parts")
    with exclusive_lock(blocks):
        _remove_other_work(blocks, digest(facts))
        _embed(embedder, texts(), count, blocks)
        if embedder.texts_cut:
            sys.stderr.write(
                f"{_counted(embedder.texts_cut, 'text')} reached the {embedder.contract.max_length} tokens that this "
                "embedder reads at most: what is behind them was left out\n"
            )
        _write(target, blocks, count, texts())
    shutil.rmtree(blocks)
    return count, skipped


def _check_output(target: Path, *, overwrite: bool) -> None:
    if target.suffix not in _ENDINGS:
        raise UserError(f"{target}: the output must end in {' or '.join(_ENDINGS)}, or be -")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; name another output, or set overwrite=true")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")


def _count(rows: Iterator[str | Skipped]) -> tuple[int, int]:
    """How many rows are texts, and how many are left out; the first of the latter are named."""
    count = skipped = 0
    for row in rows:
        if isinstance(row, Skipped):
            skipped += 1
            if skipped <= _MOST_TOLD:
                sys.stderr.write(f"skipped {row.where}: {row.reason}\n")
        else:
            count += 1
    return count, skipped


def _remove_other_work(blocks: Path, name: str) -> None:
    """Remove blocks of other texts or of another embedder."""
    path = blocks / "work.json"
    if not path.exists() or read_json(path, str) != name:
        for block in blocks.glob("*.npy"):
            block.unlink()
        write_json(path, name)


def _block_files(blocks: Path, count: int) -> list[Path]:
    return [blocks / f"{number:06}.npy" for number in range(-(-count // _BLOCK))]


def _embed(embedder: "Embedder", texts: Iterator[str], count: int, blocks: Path) -> None:
    """Embed what is not embedded yet, block by block."""
    import numpy as np
    from tqdm import tqdm

    paths = _block_files(blocks, count)
    done = sum(path.exists() for path in paths)
    if done:
        sys.stderr.write(f"{_counted(min(done * _BLOCK, count), 'text')} of {count:,} were embedded before\n")
    with tqdm(total=count, desc="embedding", unit="text", disable=not sys.stderr.isatty()) as bar:
        for number, path in enumerate(paths):
            block = list(islice(texts, _BLOCK))
            if not path.exists():
                vectors = embedder.encode(block)
                if number == done:  # room for the blocks to come and for the file that is made of all
                    rows = 2 * count - done * _BLOCK
                    require_free(blocks, rows * vectors.shape[1] * vectors.itemsize, "vectors of these texts")
                with atomic_write(path) as scratch, scratch.open("wb") as stream:
                    np.save(stream, vectors, allow_pickle=False)
            bar.update(len(block))


def _write(target: Path, blocks: Path, count: int, texts: Iterator[str]) -> None:
    """Write the output, one block in memory at a time."""
    import numpy as np

    vectors = (np.load(path, allow_pickle=False) for path in _block_files(blocks, count))
    with atomic_write(target) as scratch:
        if target.suffix == ".npy":
            _write_npy(scratch, vectors, count)
        else:
            _write_parquet(scratch, vectors, texts)


def _write_npy(path: Path, blocks: Iterator[Any], count: int) -> None:
    import numpy as np

    with path.open("wb") as stream:
        for number, block in enumerate(blocks):
            if number == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, block.shape[1])}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(np.ascontiguousarray(block, dtype="<f4").tobytes())


def _write_parquet(path: Path, blocks: Iterator[Any], texts: Iterator[str]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    with contextlib.ExitStack() as stack:
        writer = None
        for block in blocks:
            vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.reshape(-1)), block.shape[1])
            column = pyarrow.array(list(islice(texts, len(block))), type=pyarrow.large_string())
            table = pyarrow.table({"text": column, "vector": vectors})
            writer = writer or stack.enter_context(ParquetWriter(path, table.schema))
            writer.write_table(table)
