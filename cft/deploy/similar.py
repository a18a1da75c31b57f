"""The texts of a file that are nearest to a query."""

import heapq
import sys
from pathlib import Path

from cft.data.files import BadRows, Skipped, stream_texts
from cft.deploy.encode import COLUMN, ON_BAD_ROW
from cft.deploy.load import DEVICE, PROMPT, RUN, load_embedder
from cft.system.arguments import Command, Key, whole_number
from cft.system.errors import UserError
from cft.system.tables import Row
from cft.system.text import shorten

_SHOWN = 100


def nearest(values: dict[str, str]) -> list[Row]:
    """A row a text, the nearest first: its cosine with the query, its row in the file, the text.

    Raises:
        UserError: for whatever the user can mend.
    """
    top = whole_number("top", values["top"])
    kept = whole_number("vector_cache_gb", values["vector_cache_gb"], least=0)
    if not values["query"].strip():
        raise UserError("the query is empty")
    rows = stream_texts(
        Path(values["corpus"]).expanduser(), column=values["column"], on_bad_row=BadRows(values["on_bad_row"])
    )
    place_of: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Skipped):
            place_of.setdefault(row, number)
    embedder = load_embedder(values)

    from cft.evaluation.vector_cache import CachedEncoder
    from cft.job.plan import RECIPE

    texts = list(place_of)
    progress = "embedding" if sys.stderr.isatty() else None
    vectors = CachedEncoder(embedder, gigabytes=kept, version=RECIPE).encode(texts, progress=progress)
    asking = embedder.with_template(values["query_prompt"]) if values["query_prompt"] else embedder
    cosines = vectors @ asking.encode([values["query"]])[0]
    best = heapq.nlargest(top, range(len(texts)), key=lambda i: cosines[i])
    table: list[Row] = [("cosine", "row", "text")]
    return table + [
        (f"{cosines[i]:.4f}", str(place_of[texts[i]]), shorten(" ".join(texts[i].split()), _SHOWN)) for i in best
    ]


COMMAND = Command(
    "cft.similar",
    "Show the texts of a file that are nearest to a query, by cosine. A file's vectors are kept for the next query.",
    keys={
        "run": RUN,
        "top": Key("how many texts", default="10"),
        "column": COLUMN,
        "prompt": PROMPT,
        "query_prompt": Key("words around the query, if they differ from prompt=", default=""),
        "device": DEVICE,
        "on_bad_row": ON_BAD_ROW,
        "vector_cache_gb": Key("disk for vectors of all files, in whole gigabytes; 0 keeps none", default="2"),
    },
    places={"query": "a text", "corpus": "a .txt of one text a line, .csv, .tsv, .jsonl (each also .gz) or .parquet"},
    example='run=outputs/smollm2-files-1a2b3c4d5e6f "how do I reset my password" faq.csv column=question',
)
