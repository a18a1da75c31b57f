"""Retrieval: exact search, and how high each query finds its relevant documents.

All documents are embedded and compared with all queries block by block: whatever their number, only a block's vectors
and the best documents of each query are in memory. Measures are trec_eval's. Among equal scores the document with the
greater id comes first, as there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cft.data.retrieval import RetrievalSet
from cft.system.files import read_arrays, write_arrays

# Beside the metrics of an evaluation: arrays SET/KIND, a number a query.
FILE_NAME = "queries.npz"

HEADLINE = "ndcg@10"
# As people write them, who read the names of records elsewhere.
MEASURE_NAMES = {
    HEADLINE: "nDCG@10",
    "recall@1": "recall@1",
    "recall@10": "recall@10",
    "recall@100": "recall@100",
    "mrr@10": "MRR@10",
    "map@10": "MAP@10",
}
MEASURES = tuple(MEASURE_NAMES)

# Ranks that measures look at.
DEPTH = 100

# Scores of one block: 16 MB of them, and twice as many bytes for their order.
_QUERIES, _DOCUMENTS = 256, 16_384
# Of the first block all scores are sorted, later on only those above the worst that is kept. So it is a small one.
_FIRST_DOCUMENTS = 2_048

# Documents that are embedded before they are searched: more of them at a time share more prefixes.
_EMBEDDED = 50_000


@dataclass(frozen=True)
class Ranking:
    """The best documents of every query, best first."""

    documents: np.ndarray  # (queries, depth) int64 numbers of documents; -1 where there are fewer
    scores: np.ndarray  # (queries, depth) float32; NaN where there are fewer


@dataclass(frozen=True)
class RetrievalScores:
    """How high every query of a set finds its documents."""

    measures: dict[str, np.ndarray]  # (queries,) from 0 to 1, by the names of MEASURES
    first: np.ndarray  # (queries,) int64, the document that comes first; -1 for none
    cosine: np.ndarray  # (queries,) float32, its cosine
    found: np.ndarray  # (queries,) int64, rank of the first relevant document from 1; 0 where it is beyond DEPTH
    recall: np.ndarray  # (DEPTH,) mean recall at 1, 2, ...

    @property
    def means(self) -> dict[str, float]:
        """Mean of every measure over the queries, x 100."""
        return {name: 100 * float(values.mean()) for name, values in self.measures.items()}

    def record(self) -> dict[str, float]:
        """The means as plain data, and the number of queries."""
        return {**self.means, "queries": len(self.first)}


class TopDocuments:
    """The best documents of each query out of blocks that come one after the other."""

    def __init__(self, queries: np.ndarray, depth: int) -> None:
        """Begin without documents.

        Args:
            queries: (q, D) float32 unit vectors. depth: how many documents are kept of each.
        """
        self._queries, self._depth, self._count = queries, depth, 0
        self._keys = np.empty((len(queries), 0), dtype=np.int64)

    def add(self, documents: np.ndarray) -> None:
        """Compare documents (n, D), which are numbered on from those before; of equal scores the first stay first."""
        kept = []
        for start in range(0, len(self._queries), _QUERIES):
            rows = slice(start, start + _QUERIES)
            keys = self._keys[rows]
            for begin, end in _blocks(len(documents), is_first=not self._count):
                scores = self._queries[rows] @ documents[begin:end].T
                first = self._count + begin
                full = keys.shape[1] == self._depth
                fresh = _keys_above(scores, first, _scores(keys.min(axis=1))) if full else _keys(scores, first)
                keys = _largest(np.concatenate([keys, fresh], axis=1), self._depth)
            kept.append(keys)
        self._count += len(documents)
        if kept:
            self._keys = np.concatenate(kept)

    def ranking(self) -> Ranking:
        """The best documents so far."""
        keys = -np.sort(-self._keys, axis=1)
        # The lower half counts documents downwards, the upper half is the score's bits.
        documents = np.int64(0xFFFFFFFF) - (keys & np.int64(0xFFFFFFFF))
        return Ranking(documents, _scores(keys))


def _blocks(count: int, *, is_first: bool) -> Iterator[tuple[int, int]]:
    """The first document of each block, and the one behind its last."""
    begin, size = 0, min(_FIRST_DOCUMENTS, _DOCUMENTS) if is_first else _DOCUMENTS
    while begin < count:
        yield begin, min(begin + size, count)
        begin, size = begin + size, _DOCUMENTS


def _keys(scores: np.ndarray, first: int) -> np.ndarray:
    """Scores (q, n) with the documents' numbers from `first` on, as whole numbers of the same order, no two equal."""
    return _joined(scores, np.arange(first, first + scores.shape[1], dtype=np.int64))


