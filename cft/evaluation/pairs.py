"""What a report needs of the evaluation data itself: human scores, pairs that recur, and texts seen in training.

It stands beside the cosines of an evaluation, so that intervals and verdicts can be had from a folder of results
alone, without the data, without the model and without anybody's sentences.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cft.data.records import ScoredPair
from cft.data.training_data import TrainingData
from cft.system.errors import UserError
from cft.system.files import read_arrays, write_arrays

FILE_NAME = "pairs.npz"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Pairs:
    """The evaluation data behind one folder of scores, an array (pairs,) a set, in the set's order.

    scores: what people gave. identity: equal numbers for equal pairs, within a set and across sets. seen: how many of
    the pair's two sentences stand in the training data; None for a model that was not trained.
    """

    scores: Arrays
    identity: Arrays
    seen: Arrays | None


def normalized(text: str) -> str:
    """What two texts have in common if they differ in nothing but case, blanks and punctuation."""
    return re.sub(r"[\W_]+", "", text.casefold())


def describe(sets: dict[str, list[ScoredPair]], data: TrainingData | None) -> Pairs:
    """Number the pairs of all sets, and look their sentences up in the training data (holdout excepted)."""
    keys = {
        name: [(normalized(pair.sentence1), normalized(pair.sentence2)) for pair in pairs]
        for name, pairs in sets.items()
    }
    numbers: dict[tuple[str, ...], int] = {}
    identity = {
        name: np.array([numbers.setdefault(tuple(sorted(both)), len(numbers)) for both in of_set], dtype=np.int32)
        for name, of_set in keys.items()
    }
    seen = None
    if data is not None:
        wanted = {one for of_set in keys.values() for both in of_set for one in both}
        training = (normalized(text) for row in data.triplets for text in (row.anchor, row.positive, *row.negatives))
        known = {one for one in training if one in wanted}
        seen = {
            name: np.array([sum(one in known for one in both) for both in of_set], dtype=np.uint8)
            for name, of_set in keys.items()
        }
    scores = {name: np.array([pair.score for pair in pairs]) for name, pairs in sets.items()}
    return Pairs(scores, identity, seen)


def overlapping(pairs: list[ScoredPair], sets: dict[str, list[ScoredPair]]) -> list[str]:
    """For every pair that also stands in a set, whatever the order of its sentences, the set's name."""

    def both(pair: ScoredPair) -> tuple[str, ...]:
        return tuple(sorted((normalized(pair.sentence1), normalized(pair.sentence2))))

    stands = {both(pair): name for name, of_set in sets.items() for pair in of_set}
    return [stands[both(pair)] for pair in pairs if both(pair) in stands]


def write_once(folder: Path, sets: dict[str, list[ScoredPair]], data: TrainingData | None) -> None:
    """Keep what `describe` finds beside an evaluation; the folder's name says which data it is of."""
    if (folder / FILE_NAME).exists():
        return
    found = describe(sets, data)
    arrays: Arrays = {}
    for kind, by_set in (("scores", found.scores), ("identity", found.identity), ("seen", found.seen or {})):
        arrays |= {f"{kind}/{name}": values for name, values in by_set.items()}
    write_arrays(folder / FILE_NAME, arrays, compressed=True)


def read(folder: Path) -> Pairs:
    """What `write_once` kept.

    Raises:
        UserError: if the folder has none.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise UserError(f"{path} is missing: run the job again, which adds it without evaluating again")
    kinds: dict[str, Arrays] = {"scores": {}, "identity": {}, "seen": {}}
    for entry, values in read_arrays(path).items():
        kind, _, name = entry.partition("/")
        if kind not in kinds:
            raise UserError(f"{path} holds {entry!r}, which is not ours; remove it and run the job again")
        kinds[kind][name] = values
    return Pairs(kinds["scores"], kinds["identity"], kinds["seen"] or None)
