"""What a file of training rows is like: counted while it is read, so that a fault of the data is seen before training.

What is surely a fault is refused; what is only suspicious is a line of warning.
"""

import ast
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cft.data.records import ScoredPair, Triplet
from cft.system.errors import UserError

_ROLES = ("anchors", "positives", "negatives")

_QUANTILES = (0.5, 0.9, 1.0)

# A column is suspicious if two texts make up more than this share of it, and it has rows enough to tell.
_FEW_TEXTS = 0.5
_ENOUGH_ROWS = 20

# A text with more brackets is not looked into: Python reads deeply nested ones at any price.
_MOST_BRACKETS = 50

# In-batch negatives of an anchor that may be its own positives before it is said.
_OWN_POSITIVES = 0.1  # a tenth of a candidate on average


@dataclass(frozen=True)
class Column:
    """The texts of one role."""

    texts: int
    distinct: int
    most_common: float  # share of the two commonest texts
    lengths: tuple[int, ...]  # characters: the median, the 90th percentile, the longest
    lists: int  # texts that read like a list of texts


@dataclass(frozen=True)
class Portrait:
    """What a file of training rows is like."""

    rows: int
    columns: dict[str, Column]  # anchors, positives and, if there are any, negatives
    duplicate_rows: int
    positive_is_anchor: int  # rows
    negative_is_positive: int  # rows with such a negative
    negative_is_anchor: int
    same_positive: float  # probability that the positives of two rows are equal
    same_anchor: float  # probability that their anchors are, whose positives are not
    same_anchor_apart: float  # the same where one positive alone of each row of the file is in a batch
    first: dict[str, int] = field(default_factory=dict)  # the first row of each of the three kinds above, from 1

    def lines(self) -> Iterator[str]:
        """The portrait in words."""
        distinct = ", ".join(f"{column.distinct:,} distinct {name}" for name, column in self.columns.items())
        yield f"{self.rows:,} rows, {distinct}"
        for name, column in self.columns.items():
            median, most, longest = column.lengths
            yield f"{name}: {median:,} characters at the median, {most:,} at the 90th percentile, {longest:,} at most"

    def warnings(self) -> Iterator[str]:
        """What is suspicious, a line each."""
        if self.duplicate_rows:
            yield f"{self.duplicate_rows:,} of {self.rows:,} rows stand there before, word for word"
        for count, key, what in (
            (self.positive_is_anchor, "positive_is_anchor", "have their anchor as positive"),
            (self.negative_is_positive, "negative_is_positive", "have their positive among the negatives"),
            (self.negative_is_anchor, "negative_is_anchor", "have their anchor among the negatives"),
        ):
            if count:
                yield f"{count:,} of {self.rows:,} rows {what} (the first is row {self.first[key]})"
        for name, column in self.columns.items():
            if self.rows >= _ENOUGH_ROWS and column.most_common > _FEW_TEXTS:
                yield f"{column.most_common:.0%} of the {name} are one of two texts: is that the right column?"
            if column.lists == column.texts:
                yield (
                    f"every text of the {name} reads like a list of texts ['...', '...']: write lists as JSON or "
                    "Parquet has them"
                )

    def warnings_of_batches(self, batch: int, *, redrawn: bool = False) -> Iterator[str]:
        """What repeated texts do to batches of this size, a line each; nothing where it is next to nothing.

        Args:
            batch: rows. redrawn: whether a batch has one positive alone of a row with a list of them.
        """
        own = self.same_positive * (batch - 1)
        other = (self.same_anchor_apart if redrawn else self.same_anchor) * (batch - 1)
        of = f"of an anchor's {batch - 1} in-batch negatives"
        if own >= _OWN_POSITIVES:
            yield (
                f"positives stand in several rows: {of} {own:.2g} are its own positive on average; "
                "loss.mask_false_negatives=true leaves those out"
            )
        if other >= _OWN_POSITIVES:
            yield (
                f"anchors stand in several rows: {of} {other:.2g} are another positive of its own on average; a "
                "smaller train.batch_size has fewer of them"
                + ("" if redrawn else ", and data.positives=redraw takes one positive of a list at a time")
            )

    def require_sound(self, key: str) -> None:
        """Refuse rows from which nothing can be learned.

        Args:
            key: the setting that named the file, with its value.

        Raises:
            UserError: naming the fault.
        """
        faults = {
            "have their anchor as positive": self.positive_is_anchor,
            "have their positive among the negatives": self.negative_is_positive,
        }
        for what, count in faults.items():
            if count == self.rows:
                raise UserError(
                    f"{key}: all {self.rows:,} rows {what}: nothing can be learned from them; are two columns the same?"
                )


