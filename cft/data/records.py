"""The two kinds of row that everything else passes around."""

from collections.abc import Sequence
from typing import NamedTuple

from cft.system.errors import UserError


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


def require_rankable(scores: Sequence[float], name: str) -> None:
    """Refuse scores that no cosines have a rank correlation with; known as soon as the scores are.

    Raises:
        UserError: naming the set.
    """
    if len(scores) < 2:
        raise UserError(f"the set {name} has {len(scores)} pairs: a rank correlation needs at least 2")
    if len(set(scores)) < 2:
        raise UserError(f"all scores of the set {name} are equal: no rank correlation is defined")
