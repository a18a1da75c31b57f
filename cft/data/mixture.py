"""Several sources of training rows in one training: whose turn it is, and which of its rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Rows that come one source after the other, and how often each source is drawn from."""

    rows: tuple[int, ...]  # of each source
    shares: tuple[float, ...] | None = None  # of each source, above 0; None: its share of all rows, once an epoch
    by_source: bool = False  # a batch has rows of one source only

    @property
    def count(self) -> int:
        """All rows."""
        return sum(self.rows)

    @property
    def is_plain(self) -> bool:
        """Whether the rows are shuffled as if they came from one source."""
        return not self.by_source and (self.shares is None or len(self.rows) == 1)

    @cached_property
    def normalized(self) -> tuple[float, ...]:
        """The share of each source, in sum 1."""
        weights = self.shares or self.rows
        return tuple(weight / sum(weights) for weight in weights)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The number of each source's first row."""
        return tuple(int(start) for start in np.cumsum((0, *self.rows[:-1])))

    def source_of(self, row: int) -> int:
        """The source that a row is of."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """(count,) row numbers of one epoch in their order; with shares, a row may come several times or not at all.

        An epoch has as many rows as there are. A source whose share is above that of its rows begins anew, in another
        order, when all of its rows were drawn; where an epoch ends, the next one goes on.
        """
        if self.is_plain:
            return shuffled(self.count, seed, epoch)
        turns = self.turns(self.count)
        order = np.empty(self.count, dtype=np.int64)
        for source, start in enumerate(self.starts):
            places = np.flatnonzero(turns == source)
            order[places] = start + self._drawn(source, seed, epoch * len(places), len(places))
        return order

    def counts(self, draws: int) -> list[int]:
        """Draws from each source out of so many: shares of them, rounded so that the sum is right."""
        exact = np.array(self.normalized) * draws
        counts = np.floor(exact).astype(int)
        missing = np.argsort(counts - exact, kind="stable")[: draws - counts.sum()]
        counts[missing] += 1
        return counts.tolist()

    def turns(self, draws: int) -> np.ndarray:
        """(draws,) the source of each draw, the draws of every source at even distances."""
        counts = self.counts(draws)
        sources = np.repeat(np.arange(len(counts)), counts)
        moments = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
        return sources[np.argsort(moments, kind="stable")]

    def _drawn(self, source: int, seed: int, first: int, count: int) -> np.ndarray:
        """(count,) rows of a source, counted from 0, from its draw number `first` on."""
        rows = self.rows[source]
        orders = [
            shuffled_source(rows, seed, source, each) for each in range(first // rows, (first + count) // rows + 1)
        ]
        return np.concatenate(orders)[first % rows :][:count]


def plain(rows: int) -> Mixture:
    """Rows of one source."""
    return Mixture((rows,))


def shares_of(rows: Sequence[int], temperature: float) -> tuple[float, ...]:
    """Shares by size: rows to the power of 1 / temperature, in sum 1.

    Source: Raffel et al. 2020 (T5), arXiv 1910.10683, for temperature-scaled mixing.
    """
    powers = np.array(rows, dtype=float) ** (1 / temperature)
    return tuple(float(share) for share in powers / powers.sum())


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) all row numbers in an epoch's order."""
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def shuffled_source(rows: int, seed: int, source: int, epoch: int) -> np.ndarray:
    """(rows,) a source's rows, counted from 0, in the order of one pass over it."""
    return np.random.default_rng([seed, 3, source, epoch]).permutation(rows)


def cycled(mixture: Mixture, steps: int, start: int) -> Iterator[tuple[int, int]]:
    """The source of every batch from step `start` on, and how many batches of it came before; for `by_source`.

    Args:
        mixture: the sources. steps: that an epoch has, after which the turns begin anew. start: the first step.
    """
    turns = mixture.turns(steps)
    of_epoch = np.bincount(turns, minlength=len(mixture.rows))
    epoch, skipped = divmod(start, steps)
    before = epoch * of_epoch + np.bincount(turns[:skipped], minlength=len(mixture.rows))
    while True:
        for source in turns[skipped:].tolist():
            yield source, int(before[source])
            before[source] += 1
        skipped = 0