class Painter:
    """Makes a portrait of rows that pass by, in memory that grows by a few bytes a text."""

    def __init__(self) -> None:
        self._hashes: dict[str, array] = {
            name: array("q") for name in ("anchors", "positives", "negatives", "pairs", "rows", "apart")
        }
        self._lengths: dict[str, array] = {name: array("l") for name in _ROLES}
        self._lists = dict.fromkeys(self._lengths, 0)
        self._odd = dict.fromkeys(("positive_is_anchor", "negative_is_positive", "negative_is_anchor"), 0)
        self._first: dict[str, int] = {}
        self._count = 0

    def add(self, row: Triplet, *, again: bool = False) -> None:
        """Look at a row; `again` if it is another positive of the row before."""
        self._count += 1
        if not again:
            self._hashes["apart"].append(hash(row.anchor))
        for name, texts in (("anchors", (row.anchor,)), ("positives", (row.positive,)), ("negatives", row.negatives)):
            for text in texts:
                self._hashes[name].append(hash(text))
                self._lengths[name].append(len(text))
                self._lists[name] += text[0] == "[" and _is_list(text)
        self._hashes["pairs"].append(hash((row.anchor, row.positive)))
        self._hashes["rows"].append(hash(row))
        self._note("positive_is_anchor", row.positive == row.anchor)
        self._note("negative_is_positive", row.positive in row.negatives)
        self._note("negative_is_anchor", row.anchor in row.negatives)

    def _note(self, kind: str, found: bool) -> None:
        if found:
            self._odd[kind] += 1
            self._first.setdefault(kind, self._count)

    def portrait(self) -> Portrait:
        """Of all rows so far, at least one."""
        counts = {name: np.unique(np.asarray(found), return_counts=True)[1] for name, found in self._hashes.items()}
        columns = {
            name: Column(
                texts=len(lengths),
                distinct=len(counts[name]),
                most_common=float(np.sort(counts[name])[-2:].sum() / len(lengths)),
                lengths=tuple(int(each) for each in np.quantile(np.asarray(lengths), _QUANTILES, method="nearest")),
                lists=self._lists[name],
            )
            for name, lengths in self._lengths.items()
            if len(lengths)
        }
        same = {name: _same(found) for name, found in counts.items()}
        return Portrait(
            rows=self._count,
            columns=columns,
            duplicate_rows=self._count - len(counts["rows"]),
            same_positive=same["positives"],
            same_anchor=max(0.0, same["anchors"] - same["pairs"]),
            same_anchor_apart=max(0.0, same["apart"] - same["pairs"]),
            first=self._first,
            **self._odd,
        )


def portrait_from(record: dict[str, Any]) -> Portrait:
    """A portrait out of its record."""
    known = record["columns"]
    columns = {
        name: Column(**{**known[name], "lengths": tuple(known[name]["lengths"])}) for name in _ROLES if name in known
    }
    return Portrait(**{**record, "columns": columns})


def _same(counts: np.ndarray) -> float:
    """The probability that two of the things counted here are equal."""
    numbers, total = counts.astype(np.float64), float(counts.sum())
    return float((numbers * (numbers - 1)).sum() / (total * (total - 1))) if total > 1 else 0.0


def _is_list(text: str) -> bool:
    """Whether a text is a list of texts as Python or JSON writes it."""
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    if not text.rstrip().endswith("]") or text.count("[") > _MOST_BRACKETS:
        return False
    for read in readers:
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError):
            continue
        return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)
    return False


def warnings_of_pairs(pairs: Sequence[ScoredPair]) -> Iterator[str]:
    """What is suspicious about scored pairs, a line each."""
    repeated = len(pairs) - len(set(pairs))
    if repeated:
        yield f"{repeated:,} of {len(pairs):,} pairs stand there before, with the same score"
    equal = sum(pair.sentence1 == pair.sentence2 for pair in pairs)
    if len(pairs) >= _ENOUGH_ROWS and equal > _FEW_TEXTS * len(pairs):
        yield f"{equal:,} of {len(pairs):,} pairs are a sentence with itself: are two columns the same?"
    for number in (0, 1):
        _, counts = np.unique([hash(pair[number]) for pair in pairs], return_counts=True)
        share = np.sort(counts)[-2:].sum() / len(pairs)
        if len(pairs) >= _ENOUGH_ROWS and share > _FEW_TEXTS:
            yield f"{share:.0%} of the texts of column sentence{number + 1} are one of two: is that the right column?"
