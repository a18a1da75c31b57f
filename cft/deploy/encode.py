"""Vectors of the texts of a file, written whole and resumed where they stopped."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft.data.files import BadRows, Skipped, stream_texts
from cft.deploy.load import DEVICE, PROMPT, RUN, load_embedder
from cft.system.arguments import Command, Key
from cft.system.digest import digest, sha256_of_file
from cft.system.disk import require_free
from cft.system.errors import UserError
from cft.system.files import atomic_write, exclusive_lock, read_json, write_json

if TYPE_CHECKING:
    from cft.model.embedder import Embedder


_BLOCK = 2_000


_OUTPUTS = (".npy", ".parquet")


_PIPE = "-"


COLUMN = Key("the column that holds the texts, in files that have columns", default="text")


ON_BAD_ROW = Key("what to do with a row that holds no text", default="raise", choices=("raise", "skip"))


@contextlib.contextmanager
def _file(name: str, ending: str) -> Iterator[Path]:
    """A place of the command as a file; what goes through a pipe is kept in one for the while."""
    if name != _PIPE:
        yield Path(name).expanduser()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / f"pipe{ending}"


def encode_file(values: dict[str, str], source: Path, target: Path) -> tuple[int, int]:
    """Embed a file.

    Args:
        values: of the command's keys. source, target: its places, as files.

    Returns:
        How many texts were embedded, and how many rows were left out.

    Raises:
        UserError: naming the file and row, before anything is embedded.
    """
    if target.suffix not in _OUTPUTS:
        raise UserError(f"{target}: the output must end in {' or '.join(_OUTPUTS)}, or be -")
    if target.exists() and values["overwrite"] != "true":
        raise UserError(f"{target} exists; name another output, or set overwrite=true")
    if target.parent != Path() and not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")

    def texts() -> Iterator[str | Skipped]:
        return stream_texts(source, column=values["column"], on_bad_row=BadRows(values["on_bad_row"]))

    count = skipped = 0
    for row in texts():  # all rows are looked at before the first is embedded: a bad one may be the last
        if isinstance(row, Skipped):
            skipped += 1
            sys.stderr.write(f"skipped {row.where}: {row.reason}\n" if skipped <= 10 else "")
        else:
            count += 1

    def good() -> Iterator[str]:
        return (row for row in texts() if isinstance(row, str))

    embedder = load_embedder(values)
    parts = target.with_name(f".{target.name}.parts")
    with exclusive_lock(parts):
        _same_work(parts, [embedder.contract, sha256_of_file(source), values["column"], values["on_bad_row"], _BLOCK])
        _embed(embedder, good(), count, parts)
        if embedder.at_limit:
            limit = embedder.contract.max_length
            told = f"{_count(embedder.at_limit, 'text')} reached the {limit} tokens that this embedder reads at most"
            sys.stderr.write(f"{told}: what is behind them was left out\n")
        _write(target, parts, count, good())
    shutil.rmtree(parts)
    return count, skipped


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _same_work(parts: Path, facts: list[Any]) -> None:
    """Drop blocks that belong to other texts or another embedder."""
    told = parts / "work.json"
    if not told.exists() or read_json(told, str) != digest(facts):
        for path in parts.glob("*.npy"):
            path.unlink()
        write_json(told, digest(facts))


def _embed(embedder: "Embedder", texts: Iterator[str], count: int, parts: Path) -> None:
    """Embed what is not embedded yet, block by block."""
    import numpy as np
    from tqdm import tqdm

    kept = sum(_part(parts, number).exists() for number in range(-(-count // _BLOCK)))
    if kept:
        sys.stderr.write(f"{_count(min(kept * _BLOCK, count), 'text')} of {count:,} were embedded before\n")
    with tqdm(total=count, desc="embedding", unit="text", disable=not sys.stderr.isatty()) as bar:
        for number in range(-(-count // _BLOCK)):
            block = list(islice(texts, _BLOCK))
            path = _part(parts, number)
            if not path.exists():
                vectors = embedder.encode(block)
                if number == kept:  # the blocks to come and, before they go, the file that is put together of them
                    to_come = 2 * count - kept * _BLOCK
                    require_free(parts, to_come * vectors.shape[1] * vectors.itemsize, "vectors of these texts")
                with atomic_write(path) as scratch, scratch.open("wb") as stream:
                    np.save(stream, vectors, allow_pickle=False)
            bar.update(len(block))


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06}.npy"


def _write(target: Path, parts: Path, count: int, texts: Iterator[str]) -> None:
    """Put the blocks together; one at a time is in memory."""
    import numpy as np

    blocks = (np.load(_part(parts, number), allow_pickle=False) for number in range(-(-count // _BLOCK)))
    with atomic_write(target) as scratch:
        if target.suffix == ".npy":
            _write_npy(scratch, blocks, count)
        else:
            _write_parquet(scratch, blocks, texts)


def _write_npy(scratch: Path, blocks: Iterator[Any], count: int) -> None:
    import numpy as np

    with scratch.open("wb") as stream:
        for number, block in enumerate(blocks):
            if number == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, block.shape[1])}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(np.ascontiguousarray(block, dtype="<f4").tobytes())


def _write_parquet(scratch: Path, blocks: Iterator[Any], texts: Iterator[str]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    writer = None
    for block in blocks:
        vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(block.reshape(-1)), block.shape[1])
        columns = [arrow.array(list(islice(texts, len(block))), type=arrow.large_string()), vectors]
        table = arrow.Table.from_arrays(columns, names=["text", "vector"])
        writer = writer or parquet.ParquetWriter(scratch, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


COMMAND = Command(
    "cft.encode",
    "Embed every text of a file, in the file's order: unit vectors, float32.",
    keys={
        "run": RUN,
        "column": COLUMN,
        "prompt": PROMPT,
        "device": DEVICE,
        "on_bad_row": ON_BAD_ROW,
        "overwrite": Key("replace an output that exists", default="false", choices=("true", "false")),
    },
    places={
        "input": "a .txt of one text a line, .csv, .tsv, .jsonl (each also .gz), .parquet, or - for lines on stdin",
        "output": ".npy (rows, D), .parquet (text, vector), or - for .npy on stdout",
    },
    example="run=outputs/smollm2-files-1a2b3c4d5e6f texts.txt vectors.npy",
)
