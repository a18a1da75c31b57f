"""How sure a score is: bootstrap intervals over pairs, paired differences, and verdicts corrected for their number.

A resample gives every distinct pair a Poisson(1) count, the same one in every set that holds it and for every embedder
compared: a pair that STS14 and STSBenchmark share is drawn once. (Given its size, such a resample is the usual one
with replacement.) Values are sorted once; cumulative counts in that order then give the Spearman correlations of a
hundred resamples at a time, where scipy would sort every resample.

Source: Efron and Tibshirani 1993 (percentile intervals, paired bootstrap); Chamandy et al. 2012 (Poisson counts);
Holm 1979 (correction).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cft.evaluation.pairs import Arrays

RESAMPLES = 10_000
LEVEL = 0.95
MEAN = "overall"

# Fewer distinct pairs than these give no verdict. Simulated for two embedders that are equally good, with normal scores
# and cosines: at 5 pairs, 5% of the resamples have no correlation at all, and an interval that should hold the true
# one 95 times in 100 does so 86 times; from 10 on it does so 95 times and more, and no more than 5 of 100 verdicts are
# false, at any number of pairs.
LEAST_PAIRS = 10

HIGHER, LOWER, NEITHER = "higher", "lower", "not distinguishable"
TOO_FEW = f"no verdict (fewer than {LEAST_PAIRS} pairs)"
VERDICTS = (HIGHER, LOWER, NEITHER, TOO_FEW)

# Raise when a change to the code changes an interval or a verdict: stored ones are then not used again.
METHOD = 2

_WIDEST = 100.0  # a score lies between plus and minus this

# Poisson(1) counts by a 16-bit random number: ten times numpy's own speed, each probability right to 2e-5.
_BELOW = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(12)])
_COUNT_OF = np.searchsorted(_BELOW, (np.arange(2**16) + 0.5) / 2**16).astype(np.float32)

# Resamples at a time: an array of the largest STS set (10,000 pairs) then stays near a processor's cache.
_CHUNK = 128


@dataclass(frozen=True)
class Interval:
    """A score, Spearman x 100, with its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """One score minus another over the same pairs, with its 95% confidence interval."""

    p: float  # two-sided, of no difference; 1 without a test
    corrected: float  # p after Holm's correction for all differences tested together
    pairs: int  # distinct ones that were compared; of a mean over sets, those of the smallest set
    undefined: float = 0.0  # share of the resamples in which an embedder has no score

    def __str__(self) -> str:
        if self.verdict == TOO_FEW:  # nothing is known of an interval
            return f"{self.value:+.2f}"
        return f"{self.value:+.2f} [{self.low:+.1f}, {self.high:+.1f}]"

    def verdict_on(self, things: str) -> str:
        """The verdict, where what was compared is called otherwise than pairs."""
        return TOO_FEW.replace("pairs", things) if self.verdict == TOO_FEW else self.verdict

    @property
    def verdict(self) -> str:
        """What may be said at the 5% level."""
        if self.pairs < LEAST_PAIRS:
            return TOO_FEW
        if self.corrected >= 1 - LEVEL:
            return NEITHER
        return HIGHER if self.value > 0 else LOWER


def undefined_note(differences: Iterable[Difference]) -> str:
    """A sentence about resamples that had to be left out of intervals; empty if there were none."""
    judged = [difference for difference in differences if difference.verdict != TOO_FEW]
    share = max((difference.undefined for difference in judged), default=0.0)
    if not share:
        return ""
    return (
        f"In up to {share:.1%} of the resamples a score is not defined, as all drawn pairs have one human score or one "
        "cosine: these are left out of the intervals and speak against every difference."
    )


