"""The two kinds of row that everything else passes around."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from cft.system.digest import DIGEST_LENGTH, canonical
from cft.system.errors import UserError

_Row = TypeVar("_Row")

# Rows of which the content is hashed at one time.
_BLOCK = 10_000


class Triplet(NamedTuple):
    """One training row: the anchor must end up nearer to its positive than to any negative.

    NLI calls them premise, entailment and contradiction; SimCSE's file calls them sent0, sent1 and hard_neg.
    """

    anchor: str
    positive: str
    negatives: tuple[str, ...]  # hard negatives: usually one, several where the file has them, none for pairs


class ScoredPair(NamedTuple):
    """One evaluation row: two sentences and their similarity by people (or a rule), on the set's own scale."""

    sentence1: str
    sentence2: str
    score: float


def noun_of(rows: Iterable[Triplet]) -> str:
    """What training rows are called: triplets, or pairs if none of them has a hard negative."""
    return "triplets" if any(row.negatives for row in rows) else "pairs"


def in_blocks(rows: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    """Rows in lists of `size`; the last one may be shorter, none is empty."""
    remaining = iter(rows)
    while block := list(itertools.islice(remaining, size)):
        yield block


def content_digest(*parts: Sequence[Any]) -> str:
    """`digest` of a list of these lists, without all of their JSON in memory."""
    state = hashlib.sha256()
    for number, part in enumerate(parts):
        state.update(b",[" if number else b"[[")
        for start, block in enumerate(in_blocks(part, _BLOCK)):
            state.update((b"," if start else b"") + canonical(block).encode()[1:-1])
        state.update(b"]")
    state.update(b"]")
    return state.hexdigest()[:DIGEST_LENGTH]


def require_rankable(scores: Sequence[float], name: str) -> None:
    """Refuse scores with which no rank correlation is defined.

    Raises:
        UserError: naming the set.
    """
    if len(scores) < 2:
        raise UserError(f"the set {name} has {len(scores)} pairs: a rank correlation needs at least 2")
    if len(set(scores)) < 2:
        raise UserError(f"all scores of the set {name} are equal: no rank correlation is defined")
