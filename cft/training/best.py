"""The best step of a training by its development score, and when to give up waiting for a better one."""

import math
from collections.abc import Mapping, Sequence

import torch

from cft.evaluation.retrieval import HEADLINE


def development_score(row: dict) -> float | None:
    """The score of a history's row: of scored pairs, else of the documents found, else triplets in order, x 100."""
    if row["event"] != "dev":
        return None
    accuracy = row.get("accuracy")
    scores = (row.get("spearman"), row.get(HEADLINE), None if accuracy is None else 100 * accuracy)
    return next((score for score in scores if score is not None), None)


def scored_steps(history: Sequence[dict]) -> list[tuple[int, float]]:
    """Steps and their development scores, from the first that moved a weight on: a warm-up begins at a rate of 0."""
    steps = [row for row in history if row["event"] == "step"]
    moved = next((row["step"] for row in steps if row["lr"]), math.inf if steps else 0)
    scores = ((row["step"], development_score(row)) for row in history)
    return [(step, score) for step, score in scores if score is not None and step >= moved]


def best_step(history: Sequence[dict]) -> int | None:
    """The step with the best development score, the first of equal ones; None without scores."""
    scores = scored_steps(history)
    return max(scores, key=lambda each: each[1])[0] if scores else None


def is_over(history: Sequence[dict], patience: int | None) -> bool:
    """Whether the last `patience` scores, at least, are no better than one before them; None never gives up."""
    scores = [score for _, score in scored_steps(history)]
    return patience is not None and len(scores) - scores.index(max(scores)) > patience if scores else False


class BestWeights:
    """A copy of the trained weights as they were at the best step so far."""

    def __init__(self, kept: dict[str, torch.Tensor] | None = None) -> None:
        """Begin with a copy out of a checkpoint, or with none."""
        self.kept = kept or {}

    def see(self, history: Sequence[dict], weights: Mapping[str, torch.nn.Parameter]) -> None:
        """Take a copy of the weights if the history's last row has the best score."""
        if best_step(history) == history[-1]["step"]:
            self.kept = {name: weight.detach().cpu().clone() for name, weight in weights.items()}

    def put_back(self, weights: Mapping[str, torch.nn.Parameter]) -> None:
        """Give the weights the values that they had at the best step."""
        for name, kept in self.kept.items():
            weights[name].data.copy_(kept)