def _keys_above(scores: np.ndarray, first: int, limits: np.ndarray) -> np.ndarray:
    """The keys (q, m) of the scores above a limit (q,) of their row, and the least number where a row has fewer.

    Of a document that comes late few scores are, so that nearly all of the work is one comparison a score.
    """
    # Found in one row of all, which takes NumPy a fraction of its time for two dimensions.
    rows, columns = np.divmod(np.flatnonzero(~(scores <= limits[:, None])), scores.shape[1])
    counts = np.bincount(rows, minlength=len(scores))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = np.full((len(scores), int(counts.max(initial=0))), np.iinfo(np.int64).min)
    keys[rows, places] = _joined(scores[rows, columns], first + columns)
    return keys


def _joined(scores: np.ndarray, documents: np.ndarray) -> np.ndarray:
    bits = (scores + np.float32(0)).view(np.int32)  # the sum makes zeros of one sign
    keys = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    keys <<= np.int64(32)
    keys |= np.int64(0xFFFFFFFF) - documents
    return keys


def _scores(keys: np.ndarray) -> np.ndarray:
    """The float32 scores of keys: their upper half."""
    bits = (keys >> np.int64(32)).astype(np.int32)
    return np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int32).view(np.float32)


def _largest(keys: np.ndarray, count: int) -> np.ndarray:
    """The largest of each row, in any order; the others are not kept in memory. The order of `keys` is changed."""
    if keys.shape[1] <= count:
        return keys
    keys.partition(-count, axis=1)
    return keys[:, -count:].copy()  # a view would hold all of them


def evaluate_retrieval(
    data: RetrievalSet,
    queries: Callable[[Sequence[str]], np.ndarray],
    documents: Callable[[Sequence[str]], np.ndarray],
) -> RetrievalScores:
    """Let every query of a set look for its documents.

    Args:
        data: the set. queries, documents: turn texts into unit vectors (n, D), each under the prompt of its role.
    """
    # In the order in which trec_eval ranks equal scores: by id, the greatest first.
    descending = sorted(range(len(data.documents)), key=data.document_ids.__getitem__, reverse=True)
    order = np.array(descending, dtype=np.int64)
    del descending  # a million Python numbers
    search = TopDocuments(queries(data.queries), DEPTH + 1)
    for start in range(0, len(order), _EMBEDDED):
        search.add(documents([data.documents[number] for number in order[start : start + _EMBEDDED].tolist()]))
    best = search.ranking()
    ranked = Ranking(order[best.documents], best.scores)
    own = data.own_document
    named = {id for grades in data.judgements for id in grades}.union(id for id in own if id is not None)
    number_of = {id: number for number, id in enumerate(data.document_ids) if id in named}
    left_out = [-1 if id is None else number_of[id] for id in own]
    return score(_without(ranked, left_out), [_numbered(grades, number_of) for grades in data.judgements])


def guessing(data: RetrievalSet) -> np.ndarray:
    """Expected nDCG@10 (queries,) of documents in random order, from 0 to 1."""
    number_of = {id: number for number, id in enumerate(data.document_ids)}
    documents = [len(number_of) - (own is not None) for own in data.own_document]
    discounts = (1 / np.log2(np.arange(2, 12))).cumsum()  # of the first 1, 2, ... 10 places
    scores = np.zeros(len(data.queries))
    for row, (grades, count) in enumerate(zip(data.judgements, documents, strict=True)):
        gains = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
        here = sum(grade for id, grade in grades.items() if grade > 0 and id in number_of)
        ideal = float(_gain(np.array([_padded(gains, 10)]))[0])
        if ideal > 0:
            scores[row] = here / count * discounts[min(10, count) - 1] / ideal
    return scores


