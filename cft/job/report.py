"""A job's tables: scores, and scores before and after."""

from cft.evaluation.scores import Evaluation
from cft.system.tables import Row


def comparison(before: Evaluation, after: Evaluation) -> list[Row]:
    """The before/after table, its header first."""
    table: list[Row] = [("set", "pairs", "before", "after", "change")]
    for name, score in before.scores.items():
        table.append((name, str(len(before.cosines[name])), *_change(score, after.scores[name])))
    if len(before.scores) > 1:
        table.append((_MEAN, "", _overall(before), _overall(after), f"{after.mean - before.mean:+.2f}"))
    if before.triplet_accuracy is not None and after.triplet_accuracy is not None:
        shares = _change(100 * before.triplet_accuracy, 100 * after.triplet_accuracy)
        table.append(("held-out triplets in order, %", str(len(before.positives)), *shares))
    return table


def scores(found: Evaluation) -> list[Row]:
    """The table of one evaluation, its header first."""
    table: list[Row] = [("set", "pairs", "score")]
    table += [(name, str(len(found.cosines[name])), f"{score:.2f}") for name, score in found.scores.items()]
    if len(found.scores) > 1:
        table.append((_MEAN, "", _overall(found)))
    return table


_MEAN = "mean over sets"


def _overall(found: Evaluation) -> str:
    return f"{found.mean:.2f} ± {found.deviation:.2f}"


def _change(before: float, after: float) -> Row:
    return f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"
