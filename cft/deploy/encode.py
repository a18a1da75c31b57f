"""Vectors of a file's texts, written whole and resumed where they stopped."""

import contextlib
import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cft.config.schema import Role
from cft.data.files import Skipped, stream_texts, stream_texts_with_ids
from cft.deploy import vectors
from cft.deploy.load import TextFileOptions, load_embedder, require_columns
from cft.deploy.vectors import VectorsRecord
from cft.model.quantize import IN_BYTES, Dtype, quantize
from cft.system.errors import UserError
from cft.system.files import atomic_write, require_output, user_path
from cft.system.overrides import override
from cft.system.text import counted

_ENDINGS = (".npy", ".parquet")
_PIPE = "-"
_MOST_TOLD = 10  # rows that are left out and named


@dataclass(frozen=True)
class EncodeOptions(TextFileOptions):
    """Embed every text of a file, in the file's order: unit vectors, float32 or in fewer bytes."""

    input: Annotated[
        str, "a .txt of one text a line, .csv, .tsv, .jsonl (each also .gz), .parquet, or - for lines on stdin"
    ]
    output: Annotated[
        str,
        ".npy (texts, D), with a .contract.json that names embedder and texts, and the numbers of the rows in a "
        ".rows.csv if rows are left out or have ids; "
        ".parquet (row, id, text, vector); or - for .npy on stdout",
    ]
    _: KW_ONLY
    id_column: Annotated[str, "a column of the input whose values are kept beside the vectors"] = ""
    role: Annotated[
        Role, "whose prompt of its training is around every text: any text's, a query's or a document's"
    ] = Role.text
    dimensions: Annotated[int | None, "so many first numbers of each vector alone, of length 1 again"] = None
    dtype: Annotated[
        Dtype,
        "float16, one byte a number (int8, uint8) or a bit (binary, ubinary), as sentence-transformers makes them",
    ] = "float32"
    ranges: Annotated[
        str, "an earlier .npy of that dtype by whose ranges int8 and uint8 are made; none: by those of these vectors"
    ] = ""
    shard: Annotated[
        str, "embed the third of 64 parts, as in shard=3/64, for jobs side by side; without it, the file is written"
    ] = ""
    overwrite: Annotated[bool, "replace an output that exists"] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        require_columns(".txt" if self.input == _PIPE else self.input, column=self.column, id_column=self.id_column)
        if self.prompt and self.role is not Role.text:
            role, prompt = override("role", self.role), override("prompt", self.prompt)
            raise UserError(f"{role} takes the prompt of its training, and {prompt} is another; leave one out")
        if self.ranges and self.dtype not in IN_BYTES:
            raise UserError(f"{override('ranges', self.ranges)} goes with dtype=int8 or dtype=uint8")
        if self.shard:
            vectors.Shard.parse(self.shard)
            if _PIPE in (self.input, self.output):
                raise UserError(f"{override('shard', self.shard)}: several jobs need a file to read and one to write")


class _Row(NamedTuple):
    """A text that is embedded."""

    number: int  # of its row in the input, from 1
    id: str  # empty if none are kept
    text: str


