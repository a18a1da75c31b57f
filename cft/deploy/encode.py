"""Vectors of a file's texts, written whole and resumed where they stopped."""

import contextlib
import csv
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cft.data.files import Skipped, stream_texts, stream_texts_with_ids
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
    output: Annotated[
        str,
        ".npy (texts, D), with the numbers of the rows in a .rows.csv beside it if rows are left out or have ids; "
        ".parquet (row, id, text, vector); or - for .npy on stdout",
    ]
    _: KW_ONLY
    id_column: Annotated[str, "a column of the input whose values are kept beside the vectors"] = ""
    overwrite: Annotated[bool, "replace an output that exists"] = False


class _Row(NamedTuple):
    """A text that is embedded."""

    number: int  # of its row in the input, from 1
    id: str  # empty if none are kept
    text: str


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
    _check_output(target, options)

    def rows() -> Iterator[_Row | Skipped]:
        return _rows(options, source)

    def kept() -> Iterator[_Row]:
        return (row for row in rows() if isinstance(row, _Row))

    count, skipped = _count(rows())  # every row is checked before the first is embedded: a bad one may be the last
    embedder = load_embedder(options.run, prompt=options.prompt, device=options.device, model_path=options.model_path)
    facts = [embedder.contract.facts, sha256_of_file(source), options.column, options.on_bad_row.value, _BLOCK]
    facts += [options.id_column] if options.id_column else []  # rows without an id are left out
    blocks = _blocks_of(target)
    with exclusive_lock(blocks):
        _remove_other_work(blocks, digest(facts))
        _embed(embedder, (row.text for row in kept()), count, blocks)
        if embedder.texts_cut:
            sys.stderr.write(
                f"{_counted(embedder.texts_cut, 'text')} reached the {embedder.contract.max_length} tokens that this "
                "embedder reads at most: what is behind them was left out\n"
            )
        _write_rows(target, kept() if skipped or options.id_column else None, with_ids=bool(options.id_column))
        _write(target, blocks, count, kept(), bool(options.id_column))
    shutil.rmtree(blocks)
    return count, skipped


def _rows(options: EncodeOptions, source: Path) -> Iterator[_Row | Skipped]:
    """Every row of the input, numbered."""
    found: Iterator[Any]
    if options.id_column:
        found = stream_texts_with_ids(
            source, column=options.column, id_column=options.id_column, on_bad_row=options.on_bad_row
        )
    else:
        texts = stream_texts(source, column=options.column, on_bad_row=options.on_bad_row)
        found = (row if isinstance(row, Skipped) else (row, "") for row in texts)
    for number, row in enumerate(found, start=1):
        yield row if isinstance(row, Skipped) else _Row(number, row[1], row[0])


def _blocks_of(target: Path) -> Path:
    """The folder of what is embedded already."""
    return target.with_name(f".{target.name}.parts")


def _rows_file(target: Path) -> Path:
    """Where the numbers of an .npy file's rows are kept."""
    return target.with_suffix(".rows.csv")


def _check_output(target: Path, options: EncodeOptions) -> None:
    if target.suffix not in _ENDINGS:
        raise UserError(f"{target}: the output must end in {' or '.join(_ENDINGS)}, or be -")
    if options.id_column and options.output == _PIPE:
        raise UserError("id_column= keeps ids in a file beside the vectors: name an output instead of -")
    if options.id_column and (options.input == _PIPE or options.input.lower().endswith((".txt", ".txt.gz"))):
        raise UserError(f"id_column={options.id_column}: lines of plain text have no columns; leave it out")
    begun = _blocks_of(target).exists()  # the numbers of the rows are written before the vectors
    for path in (target, _rows_file(target)) if target.suffix == ".npy" and not begun else (target,):
        if path.exists() and not options.overwrite:
            raise UserError(f"{path} exists; name another output, or set overwrite=true")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")


def _count(rows: Iterator[_Row | Skipped]) -> tuple[int, int]:
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


def _write_rows(target: Path, rows: Iterator[_Row] | None, *, with_ids: bool) -> None:
    """Write which row of the input each vector of an .npy file is of; None if they are all its rows in their order."""
    if target.suffix != ".npy":
        return
    if rows is None:
        _rows_file(target).unlink(missing_ok=True)  # of an output that is overwritten
        return
    with atomic_write(_rows_file(target)) as scratch, scratch.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", "id"] if with_ids else ["row"])
        writer.writerows([row.number, row.id] if with_ids else [row.number] for row in rows)


def _write(target: Path, blocks: Path, count: int, rows: Iterator[_Row], with_ids: bool) -> None:
    """Write the output, one block in memory at a time."""
    import numpy as np

    vectors = (np.load(path, allow_pickle=False) for path in _block_files(blocks, count))
    with atomic_write(target) as scratch:
        if target.suffix == ".npy":
            _write_npy(scratch, vectors, count)
        else:
            _write_parquet(scratch, vectors, rows, with_ids=with_ids)


def _write_npy(path: Path, blocks: Iterator[Any], count: int) -> None:
    import numpy as np

    with path.open("wb") as stream:
        for number, block in enumerate(blocks):
            if number == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, block.shape[1])}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(np.ascontiguousarray(block, dtype="<f4").tobytes())


def _write_parquet(path: Path, blocks: Iterator[Any], rows: Iterator[_Row], *, with_ids: bool) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    with contextlib.ExitStack() as stack:
        writer = None
        for block in blocks:
            vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.reshape(-1)), block.shape[1])
            numbers, ids, texts = zip(*islice(rows, len(block)), strict=True)
            columns = {"row": pyarrow.array(numbers, type=pyarrow.int64())}
            if with_ids:
                columns["id"] = pyarrow.array(ids, type=pyarrow.large_string())
            columns["text"] = pyarrow.array(texts, type=pyarrow.large_string())
            table = pyarrow.table(columns | {"vector": vectors})
            writer = writer or stack.enter_context(ParquetWriter(path, table.schema))
            writer.write_table(table)