@dataclass(frozen=True)
class Resamples:
    """Scores of several embedders in the same resamples."""

    names: list[str]  # of the sets, then MEAN
    values: np.ndarray  # (embedders, names), on the pairs themselves
    drawn: np.ndarray  # (embedders, names, resamples); NaN where a resample orders nothing
    pairs: list[int]  # (names,) distinct pairs; for MEAN, those of the smallest set

    @property
    def shown(self) -> list[str]:
        """The names that a table has rows for: the mean over one set is that set."""
        return self.names if len(self.names) > 2 else self.names[:1]

    def interval(self, embedder: int, name: str) -> Interval:
        """Percentile interval of one embedder's score on a set, or on MEAN; for too few pairs, all that may be."""
        column = self.names.index(name)
        ends = self._ends(self.drawn[embedder, column], column, _WIDEST)
        return Interval(float(self.values[embedder, column]), *ends)

    def _ends(self, drawn: np.ndarray, column: int, widest: float) -> tuple[float, float]:
        """Ends of an interval; with too few pairs, or no resample that has a score, nothing is known."""
        defined = drawn[~np.isnan(drawn)]
        if self.pairs[column] < LEAST_PAIRS or not len(defined):
            return -widest, widest
        tail = 50 * (1 - LEVEL)
        low, high = np.percentile(defined, [tail, 100 - tail])
        return float(low), float(high)

    def differences(self, pairs: Sequence[tuple[int, int]]) -> list[dict[str, Difference]]:
        """For every pair of embedders, left minus right by set and on MEAN, all corrected together."""
        if not pairs:
            return []
        values = [self.values[left] - self.values[right] for left, right in pairs]
        drawn = [self.drawn[left] - self.drawn[right] for left, right in pairs]
        enough = np.array([count >= LEAST_PAIRS for count in self.pairs])
        p = np.array([[_p_value(row) for row in rows] for rows in drawn])
        p[:, ~enough] = 1.0
        corrected = np.ones_like(p)
        if len(self.names) == 2:  # the mean over one set is no second test
            corrected[:] = holm(p[:, 0])[:, None]
        else:
            corrected[:, enough] = holm(p[:, enough].ravel()).reshape(len(p), -1)
        return [
            {
                name: Difference(
                    float(of_pair[column]),
                    *self._ends(rows[column], column, 2 * _WIDEST),
                    p=float(p[place, column]),
                    corrected=float(corrected[place, column]),
                    pairs=self.pairs[column],
                    undefined=float(np.mean(np.isnan(rows[column]))),
                )
                for column, name in enumerate(self.names)
            }
            for place, (of_pair, rows) in enumerate(zip(values, drawn, strict=True))
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
        embedders: for each, the cosines (pairs,) by set of every training seed; its score is the mean over seeds.
        scores: human scores, (pairs,) by set.
        identity: equal numbers for equal pairs, (pairs,) by set.
        resamples: their number.
        seed: of the counts.
    """
    sets = {name: _Set(human, [[run[name] for run in runs] for runs in embedders]) for name, human in scores.items()}
    values = [of_set.spearman(np.ones((len(scores[name]), 1), dtype=np.float32)) for name, of_set in sets.items()]
    distinct = 1 + max((int(numbers.max()) for numbers in identity.values()), default=0)
    generator = np.random.default_rng(seed)
    drawn = np.empty((len(embedders), len(sets), resamples), dtype=np.float32)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        counts = _COUNT_OF[generator.integers(0, 2**16, (distinct, size), dtype=np.uint16)]
        for column, (name, of_set) in enumerate(sets.items()):
            drawn[:, column, start : start + size] = of_set.spearman(counts[identity[name]])

    def with_mean(scores: np.ndarray) -> np.ndarray:
        return np.concatenate([scores, scores.mean(axis=1, keepdims=True)], axis=1)

    counted = [len(np.unique(identity[name])) for name in sets]
    every = with_mean(np.concatenate(values, axis=1))
    return Resamples([*sets, MEAN], every, with_mean(drawn), [*counted, min(counted, default=0)])


def resample_means(embedders: Sequence[Arrays], *, resamples: int = RESAMPLES, seed: int = 0) -> Resamples:
    """Draw resamples of the queries and average every embedder's measure in each.

    Args:
        embedders: for each, the measure (queries,) by set, from 0 to 1, of the same queries.
        resamples: their number. seed: of the counts.
    """
    names = list(embedders[0])
    stacked = {name: 100 * np.stack([arrays[name] for arrays in embedders]).astype(np.float32) for name in names}
    values = np.array([[float(stacked[name][row].mean()) for name in names] for row in range(len(embedders))])
    generator = np.random.default_rng(seed)
    drawn = np.empty((len(embedders), len(names), resamples), dtype=np.float32)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        for column, name in enumerate(names):
            of_set = stacked[name]
            counts = _COUNT_OF[generator.integers(0, 2**16, (of_set.shape[1], size), dtype=np.uint16)]
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn[:, column, start : start + size] = of_set @ counts / counts.sum(axis=0)
    counted = [of_set.shape[1] for of_set in stacked.values()]
    every = np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)
    mean = drawn.mean(axis=1, keepdims=True)
    return Resamples([*names, MEAN], every, np.concatenate([drawn, mean], axis=1), [*counted, min(counted, default=0)])


class _Set:
    """One set's values, sorted once for all resamples."""

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

        def of_run(run: _Order) -> np.ndarray:
            ranks, spread = run.centred_ranks(counts)
            product = np.einsum("nr,nr->r", weighted, ranks, dtype=np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                return product / np.sqrt(human_spread * spread)

        return np.array([100 * np.mean([of_run(run) for run in runs], axis=0) for runs in self._cosines])


class _Order:
    """Values in ascending order, equal ones grouped."""

    def __init__(self, values: np.ndarray) -> None:
        _, self._group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        self._starts = np.cumsum(sizes) - sizes  # of the groups of equal values
        self._sorted = np.argsort(values, kind="stable")

    def centred_ranks(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mid-ranks among the drawn values minus their mean, (pairs, R), and their summed squares, (R,)."""
        in_group = counts[self._sorted]
        if len(self._starts) < len(self._group):
            in_group = np.add.reduceat(in_group, self._starts, axis=0)
        up_to = np.cumsum(in_group, axis=0)
        # copies of equal values share the middle of their ranks; the mean rank is (total + 1) / 2
        ranks = up_to - (in_group + up_to[-1]) / 2
        spread = np.einsum("gr,gr,gr->r", in_group, ranks, ranks, dtype=np.float64)
        return ranks[self._group], spread


def _p_value(drawn: np.ndarray) -> float:
    """Two-sided: twice the share of resamples on the rarer side of zero, counting the observed score itself.

    Resamples without a score speak for no side, so they count on both.
    """
    undefined = int(np.sum(np.isnan(drawn)))
    sides = 1 + undefined + min(int(np.sum(drawn <= 0)), int(np.sum(drawn >= 0)))
    return min(1.0, 2 * sides / (len(drawn) + 1))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values, (n,) to (n,)."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