def encode_file(options: EncodeOptions) -> tuple[int, int]:
    """Embed a file, or what comes through a pipe; progress goes to stderr.

    Returns:
        How many texts there are, and how many rows were left out.

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
    if options.shard:
        return count, skipped
    left_out = f", {counted(skipped, 'row')} left out" if skipped else ""
    sys.stderr.write(f"{counted(count, 'text')} embedded{left_out}: {options.output}\n")
    return count, skipped


@contextlib.contextmanager
def _file_for(name: str, ending: str) -> Iterator[Path]:
    """The file of that name; a temporary one for a pipe."""
    if name != _PIPE:
        yield user_path(name)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / f"pipe{ending}"


def _encode(options: EncodeOptions, source: Path, target: Path) -> tuple[int, int]:
    _check_output(source, target, options)

    def rows() -> Iterator[_Row | Skipped]:
        return _rows(options, source)

    def kept() -> Iterator[_Row]:
        return (row for row in rows() if isinstance(row, _Row))

    like = vectors.with_ranges(user_path(options.ranges), options.dtype) if options.ranges else None
    made_of = vectors.TextsDigest()
    # every row is checked before the first is embedded: a bad one may be the last
    count, skipped = _count(rows(), made_of)
    if options.dtype in IN_BYTES and like is None and count < 2:
        raise UserError(f"dtype={options.dtype}: one text has no ranges; take those of an earlier file by ranges=")
    embedder = load_embedder(**options.embedder).in_role(options.role)
    if options.dimensions:
        embedder.require_dimensions(options.dimensions)
    record, width = VectorsRecord.of(embedder, made_of, options.dimensions), options.dimensions or embedder.width
    named = override("ranges", options.ranges)
    ranges = vectors.ranges_of_record(named, like, record, width) if like else None
    shard = vectors.Shard.parse(options.shard) if options.shard else None
    with vectors.in_blocks(target, record, shard) as blocks:
        cut = blocks.embed(embedder, (row.text for row in kept()))
        sys.stderr.write(vectors.cut_message(embedder, cut))
        if shard:
            sys.stderr.write(_what_is_left(blocks, shard))
            return count, skipped
        _write_rows(target, kept() if skipped or options.id_column else None, with_ids=bool(options.id_column))
        if options.dtype in IN_BYTES and ranges is None:
            ranges = blocks.ranges()
        if target.suffix == ".npy":
            blocks.write_npy(options.dtype, ranges)
        else:
            made = (quantize(block, options.dtype, ranges) for block in blocks.arrays())
            facts = {"dtype": options.dtype, "ranges": None if ranges is None else ranges.tolist()}
            with atomic_write(target) as scratch:
                _write_parquet(scratch, made, kept(), facts, with_ids=bool(options.id_column))
    return count, skipped


def _what_is_left(blocks: vectors.Blocks, shard: vectors.Shard) -> str:
    """After a shard: what others have to do."""
    left = blocks.missing
    others = f"{counted(left, 'block')} of other shards to come; then" if left else "all blocks are there;"
    return f"shard {shard} is embedded, {others} the same command without shard= writes the file\n"


def _rows(options: EncodeOptions, source: Path) -> Iterator[_Row | Skipped]:
    """Every row of the input, numbered."""
    found: Iterator[Any]
    if options.id_column:
        found = stream_texts_with_ids(
            source, column=options.column, id_column=options.id_column, on_bad_row=options.on_bad_row
        )
    else:
        called = "stdin" if options.input == _PIPE else ""
        texts = stream_texts(source, column=options.column, on_bad_row=options.on_bad_row, called=called)
        found = (row if isinstance(row, Skipped) else (row, "") for row in texts)
    for number, row in enumerate(found, start=1):
        yield row if isinstance(row, Skipped) else _Row(number, row[1], row[0])


def _rows_file(target: Path) -> Path:
    """Where the numbers of an .npy file's rows are kept."""
    return target.with_suffix(".rows.csv")


def _check_output(source: Path, target: Path, options: EncodeOptions) -> None:
    if options.output == _PIPE and options.id_column:
        raise UserError("id_column= keeps ids in a file beside the vectors: name an output instead of -")
    begun = vectors.blocks_of(target).exists()  # what stands beside the vectors is written before them
    beside = [_rows_file(target), vectors.record_of(target)] if target.suffix == ".npy" and not begun else []
    read = [source, *([user_path(options.ranges)] if options.ranges else [])]
    require_output(target, _ENDINGS, overwrite=options.overwrite, beside=beside, read=read)


def _count(rows: Iterator[_Row | Skipped], made_of: vectors.TextsDigest) -> tuple[int, int]:
    """How many rows are texts, and how many are left out; the first of the latter are named."""
    count = skipped = 0
    for row in rows:
        if isinstance(row, Skipped):
            skipped += 1
            if skipped <= _MOST_TOLD:
                sys.stderr.write(f"skipped {row.where}: {row.reason}\n")
        else:
            count += 1
            made_of.add(row.text)
    return count, skipped


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


def _write_parquet(
    path: Path, blocks: Iterator[Any], rows: Iterator[_Row], facts: dict[str, Any], *, with_ids: bool
) -> None:
    """Write rows and their vectors; `facts` stand in the file's metadata as `cft`."""
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
            table = pyarrow.table(columns | {"vector": vectors}, metadata={"cft": json.dumps(facts)})
            writer = writer or stack.enter_context(ParquetWriter(path, table.schema))
            writer.write_table(table)
