"""Hard negatives: documents that an embedder finds near a query though they are none of its answers.

Which of them are taken goes by rank and by their cosine beside the positive's: what is nearer than an answer often is
one that nobody marked. The rules and their names are those of sentence-transformers' `mine_hard_negatives`; the
relative margin is that of NV-Retriever (Moreira et al. 2024, arXiv 2407.15831).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

_QUERIES = 1_024  # that are searched at a time: their nearest documents are in memory


class Sampling(str, Enum):
    """Which of the documents that may be negatives are taken."""

    top = "top"
    random = "random"


@dataclass(frozen=True)
class MiningRules:
    """Which of a query's nearest documents become its negatives."""

    num_negatives: int = 1
    range_min: int = 0  # so many of the nearest that pass the other rules are passed over
    range_max: int = 100  # and those behind so many are not looked at
    absolute_margin: float | None = None  # a negative's cosine is lower than the positive's by this, at least
    relative_margin: float | None = None  # the same as a share of the positive's cosine
    max_score: float | None = None  # a negative's cosine is at most this
    min_score: float | None = None  # and at least this
    sampling_strategy: Sampling = Sampling.top
    seed: int = 0  # of the sampling


@dataclass
class Mined:
    """The negatives of every query, and how many documents each rule took out."""

    negatives: list[np.ndarray] = field(default_factory=list)  # numbers of documents, nearest first, one array a query
    cosines: list[np.ndarray] = field(default_factory=list)  # of the same
    removed: dict[str, int] = field(default_factory=dict)  # by the rule's name
    looked_at: int = 0  # documents, over all queries

    def add(self, other: "Mined") -> None:
        """Take the next queries."""
        self.negatives += other.negatives
        self.cosines += other.cosines
        self.looked_at += other.looked_at
        for name, count in other.removed.items():
            self.removed[name] = self.removed.get(name, 0) + count


def search_negatives(
    queries: np.ndarray,
    blocks: Callable[[], Iterable[np.ndarray]],
    excluded: Sequence[Sequence[int]],
    positive_cosines: np.ndarray,
    rules: MiningRules,
    *,
    on_queries: Callable[[int], object] = lambda count: None,
) -> Mined:
    """Search the nearest documents of all queries, and choose the queries' negatives among them.

    Memory is flat in the number of documents, which come anew for every thousand queries.

    Args:
        queries: (q, D) float32 unit vectors, perhaps on disk.
        blocks: gives the documents' unit vectors, (n, D) at a time, from the first on.
        excluded: of each query, the documents that are no negatives. positive_cosines: (q,) as `choose_negatives` has
            them. rules: which are taken.
        on_queries: called with the number of queries that have been searched since.
    """
    # So many parameters because vectors, what is excluded, rules and progress are the caller's.
    from cft.evaluation.retrieval import TopDocuments

    depth = rules.range_max + max(map(len, excluded), default=0)
    mined = Mined()
    for start in range(0, len(queries), _QUERIES):
        rows = slice(start, start + _QUERIES)
        search = TopDocuments(np.array(queries[rows]), depth)
        for block in blocks():
            search.add(block)
        best, cosines = search.ranking(), positive_cosines[rows]
        mined.add(choose_negatives(best.documents, best.scores, excluded[rows], cosines, rules, first=start))
        on_queries(len(best.documents))
    return mined


def choose_negatives(
    documents: np.ndarray,
    cosines: np.ndarray,
    excluded: Sequence[Sequence[int]],
    positive_cosines: np.ndarray,
    rules: MiningRules,
    *,
    first: int = 0,
) -> Mined:
    """Choose the negatives of queries among their nearest documents.

    Args:
        documents: (queries, k) numbers, nearest first; -1 where there are fewer.
        cosines: (queries, k) of the same.
        excluded: of each query, the documents that are no negatives whatever their cosine: its answers, itself.
        positive_cosines: (queries,) of the query and its answer; of several answers, the farthest.
        rules: which are taken.
        first: number of the first of these queries, from which random choices follow.
    """
    # So many parameters because a query's documents come in three arrays, and in blocks.
    usable = documents >= 0
    usable &= ~np.stack([np.isin(row, list(own)) for row, own in zip(documents, excluded, strict=True)])
    found = Mined(looked_at=int(usable.sum()))
    least = positive_cosines[:, None]
    limits: dict[str, np.ndarray] = {}
    if rules.absolute_margin is not None:
        limits["absolute_margin"] = cosines + np.float32(rules.absolute_margin) <= least
    if rules.relative_margin is not None:
        # A share of the size: of a cosine below 0, (1 - share) times it would be a higher limit, not a lower one.
        limits["relative_margin"] = cosines <= least - np.abs(least) * np.float32(rules.relative_margin)
    if rules.max_score is not None:
        limits["max_score"] = cosines <= np.float32(rules.max_score)
    if rules.min_score is not None:
        limits["min_score"] = cosines >= np.float32(rules.min_score)
    for name, passes in limits.items():
        found.removed[name] = int((usable & ~passes).sum())
        usable &= passes
    for row, passed in enumerate(usable):
        places = np.flatnonzero(passed)[rules.range_min : rules.range_max]
        if rules.sampling_strategy is Sampling.top:
            places = places[: rules.num_negatives]
        else:
            draw = np.random.default_rng([rules.seed, first + row])
            places = np.sort(draw.choice(places, min(rules.num_negatives, len(places)), replace=False))
        found.negatives.append(documents[row, places])
        found.cosines.append(cosines[row, places])
    return found
