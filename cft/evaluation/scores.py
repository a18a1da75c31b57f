"""How good an embedder is: Spearman correlation with human scores, and held-out triplets in order.

FOLDER/metrics.json    the scores, the contract they were made under, and the seconds they took
FOLDER/cosines.npz     the cosine of every pair, by set
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cft.config.schema import Role
from cft.data.records import ScoredPair, Triplet, require_rankable
from cft.evaluation.pairs import Arrays
from cft.evaluation.retrieval import HEADLINE, RetrievalScores, load_retrieval, save_retrieval
from cft.model.contract import Contract
from cft.system.errors import UserError
from cft.system.files import read_arrays, read_json, write_arrays, write_record
from cft.system.text import shorten

METRICS = "metrics.json"
COSINES = "cosines.npz"

# Cosines of float32 unit vectors that differ by at most this differ by rounding alone.
ROUNDING = 1e-6

# Vectors whose cosines with as many others are in memory at a time.
_UNIFORMITY_BLOCK = 2048


class Encoder(Protocol):
    """Turns texts into unit vectors: an embedder, with or without a cache."""

    def encode(self, texts: Sequence[str], *, progress: str | None = None) -> np.ndarray:
        """(len(texts), D) float32."""

    def in_role(self, role: Role) -> "Encoder":
        """The same under the prompt of a role; itself if all roles have the same."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of an embedder, and the cosines behind them."""

    scores: dict[str, float]  # Spearman x 100 by set
    cosines: dict[str, np.ndarray]  # (pairs,) float32 by set, in the set's order
    positives: np.ndarray  # cosines of held-out anchors with their positives
    negatives: np.ndarray  # cosines of the same anchors with their first hard negatives
    uniformity: float | None = None  # of the held-out anchors, see `uniformity`; None for fewer than two
    texts_cut: int = 0  # distinct texts that were longer than the embedder reads
    retrieval: dict[str, RetrievalScores] = field(default_factory=dict)  # by set, where queries look for documents

    @property
    def by_set(self) -> dict[str, float]:
        """The score of every set: Spearman x 100, or nDCG@10 x 100 where documents are looked for."""
        return {name: found.means[HEADLINE] for name, found in self.retrieval.items()} or self.scores

    @property
    def by_query(self) -> Arrays:
        """nDCG@10 of every query (queries,), from 0 to 1, by set; empty where pairs are scored."""
        return {name: found.measures[HEADLINE] for name, found in self.retrieval.items()}

    @property
    def headline(self) -> float:
        """The mean over the sets of either; NaN without sets."""
        return float(np.mean(list(self.by_set.values()))) if self.by_set else float("nan")

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
        return float(np.mean(self.positives > self.negatives)) if len(self.negatives) else None

    @property
    def alignment(self) -> float | None:
        """Mean squared distance between unit vectors of an anchor and its positive, lower is better; None without.

        Source: Wang and Isola 2020, arXiv 2005.10242.
        """
        return float(np.mean(2 - 2 * self.positives)) if len(self.positives) else None

    def record(self) -> dict[str, Any]:
        """The scores as plain data, without the cosines."""
        found = {name: scores.record() for name, scores in self.retrieval.items()}
        return {
            **({"retrieval": found} if found else {}),
            "mean": self.headline if self.scores or self.retrieval else None,
            "standard_deviation": self.deviation if self.scores else None,
            "sets": {name: {"spearman": self.scores[name], "pairs": len(self.cosines[name])} for name in self.scores},
            "triplet_accuracy": self.triplet_accuracy,
            "held_out_triplets": len(self.positives),
            "alignment": self.alignment,
            "uniformity": self.uniformity,
            "texts_cut": self.texts_cut,
        }


def evaluate(
    embedder: Encoder,
    sets: dict[str, list[ScoredPair]],
    triplets: Sequence[Triplet] = (),
    *,
    progress: str | None = None,
) -> Evaluation:
    """Score an embedder; every distinct text of all sets together is encoded once under a prompt.

    Of triplets, anchors are queries and the others documents.

    Args:
        embedder: under the prompt that evaluation is to use.
        sets: scored pairs by the name of their set.
        triplets: held-out triplets; those without a hard negative do not count.
        progress: caption of a progress bar, or None.

    Raises:
        UserError: if a set cannot be scored: fewer than two pairs, constant scores, constant cosines, or a vector that
            is not finite.
    """
    complete = [row for row in triplets if row.negatives]
    texts = {
        Role.text: [text for pairs in sets.values() for pair in pairs for text in (pair.sentence1, pair.sentence2)],
        Role.query: [row.anchor for row in complete],
        Role.document: [text for row in complete for text in (row.positive, row.negatives[0])],
    }
    vectors = _vectors_by_role(embedder, texts, progress)

    def vectors_of(texts: Iterable[str], role: Role) -> np.ndarray:
        found, row_of = vectors[role]
        return found[[row_of[text] for text in texts]]

    def cosines_of(rows: Sequence[tuple], *roles: Role) -> np.ndarray:  # between the first two texts of each row
        left, right = (vectors_of((row[side] for row in rows), role) for side, role in enumerate(roles))
        return np.einsum("nd,nd->n", left, right)

    cosines = {name: cosines_of(pairs, Role.text, Role.text) for name, pairs in sets.items()}
    return Evaluation(
        scores={name: spearman(cosines[name], [pair.score for pair in pairs], name) for name, pairs in sets.items()},
        cosines=cosines,
        positives=cosines_of(complete, Role.query, Role.document),
        negatives=cosines_of([(row.anchor, row.negatives[0]) for row in complete], Role.query, Role.document),
        uniformity=uniformity(vectors_of(dict.fromkeys(row.anchor for row in complete), Role.query)),
    )


