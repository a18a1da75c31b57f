"""Scores of one embedder on one body of evaluation data, kept in a folder."""

from dataclasses import asdict
from pathlib import Path

from cft.evaluation.scores import Evaluation
from cft.model.contract import Contract
from cft.system.errors import UserError
from cft.system.files import read_arrays, read_json, write_arrays, write_json

METRICS = "metrics.json"
COSINES = "cosines.npz"


def save_evaluation(folder: Path, found: Evaluation, contract: Contract, *, seconds: float) -> None:
    """Keep scores, the cosine of every pair, the contract they were made under and the time; METRICS comes last."""
    by_set = {f"set/{name}": cosines for name, cosines in found.cosines.items()}
    write_arrays(folder / COSINES, {"positives": found.positives, "negatives": found.negatives, **by_set})
    write_json(folder / METRICS, {**found.record(), "contract": asdict(contract), "seconds": round(seconds, 1)})


def load_evaluation(folder: Path) -> Evaluation | None:
    """What `write` kept; None if it did not get to its end."""
    if not (folder / METRICS).exists():
        return None
    record = read_json(folder / METRICS)
    arrays = read_arrays(folder / COSINES)
    # JSON is written with its keys sorted; the arrays keep the order that the sets were asked for in
    names = [name.removeprefix("set/") for name in arrays if name.startswith("set/")]
    try:
        return Evaluation(
            scores={name: record["sets"][name]["spearman"] for name in names},
            cosines={name: arrays[f"set/{name}"] for name in names},
            positives=arrays["positives"],
            negatives=arrays["negatives"],
            uniformity=record.get("uniformity"),
        )
    except (KeyError, TypeError) as error:  # of the arrays, or of an object that is none
        raise UserError(
            f"{folder / METRICS} does not belong to {folder / COSINES}; remove the folder and run again to make it anew"
        ) from error
