"""How sure a score is: bootstrap intervals over pairs, paired differences, and verdicts corrected for their number.

A resample gives every distinct pair a Poisson(1) count, the same one in every set it stands in and for every embedder
compared: a pair that STS14 and STSBenchmark share is drawn once. (Given its size, such a resample is the usual one
with replacement.) Spearman correlation under counts is computed from cumulative counts in the order of the values,
sorted once, for hundreds of resamples at a time: scipy would sort every resample anew.

Source: Efron and Tibshirani 1993 (percentile intervals, paired bootstrap); Chamandy et al. 2012 (Poisson counts);
Holm 1979 (correction).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cft.evaluation.pairs import Arrays

RESAMPLES = 10_000
LEVEL = 0.95
MEAN = "overall"

# Fewer pairs than these say nothing about an interval.
LEAST_PAIRS = 10

# Poisson(1) counts by a 16-bit random number: ten times numpy's own speed, each probability right to 2e-5.
_BELOW = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(12)])
_COUNT_OF = np.searchsorted(_BELOW, (np.arange(2**16) + 0.5) / 2**16).astype(np.float32)

# Resamples at a time: an array of the largest STS set (10,000 pairs) then stays near a processor's cache.
_CHUNK = 128


@dataclass(frozen=True)
class Interval:
    """A value with the interval that holds the true one in 95 of 100 cases; Spearman x 100."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One score minus another over the same pairs, in points of Spearman x 100.

    p: two-sided, of no difference. corrected: p after Holm's correction for all differences asked together.
    """

    value: float
    low: float
    high: float
    p: float
    corrected: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.1f}, {self.high:+.1f}]"

    @property
    def verdict(self) -> str:
        """What may be said at the 5% level."""
        if self.corrected >= 1 - LEVEL:
            return "not distinguishable"
        return "higher" if self.value > 0 else "lower"


@dataclass(frozen=True)
class Resamples:
    """Scores of several embedders in the same resamples.

    names: of the sets, then MEAN. values: (embedders, names) on the pairs themselves. drawn: (embedders, names,
    resamples).
    """

    names: list[str]
    values: np.ndarray
    drawn: np.ndarray

    def interval(self, embedder: int, name: str) -> Interval:
        """Percentile interval of one embedder's score on a set or on the mean over sets."""
        place = self.names.index(name)
        low, high = _percentiles(self.drawn[embedder, place])
        return Interval(float(self.values[embedder, place]), low, high)

    def differences(self, pairs: Sequence[tuple[int, int]]) -> list[dict[str, Difference]]:
        """For every pair of embedders, first minus second on every set and on the mean; corrected all together."""
        if not pairs:
            return []
        values = np.array([self.values[one] - self.values[other] for one, other in pairs])
        drawn = [self.drawn[one] - self.drawn[other] for one, other in pairs]
        p = np.array([[_p_value(row) for row in rows] for rows in drawn])
        asked = p[:, :1] if len(self.names) == 2 else p  # the mean over one set is no further question
        corrected = np.broadcast_to(holm(asked.ravel()).reshape(asked.shape), p.shape)
        return [
            {
                name: Difference(
                    float(values[i, j]), *_percentiles(drawn[i][j]), p=float(p[i, j]), corrected=float(corrected[i, j])
                )
                for j, name in enumerate(self.names)
            }
            for i in range(len(pairs))
        ]


def resample(
    embedders: Sequence[Sequence[Arrays]],
    scores: Arrays,
    identity: Arrays,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Resamples:
    """Draw resamples of the pairs and score every embedder in each.

    Args:
        embedders: for each, the cosines (pairs,) by set of every seed it was trained with; its score is the mean
            over the seeds.
        scores: of people, (pairs,) by set.
        identity: equal numbers for equal pairs, (pairs,) by set.
        resamples: how many.
        seed: draws them.
    """
    names = list(scores)
    prepared = {name: _Set(scores[name], [[run[name] for run in runs] for runs in embedders]) for name in names}
    ones = {name: prepared[name].spearman(np.ones((len(scores[name]), 1), dtype=np.float32)) for name in names}
    distinct = 1 + max((int(numbers.max()) for numbers in identity.values()), default=0)
    generator = np.random.default_rng(seed)
    drawn = np.empty((len(embedders), len(names), resamples), dtype=np.float32)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        counts = _COUNT_OF[generator.integers(0, 2**16, (distinct, size), dtype=np.uint16)]
        for place, name in enumerate(names):
            drawn[:, place, start : start + size] = prepared[name].spearman(counts[identity[name]])
    values = np.stack([ones[name][:, 0] for name in names], axis=1)
    with_mean = [np.concatenate([part, part.mean(axis=1, keepdims=True)], axis=1) for part in (values, drawn)]
    return Resamples([*names, MEAN], *with_mean)


class _Set:
    """One set's order of values, prepared once for all resamples."""

    def __init__(self, scores: np.ndarray, cosines: list[list[np.ndarray]]) -> None:
        self._scores = _Order(scores)
        self._cosines = [[_Order(run) for run in runs] for runs in cosines]

    def spearman(self, counts: np.ndarray) -> np.ndarray:
        """Spearman x 100 of every embedder in every resample.

        Args:
            counts: (pairs, R) float32, how often each pair is drawn.

        Returns:
            (embedders, R).
        """
        human, human_spread = self._scores.centred_ranks(counts)
        weighted = counts * human
        found = np.empty((len(self._cosines), counts.shape[1]))
        for place, runs in enumerate(self._cosines):
            of_seeds = []
            for run in runs:
                ranks, spread = run.centred_ranks(counts)
                with np.errstate(invalid="ignore", divide="ignore"):
                    product = np.einsum("nr,nr->r", weighted, ranks, dtype=np.float64)
                    of_seeds.append(product / np.sqrt(human_spread * spread))
            found[place] = 100 * np.mean(of_seeds, axis=0)
        return found


class _Order:
    """The order of some values and which of them are equal."""

    def __init__(self, values: np.ndarray) -> None:
        self._sorted = np.argsort(values, kind="stable")
        ordered = values[self._sorted]
        first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self._starts = np.flatnonzero(first)
        self._group = np.empty(len(values), dtype=np.intp)  # of each value, in its own place
        self._group[self._sorted] = np.cumsum(first) - 1

    def centred_ranks(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mid-ranks among the drawn values less their mean, (pairs, R), and their summed squares, (R,)."""
        in_group = counts[self._sorted]
        if len(self._starts) < len(self._group):
            in_group = np.add.reduceat(in_group, self._starts, axis=0)
        upto = np.cumsum(in_group, axis=0)
        # copies of equal values share the middle of the ranks they take up; the mean rank is (total + 1) / 2
        ranks = upto - (in_group + upto[-1]) / 2
        spread = np.einsum("gr,gr,gr->r", in_group, ranks, ranks, dtype=np.float64)
        return ranks[self._group], spread


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


def _p_value(drawn: np.ndarray) -> float:
    """Two-sided: twice the share of resamples on the rarer side of zero, the observed one counted in."""
    sides = 1 + min(int(np.sum(drawn <= 0)), int(np.sum(drawn >= 0)))
    return min(1.0, 2 * sides / (len(drawn) + 1))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values, (n,) to (n,)."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
