"""How good an embedder is: Spearman correlation with human scores, and triplets kept in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.stats import spearmanr

from cft.data.records import ScoredPair, Triplet, require_rankable
from cft.system.errors import UserError

# Cosines of float32 unit vectors that are nearer to one another than this differ by rounding alone.
_ROUNDING = 1e-6


class Encoder(Protocol):
    """Whatever turns texts into unit vectors: an embedder, or one that remembers what it embedded."""

    def encode(self, texts: Sequence[str], *, progress: str | None = None) -> np.ndarray:
        """(len(texts), D) float32."""


@dataclass(frozen=True)
class Evaluation:
    """What an embedder made of the evaluation data.

    scores: Spearman x 100 of every set. cosines: of every pair, (pairs,) float32 a set, in the set's order.
    positives, negatives: cosines of held-out anchors with their positives and with their first hard negatives.
    uniformity: of the held-out anchors, see `uniformity`; None without.
    """

    scores: dict[str, float]
    cosines: dict[str, np.ndarray]
    positives: np.ndarray
    negatives: np.ndarray
    uniformity: float | None = None

    @property
    def mean(self) -> float:
        """Mean score over the sets, the paper's "overall"; NaN without sets."""
        return float(np.mean(list(self.scores.values()))) if self.scores else float("nan")

    @property
    def deviation(self) -> float:
        """Population standard deviation over the sets, as the paper gives it."""
        return float(np.std(list(self.scores.values()))) if self.scores else float("nan")

    @property
    def triplet_accuracy(self) -> float | None:
        """Share of held-out anchors that are nearer to their positive than to their hard negative; None without."""
        if not len(self.negatives):
            return None
        return float(np.mean(self.positives > self.negatives))

    @property
    def alignment(self) -> float | None:
        """Mean squared distance between unit vectors of an anchor and its positive, lower is better; None without.

        Source: Wang and Isola 2020, arXiv 2005.10242.
        """
        return float(np.mean(2 - 2 * self.positives)) if len(self.positives) else None

    def record(self) -> dict:
        """The numbers as plain data."""
        return {
            "mean": self.mean if self.scores else None,
            "standard_deviation": self.deviation if self.scores else None,
            "sets": {name: {"spearman": self.scores[name], "pairs": len(self.cosines[name])} for name in self.scores},
            "triplet_accuracy": self.triplet_accuracy,
            "held_out_triplets": len(self.positives),
            "alignment": self.alignment,
            "uniformity": self.uniformity,
        }


def evaluate(
    embedder: Encoder,
    sets: dict[str, list[ScoredPair]],
    triplets: Sequence[Triplet] = (),
    *,
    progress: str | None = None,
) -> Evaluation:
    """Score an embedder; every distinct text of all sets together is encoded once.

    Args:
        embedder: under the prompt that evaluation is to use.
        sets: scored pairs by the name of their set.
        triplets: held-out triplets, each with at least one negative to count.
        progress: caption of a progress bar, or None.

    Raises:
        UserError: if a set cannot be scored: fewer than two pairs, constant scores, or constant cosines.
    """
    # Only triplets that have a negative say whether it is farther away than the positive.
    complete = [row for row in triplets if row.negatives]
    texts = [text for pairs in sets.values() for pair in pairs for text in (pair.sentence1, pair.sentence2)]
    texts += [text for row in complete for text in (row.anchor, row.positive, row.negatives[0])]
    distinct = list(dict.fromkeys(texts))
    vectors = embedder.encode(distinct, progress=progress)
    place = {text: index for index, text in enumerate(distinct)}

    def cosines(left: list[str], right: list[str]) -> np.ndarray:
        if not left:
            return np.empty(0, dtype=np.float32)
        one, other = vectors[[place[text] for text in left]], vectors[[place[text] for text in right]]
        return np.einsum("nd,nd->n", one, other)

    by_set = {name: cosines([pair.sentence1 for pair in p], [pair.sentence2 for pair in p]) for name, p in sets.items()}
    anchors = [row.anchor for row in complete]
    return Evaluation(
        scores={name: spearman(by_set[name], [pair.score for pair in sets[name]], name) for name in sets},
        cosines=by_set,
        positives=cosines(anchors, [row.positive for row in complete]),
        negatives=cosines(anchors, [row.negatives[0] for row in complete]),
        uniformity=uniformity(vectors[[place[text] for text in dict.fromkeys(anchors)]]) if complete else None,
    )


def uniformity(vectors: np.ndarray) -> float | None:
    """How evenly unit vectors fill the sphere: log of the mean of exp(-2 d^2) over all pairs, d their distance.

    Args:
        vectors: (n, D), distinct texts.

    Returns:
        0 if all vectors are one, lower the more even; None for fewer than two.

    Source: Wang and Isola 2020, arXiv 2005.10242, with t = 2.
    """
    if len(vectors) < 2:
        return None
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), k=1)]
    return float(np.log(np.mean(np.exp(-4.0 + 4.0 * cosines.astype(np.float64)))))


def spearman(cosines: np.ndarray, scores: Sequence[float], name: str) -> float:
    """Spearman rank correlation x 100 of cosines with human scores, over all pairs of a set at once, as in MTEB.

    Raises:
        UserError: naming the set, if the correlation is undefined.
    """
    require_rankable(scores, name)
    if float(np.ptp(cosines)) <= _ROUNDING:
        raise UserError(
            f"the embedding has collapsed: all cosines of the set {name} are equal up to rounding "
            f"({float(cosines.min()):.7f} to {float(cosines.max()):.7f}), so that they order nothing. After training: "
            "lower lr or raise loss.temperature. Before it: another model.pooling or model.layer may tell texts apart"
        )
    return float(spearmanr(cosines, scores).statistic) * 100
