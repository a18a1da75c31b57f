"""Search: the texts of a file that are nearest to a query."""

import heapq
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cft.config.command_line import Rules
from cft.data.files import Skipped, stream_texts
from cft.data.texts import problem_of
from cft.deploy.load import TextFileOptions, load_embedder
from cft.system.errors import UserError
from cft.system.tables import Row
from cft.system.text import shorten

_LONGEST_SHOWN = 100  # characters of a text in the table


@dataclass(frozen=True)
class SimilarOptions(TextFileOptions):
    """Show the texts of a file that are nearest to a query, by cosine. A file's vectors are kept for the next query."""

    query: Annotated[str, "a text"]
    corpus: Annotated[Path, "a .txt of one text a line, .csv, .tsv, .jsonl (each also .gz) or .parquet"]
    _: KW_ONLY
    top: Annotated[int, "how many texts"] = 10
    query_prompt: Annotated[str, "words around the query, if they differ from prompt="] = ""
    vector_cache_gb: Annotated[int, "disk for vectors of all files, in gigabytes; 0 keeps none", Rules(least=0)] = 2


def nearest(options: SimilarOptions) -> list[Row]:
    """A row a text, the nearest first: its cosine with the query, its row in the file, the text.

    Raises:
        UserError: if the query is empty, a text cannot be read, or the embedder cannot be had.
    """
    problem = problem_of(options.query)
    if problem:
        raise UserError(f"the query {problem}")
    rows = stream_texts(options.corpus, column=options.column, on_bad_row=options.on_bad_row)
    first_row: dict[str, int] = {}  # of each distinct text
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Skipped):
            first_row.setdefault(row, number)
    embedder = load_embedder(options.run, prompt=options.prompt, device=options.device, model_path=options.model_path)

    from cft.config.schema import Role
    from cft.evaluation.vector_cache import CachedEncoder
    from cft.job.plan import RECIPE

    texts = list(first_row)
    documents, queries = embedder.in_role(Role.document), embedder.in_role(Role.query)
    encoder = CachedEncoder(documents, gigabytes=options.vector_cache_gb, version=RECIPE)
    vectors = encoder.encode(texts, progress="embedding" if sys.stderr.isatty() else None)
    if options.query_prompt:
        queries = embedder.with_template(options.query_prompt)
    cosines = vectors @ queries.encode([options.query])[0]
    table: list[Row] = [("cosine", "row", "text")]
    for i in heapq.nlargest(options.top, range(len(texts)), key=lambda i: cosines[i]):
        text = shorten(" ".join(texts[i].split()), _LONGEST_SHOWN)
        table.append((f"{cosines[i]:.4f}", str(first_row[texts[i]]), text))
    return table
