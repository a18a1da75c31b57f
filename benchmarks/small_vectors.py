"""What vectors in fewer bytes cost: nDCG@10 of a retrieval set, Spearman correlation of scored pairs, and verdicts.

    python benchmarks/small_vectors.py --beir FOLDER --set SciFact --pairs STSBenchmark.jsonl.gz model=minilm

Documents are in fewer bytes, as `cft.encode dtype=` writes them, and whole queries look for them, as `cft.similar
vectors=` does; of scored pairs both sentences are. Ranges are those of the documents, and of all sentences.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cft.config.compose import compose_config
from cft.config.schema import Role
from cft.data.files import read_scored_pairs
from cft.data.records import ScoredPair
from cft.data.retrieval import RetrievalSet, load_retrieval_sets
from cft.deploy.load import load_embedder
from cft.evaluation.bootstrap import resample, resample_means
from cft.evaluation.retrieval import HEADLINE, evaluate_retrieval
from cft.evaluation.vector_cache import CachedEncoder
from cft.job.plan import RECIPE
from cft.model.embedder import Embedder, first_numbers
from cft.model.quantize import Dtype, quantize, ranges_of, restore
from cft.system.errors import UserError
from cft.system.tables import Row, as_markdown, as_text

WHOLE: tuple[int | None, Dtype] = (None, "float32")
KINDS: list[tuple[int | None, Dtype]] = [WHOLE, (None, "float16"), (None, "int8"), (None, "ubinary")]


class Kept:
    """An embedder whose vectors are kept by the machine's cache."""

    def __init__(self, embedder: Embedder) -> None:
        self._encoder = CachedEncoder(embedder, gigabytes=2, version=RECIPE)

    def vectors(self, texts: Sequence[str], dimensions: int | None) -> np.ndarray:
        """Unit vectors (texts, D)."""
        whole = self._encoder.encode(list(texts))
        return first_numbers(whole, dimensions) if dimensions else whole


def smaller(vectors: np.ndarray, dtype: Dtype) -> np.ndarray:
    """What a search sees of vectors in fewer bytes: unit vectors (n, D)."""
    ranges = ranges_of(vectors) if dtype == "int8" else None
    left = restore(quantize(vectors, dtype, ranges), dtype, ranges, width=vectors.shape[1])
    return left / np.linalg.norm(left, axis=1, keepdims=True)


def found_by(data: RetrievalSet, queries: Kept, documents: Kept, kind: tuple[int | None, Dtype]) -> np.ndarray:
    """nDCG@10 (queries,) of a set."""
    dimensions, dtype = kind
    return evaluate_retrieval(
        data,
        lambda texts: queries.vectors(texts, dimensions),
        lambda texts: smaller(documents.vectors(texts, dimensions), dtype),
    ).measures[HEADLINE]


def cosines(pairs: Sequence[ScoredPair], encoder: Kept, kind: tuple[int | None, Dtype]) -> np.ndarray:
    """(pairs,) of both sentences in fewer bytes."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.sentence1, pair.sentence2)))
    row = {text: number for number, text in enumerate(texts)}
    made = smaller(encoder.vectors(texts, kind[0]), kind[1])
    left, right = ([row[getattr(pair, side)] for pair in pairs] for side in ("sentence1", "sentence2"))
    return (made[left] * made[right]).sum(axis=1)


def bytes_of(width: int, kind: tuple[int | None, Dtype]) -> str:
    """Of a vector, as a file has it."""
    return f"{quantize(np.zeros((2, kind[0] or width), dtype=np.float32), kind[1])[0].nbytes:,}"


def compare(arguments: argparse.Namespace) -> list[Row]:
    """The table."""
    config = compose_config(
        ["model=tiny", "eval=retrieval", f"eval.folder={arguments.beir}", f"eval.sets=[{arguments.set}]"]
    )
    (data,) = load_retrieval_sets(config.eval).values()
    pairs = read_scored_pairs(arguments.pairs)[0]
    embedder = load_embedder(**dict(option.split("=", 1) for option in arguments.options))
    any_text, queries, documents = (Kept(embedder.in_role(role)) for role in (Role.text, Role.query, Role.document))
    kinds = [*KINDS, *((width, dtype) for width in arguments.dimensions for dtype in ("float32", "int8", "ubinary"))]
    name = arguments.pairs.name.partition(".")[0]
    retrieved = resample_means([{data.name: found_by(data, queries, documents, kind)} for kind in kinds])
    identity = np.arange(len(pairs))
    scored = resample(
        [[{name: cosines(pairs, any_text, kind)}] for kind in kinds],
        {name: np.array([pair.score for pair in pairs])},
        {name: identity},
    )
    against = [(number, 0) for number in range(1, len(kinds))]
    columns = [
        [found[data.name] for found in retrieved.differences(against)],
        [found[name] for found in scored.differences(against)],
    ]
    header = ("numbers", "dtype", "bytes", f"nDCG@10, {data.name}", "beside whole", "is")
    table: list[Row] = [(*header, f"Spearman, {name}", "beside whole", "is")]
    for number, kind in enumerate(kinds):
        cells = [str(kind[0] or embedder.width), kind[1], bytes_of(embedder.width, kind)]
        for scores, column in zip((retrieved, scored), columns, strict=True):
            cells.append(f"{scores.values[number, 0]:.2f}")
            cells += [str(column[number - 1]), column[number - 1].verdict] if number else ["", ""]
        table.append(tuple(cells))
    return table


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beir", required=True, type=Path, help="folder of sets in BEIR's layout")
    parser.add_argument("--set", default="SciFact", help="one of them (SciFact)")
    parser.add_argument("--pairs", required=True, type=Path, help="scored pairs: sentence1, sentence2, score")
    parser.add_argument("--dimensions", type=int, nargs="*", default=[], help="first numbers alone, too")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("options", nargs="+", help="the embedder, as cft.encode takes it: model=minilm")
    arguments = parser.parse_args()
    try:
        table = compare(arguments)
    except UserError as error:
        print(f"cft: {error}", file=sys.stderr)
        return 2
    print(as_markdown(table) if arguments.markdown else as_text(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
