"""What a job's own scores say: after against before, and against a finished encoder, with intervals and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cft.data.retrieval import RetrievalSet
from cft.evaluation.bootstrap import (
    HIGHER,
    LEAST_PAIRS,
    LOWER,
    MEAN,
    NEITHER,
    TOO_FEW,
    Difference,
    Resamples,
    resample,
    resample_means,
    undefined_note,
)
from cft.evaluation.pairs import Pairs
from cft.evaluation.retrieval import guessing
from cft.evaluation.scores import Evaluation
from cft.system.tables import Row

MEAN_ROW = "mean over sets"

# The rows that are compared.
_AFTER, _BEFORE, _BASELINE = 0, 1, 2

# What a verdict makes of the result beside another embedder.
_IN_WORDS = {HIGHER: "better than", LOWER: "worse than", NEITHER: "not distinguishable from"}


@dataclass(frozen=True)
class Baseline:
    """A finished encoder beside the result, scored on the same data as it was published."""

    name: str
    evaluation: Evaluation


@dataclass(frozen=True)
class Comparison:
    """The scores of a job, compared."""

    table: list[Row]  # its header first
    sentences: list[str]  # what the table says
    change: Difference | None  # of the headline score; None where nothing was scored
    baseline: str | None  # its name
    lead: Difference | None  # over the baseline; None without one
    at_chance: bool  # whether the result may be no better than guessing


def compare(
    before: Evaluation,
    after: Evaluation,
    data: Pairs,
    sets: Mapping[str, RetrievalSet],
    baseline: Baseline | None = None,
) -> Comparison:
    """Compare the scores of a job.

    Args:
        before: of what the training started from. after: of the result. data: the scored pairs behind both.
        sets: queries and documents behind both, where there are no scored pairs. baseline: a finished encoder.
    """
    sides = [after, before, *([baseline.evaluation] if baseline else [])]
    unit = "queries" if sets else "pairs"
    header: Row = ("set", unit, "before", "after", "change", "after is")
    table = [(*header, baseline.name, f"after is, beside {baseline.name}") if baseline else header]
    sentences: list[str] = []
    change = lead = None
    at_chance = False
    if after.retrieval or after.scores:
        drawn = (
            _queries(sides, sets) if sets else resample([[side.cosines] for side in sides], data.scores, data.identity)
        )
        others = [_BEFORE, *([_BASELINE] if baseline else []), *([len(sides)] if sets else [])]
        found = drawn.differences([(_AFTER, other) for other in others])
        table += _rows(drawn, found, after, baseline)
        name = drawn.shown[-1]
        change, lead = found[0][name], found[1][name] if baseline else None
        guess = (float(drawn.values[-1, drawn.names.index(name)]), found[-1][name]) if sets else None
        at_chance = guess is not None and guess[1].verdict in (NEITHER, LOWER)
        if change.verdict == TOO_FEW:
            sentences.append(f"fewer than {LEAST_PAIRS} {unit}: too few to say whether the result is better")
        else:
            sentences += _sentences(change, baseline.name if baseline else None, lead, guess if at_chance else None)
            sentences += filter(None, [undefined_note(found[0].values())])
    order = _order(before, after)
    table += [(*order, *([""] * (len(table[0]) - len(order))))] if order else []
    return Comparison(table, sentences, change, baseline.name if baseline else None, lead, at_chance)


@dataclass(frozen=True)
class Shortened:
    """Scores with the first numbers of vectors alone, by how many."""

    before: Mapping[int, Evaluation]
    after: Mapping[int, Evaluation]


def shortened_table(
    before: Evaluation, after: Evaluation, shortened: Shortened, data: Pairs, sets: Mapping[str, RetrievalSet]
) -> list[Row]:
    """What the first numbers of vectors are worth beside the whole, the header first.

    Args:
        before, after: with whole vectors. shortened: with their first numbers. data, sets: as `compare` takes them.
    """
    widths = list(shortened.after)
    sides = [after, *shortened.after.values()]
    drawn = _queries(sides, sets) if sets else resample([[side.cosines] for side in sides], data.scores, data.identity)
    found = drawn.differences([(1 + place, 0) for place in range(len(widths))])
    name = drawn.shown[-1]
    table: list[Row] = [("numbers", "before", "after", "beside the whole vector", "is")]
    for width, difference in zip(widths, found, strict=True):
        points = (f"{side[width].headline:.2f}" for side in (shortened.before, shortened.after))
        table.append((str(width), *points, *_in_cells(difference[name], after)))
    return [*table, ("all", f"{before.headline:.2f}", f"{after.headline:.2f}", "", "")]


def _queries(sides: Sequence[Evaluation], sets: Mapping[str, RetrievalSet]) -> Resamples:
    """nDCG@10 in resamples of the queries, of every side and, last, of guessing."""
    by_chance = {name: guessing(sets[name]) for name in sides[0].retrieval}
    return resample_means([*(side.by_query for side in sides), by_chance])


def _rows(
    drawn: Resamples, found: Sequence[Mapping[str, Difference]], after: Evaluation, baseline: Baseline | None
) -> list[Row]:
    """A row a set, and one for the mean where there are several."""
    rows: list[Row] = []
    for name in drawn.shown:
        column = drawn.names.index(name)
        values = [f"{value:.2f}" for value in drawn.values[:, column]]
        count = "" if name == MEAN else f"{_size(after, name):,}"
        change = found[0][name]
        points = (values[_BEFORE], values[_AFTER])
        row = (name if name != MEAN else MEAN_ROW, count, *points, *_in_cells(change, after))
        rows.append((*row, values[_BASELINE], _in_cells(found[1][name], after)[1]) if baseline else row)
    return rows


def _in_cells(difference: Difference, evaluation: Evaluation) -> Row:
    """A difference with its interval, where there is one, and what may be said of it."""
    return str(difference), difference.verdict_on("queries" if evaluation.retrieval else "pairs")


def _size(evaluation: Evaluation, name: str) -> int:
    return len(evaluation.retrieval[name].first if evaluation.retrieval else evaluation.cosines[name])


def _order(before: Evaluation, after: Evaluation) -> Row | None:
    """The row of the held-out triplets: the share that are in order."""
    if not len(after.negatives) or len(before.negatives) != len(after.negatives):
        return None
    sides = [{"order": (side.positives > side.negatives).astype(np.float32)} for side in (after, before)]
    drawn = resample_means(sides)
    (change,) = drawn.differences([(_AFTER, _BEFORE)])
    values = [f"{drawn.values[row, 0]:.2f}" for row in (_BEFORE, _AFTER)]
    count = f"{len(after.positives):,}"
    return ("held-out triplets in order, %", count, *values, *_in_cells(change["order"], after))


def _sentences(
    change: Difference, baseline: str | None, lead: Difference | None, guess: tuple[float, Difference] | None
) -> list[str]:
    """The result beside before, beside the baseline, and beside guessing if that is given."""
    parts = [f"{_IN_WORDS[change.verdict]} before ({change})"]
    if lead is not None:
        parts.append(f"{_IN_WORDS[lead.verdict]} {baseline} as it was published ({lead})")
    sentences = [f"the result is {' and '.join(parts)}"]
    if guess is not None:
        sentences.append(
            f"the result is where chance is: documents in random order have {guess[0]:.2f}, and it is "
            f"{_IN_WORDS[guess[1].verdict]} that ({guess[1]})"
        )
    return sentences