def save_retrieval(folder: Path, found: dict[str, RetrievalScores]) -> None:
    """Write what every query of every set found."""
    arrays: dict[str, np.ndarray] = {}
    for name, scores in found.items():
        kinds = {"first": scores.first, "cosine": scores.cosine, "found": scores.found, "recall": scores.recall}
        arrays |= {f"{name}/{kind}": array for kind, array in {**scores.measures, **kinds}.items()}
    write_arrays(folder / FILE_NAME, arrays, compressed=True)


def load_retrieval(folder: Path) -> dict[str, RetrievalScores]:
    """Read what `save_retrieval` wrote; nothing if it is not there.

    Raises:
        UserError: if the file is damaged.
    """
    if not (folder / FILE_NAME).exists():
        return {}
    arrays = read_arrays(folder / FILE_NAME)
    names = dict.fromkeys(name.rpartition("/")[0] for name in arrays)
    return {
        name: RetrievalScores(
            measures={measure: arrays[f"{name}/{measure}"] for measure in MEASURES},
            **{kind: arrays[f"{name}/{kind}"] for kind in ("first", "cosine", "found", "recall")},
        )
        for name in names
    }


def _numbered(grades: dict[str, int], number_of: dict[str, int]) -> dict[int, int]:
    """Grades by the document's number; those of absent documents by numbers that no document has."""
    return {number_of.get(id, -2 - place): grade for place, (id, grade) in enumerate(grades.items())}


def _without(ranking: Ranking, left_out: Sequence[int]) -> Ranking:
    """A ranking of DEPTH documents at most, without one document of each query; -1 leaves none out."""
    width = min(DEPTH, ranking.documents.shape[1])
    keep = ranking.documents != np.asarray(left_out)[:, None]
    documents = np.full((len(keep), width), -1, dtype=np.int64)
    scores = np.full((len(keep), width), np.nan, dtype=np.float32)
    for row, kept in enumerate(keep):
        numbers = ranking.documents[row, kept][:width]
        documents[row, : len(numbers)], scores[row, : len(numbers)] = numbers, ranking.scores[row, kept][:width]
    return Ranking(documents, scores)


def score(ranking: Ranking, judgements: Sequence[dict[int, int]]) -> RetrievalScores:
    """Measures of a ranking, a number a query.

    Args:
        ranking: of DEPTH documents at most. judgements: of each query, grades by the document's number; above 0 is
            relevant, and a relevant document that is nowhere in the ranking counts as missed.
    """
    rows = zip(ranking.documents.tolist(), judgements, strict=True)
    grades = np.array([_padded((of.get(number, 0) for number in row), DEPTH) for row, of in rows]).reshape(-1, DEPTH)
    ideal = [sorted((grade for grade in of.values() if grade > 0), reverse=True) for of in judgements]
    relevant = np.array([max(1, len(row)) for row in ideal])[:, None]  # a query with nothing to find has 0
    hits = grades > 0
    up_to = np.cumsum(hits, axis=1)
    recall = up_to / relevant
    place = np.arange(1, DEPTH + 1)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
    best = _gain(np.array([_padded(row, 10) for row in ideal]).reshape(-1, 10))
    measures = {
        "ndcg@10": np.divide(_gain(grades[:, :10]), best, out=np.zeros_like(best), where=best > 0),
        "recall@1": recall[:, 0],
        "recall@10": recall[:, 9],
        "recall@100": recall[:, 99],
        "mrr@10": np.where((first > 0) & (first <= 10), 1 / np.maximum(first, 1), 0.0),
        "map@10": ((up_to / place * hits)[:, :10] / relevant).sum(axis=1),
    }
    return RetrievalScores(
        measures={name: measures[name] for name in MEASURES},
        first=ranking.documents[:, 0],
        cosine=ranking.scores[:, 0],
        found=first,
        recall=recall.mean(axis=0),
    )


def _gain(grades: np.ndarray) -> np.ndarray:
    """Discounted cumulative gain (q,) of grades (q, k); a grade below 0 gains nothing."""
    return (np.maximum(grades, 0) / np.log2(np.arange(2, grades.shape[1] + 2))).sum(axis=1)


def _padded(grades: Iterable[int], width: int) -> list[int]:
    row = list(grades)[:width]
    return row + [0] * (width - len(row))
