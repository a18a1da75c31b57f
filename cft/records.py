"""The two kinds of row that everything else passes around."""

from typing import NamedTuple


class Triplet(NamedTuple):
    """One training row: the anchor must end up nearer to its positive than to any negative.

    NLI calls them premise, entailment and contradiction; SimCSE's file calls them sent0, sent1 and hard_neg.
    `negatives` holds the row's hard negatives: usually one, several where the file has them, none for data that
    has pairs alone.
    """

    anchor: str
    positive: str
    negatives: tuple[str, ...]


class ScoredPair(NamedTuple):
    """One evaluation row: two sentences and how alike people (or a rule) find them, on the set's own scale."""

    sentence1: str
    sentence2: str
    score: float
