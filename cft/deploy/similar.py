"""Search: the texts of a file that are nearest to queries, exactly, whatever the number of texts.

The file's texts are embedded once, into an index on disk that is named by embedder and texts; `cft.encode` writes the
same vectors into a file of the user's own. Memory holds a few numbers a text, and a block of vectors.
"""

import contextlib
import csv
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np

from cft.config.command_line import Rules
from cft.data.files import BadRows, Skipped, stream_texts
from cft.data.texts import problem_of
from cft.deploy import corpora, vectors
from cft.deploy.load import TextFileOptions, load_embedder, require_columns
from cft.system.errors import UserError
from cft.system.files import atomic_write, require_output, user_path
from cft.system.text import counted, shorten

if TYPE_CHECKING:
    from cft.model.embedder import Embedder

log = logging.getLogger(__name__)

_LONGEST_SHOWN = 100  # characters of a text in the table
_QUERIES = 1_024  # queries that are embedded at a time

_ENDINGS = (".csv", ".tsv", ".jsonl")
_COLUMNS = ("query", "rank", "cosine", "row", "text")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class SimilarOptions(TextFileOptions):
    """Search a file: show its texts that are nearest to a query, by cosine.

    Without QUERY and queries=, queries are typed one after the other, or come through a pipe, one a line. A file's
    vectors are kept for the next query.
    """

    corpus: Annotated[Path, "a .txt of one text a line, .csv, .tsv, .jsonl (each also .gz) or .parquet"]
    query: Annotated[str, "a text", Rules(leads=True)] = ""
    _: KW_ONLY
    queries: Annotated[str, "a file of queries instead, of the same kinds as CORPUS"] = ""
    query_column: Annotated[str, "the column that holds the queries, in files that have columns"] = "text"
    id_column: Annotated[str, "a column of CORPUS whose values are shown in place of the rows' numbers"] = ""
    top: Annotated[int, "how many texts a query"] = 10
    query_prompt: Annotated[str, "words around the queries, if they differ from prompt="] = ""
    vectors: Annotated[str, "an .npy of CORPUS's vectors that cft.encode wrote; its embedder and texts are checked"] = (
        ""
    )
    out: Annotated[
        str, "a .csv, .tsv or .jsonl for query, rank, cosine, row and the whole text, instead of a table"
    ] = ""
    overwrite: Annotated[bool, "replace an out= that exists"] = False
    vector_cache_gb: Annotated[int, "disk for vectors of all files, in gigabytes; 0 keeps none", Rules(least=0)] = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        if self.query and self.queries:
            raise UserError("a query and queries= are both given; leave one out")
        # Of a name that is too long, as a text may be, `Path.exists` raises.
        if not os.path.exists(self.corpus) and os.path.isfile(self.query):
            words = shorten(str(self.corpus), _LONGEST_SHOWN)
            raise UserError(f"{words}: no such file, but {self.query} is one; the query comes before the file")
        require_columns(str(self.corpus), column=self.column, id_column=self.id_column)
        require_columns(self.queries, query_column=self.query_column)


class Hit(NamedTuple):
    """A text that a query found."""

    rank: int  # from 1
    cosine: float
    row: int  # of the file, from 1
    text: str
    id: str = ""  # in the file's own column for it, if one was named


class Index:
    """The texts of a file and their vectors, ready for queries."""

    def __init__(
        self, corpus: corpora.Corpus, documents: np.ndarray | vectors.Restored, queries: "Embedder", top: int
    ) -> None:
        """Put them together.

        Args:
            documents: (texts, D) unit vectors, perhaps on disk. queries: embeds queries. top: texts a query.
        """
        self._corpus, self._documents, self._queries, self._top = corpus, documents, queries, top

    def search(self, queries: Sequence[str]) -> list[list[Hit]]:
        """The nearest texts of each query, the nearest first; of equal texts the first row.

        Raises:
            UserError: if a query cannot be embedded.
        """
        from cft.evaluation.retrieval import TopDocuments

        width = self._documents.shape[1]
        embedded = self._queries.encode(queries, dimensions=width if width < self._queries.width else None)
        search, distinct = TopDocuments(embedded, self._top), self._corpus.distinct
        for block in corpora.distinct_vectors(self._corpus, self._documents):
            search.add(block)
        best = search.ranking()
        return [
            [self._hit(rank, int(distinct[place]), cosine) for rank, (place, cosine) in enumerate(row, start=1)]
            for row in map(zip, best.documents.tolist(), best.scores.tolist())
        ]

    def _hit(self, rank: int, number: int, cosine: float) -> Hit:
        row = self._corpus.row(number)
        return Hit(rank, cosine, row, self._corpus.text(number), self._corpus.ids.get(row, ""))


@contextlib.contextmanager
def open_index(options: SimilarOptions) -> Iterator[Index]:
    """Read the corpus, load the embedder, and find or make the vectors.

    Raises:
        UserError: if a text cannot be read, the embedder cannot be had, or `vectors` are of others.
    """
    with contextlib.ExitStack() as stack:
        corpus = stack.enter_context(contextlib.closing(corpora.of_file(options.corpus, options, options.id_column)))
        embedder = load_embedder(**options.embedder)

        from cft.config.schema import Role

        documents, queries = embedder.in_role(Role.document), embedder.in_role(Role.query)
        if options.vectors:
            record = vectors.VectorsRecord.of(documents, corpus.digest)
            found: np.ndarray | vectors.Restored = vectors.open_vectors(
                user_path(options.vectors), record, str(options.corpus)
            )
        else:
            found = np.asarray(corpora.vectors_of(documents, corpus, stack, options.vector_cache_gb))
        if options.query_prompt:
            queries = embedder.with_template(options.query_prompt)
        yield Index(corpus, found, queries, options.top)


