"""Scored pairs to train on: sentences with scores by people, or with the labels of NLI."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cft.config.schema import DataSettings
from cft.data.cells import BadRow, number_of
from cft.data.delimited import sign_of
from cft.data.files import BadRows, Skipped, apart, stream_scored_pairs, warn_of_skipped
from cft.data.records import ScoredPair
from cft.system.errors import UserError
from cft.system.files import user_path
from cft.system.overrides import override

log = logging.getLogger(__name__)

# How alike NLI calls a premise and a hypothesis. Only the order counts.
NLI_LABELS = {"entailment": 2.0, "neutral": 1.0, "contradiction": 0.0}

# NLI files that have numbers for these count the other way round, and have -1 where people did not agree.
_NLI_NUMBERS = {-1.0, 0.0, 1.0, 2.0}
_LABEL_COLUMNS = ("label", "labels", "gold_label")


@dataclass
class _Scores:
    """Reads scores that are all numbers, or all labels."""

    words: int = 0
    numbers: set[float] = field(default_factory=set)  # up to a few distinct ones

    def read(self, cells: dict[str, Any], column: str, role: str) -> float:
        """The score of a row's cell."""
        value = cells.get(column)
        word = value.strip().lower() if isinstance(value, str) else ""
        if word in NLI_LABELS:
            self.words += 1
            return NLI_LABELS[word]
        try:
            number = number_of(cells, column, role)
        except BadRow as error:
            raise BadRow(f"{error}, nor {', '.join(NLI_LABELS)}") if word else error from None
        if len(self.numbers) <= len(_NLI_NUMBERS):
            self.numbers.add(number)
        return number


def read_scored(settings: DataSettings) -> list[ScoredPair]:
    """The pairs of `data.scored`; none without it.

    Raises:
        UserError: naming the file and row; or the file, if its scores are mixed, all equal, or may be meant otherwise.
    """
    if settings.scored is None:
        return []
    named = override("data.scored", settings.scored)
    scores = _Scores()
    pairs, skipped = apart(stream_scored(settings, scores.read))
    warn_of_skipped(skipped[:3], len(skipped))
    column = settings.scored_columns[2]
    if scores.words and scores.numbers:
        raise UserError(f"{named}: the column {column!r} has labels of NLI in some rows and numbers in others")
    is_label = column.strip().casefold() in _LABEL_COLUMNS
    if is_label and scores.numbers == {0.0, 1.0}:
        log.warning(
            "%s: of the numbers 0 and 1 in the column %r, 1 is taken as the more alike; in some NLI files 0 is "
            "entailment: write the words where that is meant",
            *(named, column),
        )
    if is_label and scores.numbers <= _NLI_NUMBERS and scores.numbers & {-1.0, 2.0}:
        raise UserError(
            f"{named}: the numbers 0, 1 and 2 in a column {column!r} are entailment, neutral and contradiction in NLI "
            "files, where the lowest is the most alike; write the words, or scores that rise with likeness in a column "
            "of another name"
        )
    if len({pair.score for pair in pairs}) < 2:
        raise UserError(f"{named}: all {len(pairs)} scores are equal, and there is nothing to tell apart")
    return pairs


def stream_scored(
    settings: DataSettings, score_of: Callable[[dict[str, Any], str, str], float] | None = None
) -> Iterator[ScoredPair | Skipped]:
    """The pairs of `data.scored`, one after the other, with the rows that were left out; none without it."""
    if settings.scored is None:
        return iter(())
    return stream_scored_pairs(
        user_path(settings.scored),
        columns=settings.scored_columns,
        on_bad_row=BadRows(settings.on_bad_row),
        key="data.scored",
        score_of=score_of or _Scores().read,
        delimiter=sign_of(settings.delimiter),
    )
