"""The evaluation data that verdicts need: human scores, pairs that recur, and sentences seen in training.

    FOLDER/pairs.npz    arrays KIND/SET, beside the cosines of an evaluation

Intervals and verdicts can then be computed from a folder of results alone, without the data or the model, and the
folder holds no sentences.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cft.data.records import ScoredPair
from cft.data.texts import normalized
from cft.data.training_data import TrainingData
from cft.system.errors import UserError
from cft.system.files import read_arrays, write_arrays

FILE_NAME = "pairs.npz"

Arrays = dict[str, np.ndarray]
Sets = dict[str, list[ScoredPair]]


@dataclass(frozen=True)
class Pairs:
    """The evaluation data behind a folder of scores: arrays (pairs,) by set, in the set's order."""

    scores: Arrays  # human scores
    identity: Arrays  # equal numbers for equal pairs, within a set and across sets
    seen: Arrays | None  # how many of a pair's sentences are in the training data; None without training
    earlier: str | None = None  # what a first stage was trained on, by content, if its texts were looked at too


def key_of(pair: ScoredPair) -> tuple[str, ...]:
    """Equal for pairs of the same sentences in either order."""
    return tuple(sorted((normalized(pair.sentence1), normalized(pair.sentence2))))


def describe(sets: Sets, data: TrainingData | None) -> Pairs:
    """Number the pairs of all sets, and look their sentences up in the training data (holdout excepted)."""
    keys = {name: [key_of(pair) for pair in pairs] for name, pairs in sets.items()}
    numbers: dict[tuple[str, ...], int] = {}
    identity = {
        name: np.array([numbers.setdefault(key, len(numbers)) for key in of_set], dtype=np.int32)
        for name, of_set in keys.items()
    }
    seen = None
    if data is not None:
        sentences = {sentence for key in numbers for sentence in key}
        trained = sentences.intersection(map(normalized, data.texts()))
        seen = {
            name: np.array([sum(sentence in trained for sentence in key) for key in of_set], dtype=np.uint8)
            for name, of_set in keys.items()
        }
    scores = {name: np.array([pair.score for pair in pairs]) for name, pairs in sets.items()}
    return Pairs(scores, identity, seen)


def overlapping(pairs: list[ScoredPair], sets: Sets) -> list[str]:
    """For every pair that is also in a set, in either order of its sentences, the set's name."""
    set_of = {key_of(pair): name for name, of_set in sets.items() for pair in of_set}
    return [set_of[key] for key in map(key_of, pairs) if key in set_of]


def trained_on(pairs: list[ScoredPair], data: TrainingData) -> int:
    """How many pairs a training or its first stage learns from: as scored pairs, or as an anchor with another text."""
    keys = list(map(key_of, pairs))
    sentences = {sentence for key in keys for sentence in key}
    learnt: set[tuple[str, ...]] = set()
    for stage in (data, data.earlier) if keys else ():
        learnt.update(map(key_of, stage.scored if stage else ()))
        for row in stage.triplets if stage else ():
            anchor = normalized(row.anchor)
            if anchor in sentences:  # of few rows only are the other texts looked at
                others = map(normalized, (row.positive, *row.negatives))
                learnt |= {tuple(sorted((anchor, other))) for other in others}
    return sum(key in learnt for key in keys)


def earlier_of(data: TrainingData | None) -> str | None:
    """What a first stage was trained on, by content; None without one.

    A training has one folder whether its first stage is known or stands there as an adapter: only who knows it counts
    its texts.
    """
    return data.earlier.content if data and data.earlier else None


def write_once(folder: Path, sets: Sets, data: TrainingData | None) -> None:
    """Write `describe(sets, data)` beside an evaluation, unless it is there; the folder is named by its data.

    What was written without the texts of the first stage that the training has is written anew.
    """
    earlier = earlier_of(data)
    if (folder / FILE_NAME).exists() and (earlier is None or read(folder).earlier == earlier):
        return
    found = describe(sets, data)
    kinds = {"scores": found.scores, "identity": found.identity, "seen": found.seen or {}}
    arrays = {f"{kind}/{name}": array for kind, by_set in kinds.items() for name, array in by_set.items()}
    if earlier is not None:
        arrays[f"earlier/{earlier}"] = np.empty(0, dtype=np.uint8)
    write_arrays(folder / FILE_NAME, arrays, compressed=True)


def read(folder: Path) -> Pairs:
    """Read what `write_once` wrote.

    Raises:
        UserError: if the folder has no such file.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise UserError(f"{path} is missing: run the job again, which adds it without evaluating again")
    kinds: defaultdict[str, Arrays] = defaultdict(dict)
    for entry, array in read_arrays(path).items():
        kind, _, name = entry.partition("/")
        kinds[kind][name] = array
    return Pairs(kinds["scores"], kinds["identity"], kinds["seen"] or None, next(iter(kinds["earlier"]), None))