def _vectors_by_role(
    embedder: Encoder, texts: dict[Role, list[str]], progress: str | None
) -> dict[Role, tuple[np.ndarray, dict[str, int]]]:
    """Vectors of the distinct texts of every role, and their rows; roles of one prompt are encoded together."""
    encoders = {role: embedder.in_role(role) for role in texts}
    found: dict[Role, tuple[np.ndarray, dict[str, int]]] = {}
    for encoder in {id(encoder): encoder for encoder in encoders.values()}.values():
        roles = [role for role in texts if encoders[role] is encoder]
        distinct = list(dict.fromkeys(text for role in roles for text in texts[role]))
        vectors = encoder.encode(distinct, progress=progress)
        _require_finite(vectors, distinct)
        found |= dict.fromkeys(roles, (vectors, {text: row for row, text in enumerate(distinct)}))
    return found


def _require_finite(vectors: np.ndarray, texts: Sequence[str]) -> None:
    """Refuse vectors that are no numbers: nothing that is computed of them says anything."""
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=tuple(range(1, vectors.ndim))))
    if len(broken):
        raise UserError(
            f"the vectors of {len(broken)} of {len(texts)} texts are not finite, the first that of "
            f"{shorten(texts[broken[0]], 60)!r}: the model's weights are broken, or its numbers too large for the "
            "precision it runs in (train.precision=fp32)"
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
    count, total = len(vectors), 0.0
    for start in range(0, count, _UNIFORMITY_BLOCK):  # all cosines at once would take count^2 numbers
        block = vectors[start : start + _UNIFORMITY_BLOCK]
        within = np.exp(-4.0 + 4.0 * (block @ block.T).astype(np.float64))
        total += float(np.triu(within, k=1).sum())
        for other in range(start + len(block), count, _UNIFORMITY_BLOCK):
            cosines = block @ vectors[other : other + _UNIFORMITY_BLOCK].T
            total += float(np.exp(-4.0 + 4.0 * cosines.astype(np.float64)).sum())
    return float(np.log(total / (count * (count - 1) / 2)))


def spearman(cosines: np.ndarray, scores: Sequence[float], name: str) -> float:
    """Spearman rank correlation x 100 of cosines with human scores, over all pairs of a set at once, as in MTEB.

    Raises:
        UserError: naming the set, if the correlation is undefined.
    """
    from scipy.stats import spearmanr  # here, as its import would keep the first step waiting for a second

    require_rankable(scores, name)
    if not np.isfinite(cosines).all():
        raise UserError(
            f"{int(np.sum(~np.isfinite(cosines)))} cosines of the set {name} are not finite: nothing to rank"
        )
    if float(np.ptp(cosines)) <= ROUNDING:
        raise UserError(
            f"the embedding has collapsed: all cosines of the set {name} are equal up to rounding "
            f"({float(cosines.min()):.7f} to {float(cosines.max()):.7f}), so that they order nothing. After training: "
            "lower lr or raise loss.temperature. Before it: another model.pooling or model.layer may tell texts apart"
        )
    return float(spearmanr(cosines, scores).statistic) * 100


def save_evaluation(folder: Path, evaluation: Evaluation, contract: Contract, *, data: str, seconds: float) -> None:
    """Write an evaluation, the contract it was made under and its duration; METRICS comes last.

    Args:
        folder: of the evaluation. contract: with the prompts that were used. data: digest of what was scored, whatever
            the prompt. seconds: that it took.
    """
    by_set = {f"set/{name}": cosines for name, cosines in evaluation.cosines.items()}
    write_arrays(folder / COSINES, {"positives": evaluation.positives, "negatives": evaluation.negatives, **by_set})
    if evaluation.retrieval:
        save_retrieval(folder, evaluation.retrieval)
    facts = {"contract": asdict(contract), "data": data, "seconds": round(seconds, 1)}
    write_record(folder / METRICS, evaluation.record() | facts)


def load_evaluation(folder: Path) -> Evaluation | None:
    """Read what `save_evaluation` wrote; None if METRICS is not there.

    Raises:
        UserError: if a file is damaged, or the two are not of one evaluation.
    """
    if not (folder / METRICS).exists():
        return None
    record = read_json(folder / METRICS)
    arrays = read_arrays(folder / COSINES)
    # The order of the sets is that of the arrays: the keys in METRICS are sorted.
    cosines = {name.removeprefix("set/"): array for name, array in arrays.items() if name.startswith("set/")}
    try:
        return Evaluation(
            scores={name: record["sets"][name]["spearman"] for name in cosines},
            cosines=cosines,
            positives=arrays["positives"],
            negatives=arrays["negatives"],
            uniformity=record.get("uniformity"),
            texts_cut=record.get("texts_cut", 0),
            retrieval=load_retrieval(folder),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / METRICS} does not belong to {folder / COSINES}; remove the folder and run again to make it anew"
        ) from error