def search_file(options: SimilarOptions) -> str:
    """Answer every query: with a table on stdout, as soon as it is there, or with rows of a file.

    Returns:
        What was written into a file; nothing otherwise.

    Raises:
        UserError: if there is no query, one cannot be embedded, the output is in the way, or as `open_index` does.
    """
    out = user_path(options.out) if options.out else None
    if out:
        named = [user_path(name) for name in (options.corpus, options.queries) if name]
        require_output(out, _ENDINGS, overwrite=options.overwrite, read=named)
    queries = _queries(options)
    with open_index(options) as index:
        if out:
            return _write(out, index, queries, with_ids=bool(options.id_column))
        if _at_prompt(options):
            sys.stderr.write("type a query; an empty line ends\n")
        single = bool(options.query) or _at_prompt(options)
        for query in queries:
            try:
                (hits,) = index.search([query])
            except UserError as error:
                if not _at_prompt(options):
                    raise
                sys.stderr.write(f"cft: {error}\n")
                continue
            heading = "" if single else f"{_shown(query)}\n"
            sys.stdout.write(f"{heading}{_table(hits, options.id_column)}\n" + "\n" * (not options.query))
            sys.stdout.flush()
    return ""


def _write(out: Path, index: Index, queries: Iterator[str], *, with_ids: bool) -> str:
    """A row for each query and text; returns what was written, in words."""
    answered = rows = 0
    with atomic_write(out) as scratch, scratch.open("w", encoding="utf-8", newline="") as stream:
        write = _row_writer(stream, out.suffix, (*_COLUMNS, "id") if with_ids else _COLUMNS)
        while block := list(islice(queries, _QUERIES)):
            for query, hits in zip(block, index.search(block), strict=True):
                for hit in hits:
                    own = (hit.id,) if with_ids else ()
                    write((query, hit.rank, round(hit.cosine, 6), hit.row, hit.text, *own))
                rows += len(hits)
            answered += len(block)
    return f"{counted(answered, 'query', 'queries')}, {counted(rows, 'row')}: {out}"


def _row_writer(stream: IO[str], ending: str, columns: Sequence[str]) -> Callable[[tuple[Any, ...]], Any]:
    if ending == ".jsonl":
        return lambda row: stream.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")
    writer = csv.writer(stream, delimiter="\t" if ending == ".tsv" else ",")
    writer.writerow(columns)
    return writer.writerow


def _table(hits: Sequence[Hit], id_column: str) -> str:
    """The hits of one query for a terminal, each by its id where there are ids."""
    name = _shown(id_column) or "row"
    names = [_shown(hit.id) if id_column else str(hit.row) for hit in hits]
    width = max(len(name), *map(len, names))
    lines = [f"cosine  {name.rjust(width)}  text"]
    lines += [f"{hit.cosine:6.4f}  {of.rjust(width)}  {_shown(hit.text)}" for hit, of in zip(hits, names, strict=True)]
    return "\n".join(lines)


def _shown(text: str) -> str:
    """A text on one line, without what would move a terminal's cursor."""
    return shorten(" ".join(_CONTROLS.sub(" ", text).split()), _LONGEST_SHOWN)


def _at_prompt(options: SimilarOptions) -> bool:
    """Whether queries are typed."""
    return not (options.query or options.queries) and sys.stdin is not None and sys.stdin.isatty()


def _queries(options: SimilarOptions) -> Iterator[str]:
    """Every query; those of a file are checked before anything is loaded."""
    if options.query:
        problem = problem_of(options.query)
        if problem:
            raise UserError(f"the query {problem}")
        return iter([options.query])
    if options.queries:

        def rows() -> Iterator[str | Skipped]:
            return stream_texts(
                user_path(options.queries),
                column=options.query_column,
                on_bad_row=options.on_bad_row,
                column_key="query_column",
            )

        for _ in corpora.usable(rows(), options.queries):
            pass
        return (row for row in rows() if not isinstance(row, Skipped))
    return _typed() if _at_prompt(options) else _piped(options.on_bad_row)


def _typed() -> Iterator[str]:
    """What is typed at a terminal, until an empty line."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # input() then knows the arrow keys

    while True:
        try:
            line = input("query: ") if sys.stdout.isatty() else sys.stdin.readline().rstrip("\n")
        except EOFError:
            return
        if not line.strip():
            return
        yield line


def _piped(on_bad_row: BadRows) -> Iterator[str]:
    """The lines of stdin, each as soon as it is there."""
    number = 0
    try:
        for number, line in enumerate(sys.stdin or (), start=1):
            # What begins a file, as some editors write it, is no part of its first line here either.
            query = line.rstrip("\r\n").removeprefix("" if number > 1 else "\ufeff")
            problem = problem_of(query)
            if not problem:
                yield query
            elif on_bad_row is BadRows.RAISE:
                raise UserError(f"the query on line {number} of stdin {problem}; drop it, or set on_bad_row=skip")
    except UnicodeDecodeError as error:
        raise UserError(f"line {number + 1} of stdin is not valid UTF-8 ({error.reason})") from error
    if not number:
        raise UserError("there is no query: give one in quotes, a file by queries=FILE, or lines on stdin")
