"""What a training took: out of the records in its folder."""

from dataclasses import dataclass
from pathlib import Path

from cft.job import figures
from cft.job.plan import FINISHED
from cft.system.files import read_json


@dataclass(frozen=True)
class Cost:
    """Of the first steps of a training, or of all.

    triplets: that it saw. tokens: in their texts, prompts included. nodes: tokens that went through the model in their
    stead. seconds: of the steps alone. peak_memory: bytes that the whole training held at most, if that is known.
    device: that it ran on.
    """

    triplets: int
    tokens: int
    nodes: int
    seconds: float
    peak_memory: int | None
    device: str


def training_cost(folder: Path, *, batch_size: int, stop_at: int) -> Cost | None:
    """Read what the steps up to `stop_at` took; None where the training left no history.

    Args:
        folder: of the training. batch_size: triplets a step.
    """
    steps = [row for row in figures.history(folder) if row["event"] == "step" and row["step"] <= stop_at]
    if not steps:
        return None
    ran_on = read_json(folder / "environment.json")
    finished = read_json(folder / FINISHED) if (folder / FINISHED).exists() else {}
    threads = f", {ran_on['threads']} threads" if ran_on["device"].endswith("CPU") else ""
    return Cost(
        triplets=batch_size * len(steps),
        tokens=sum(row["tokens"] for row in steps),
        nodes=sum(row["nodes"] for row in steps),
        seconds=sum(row["seconds"] for row in steps),
        peak_memory=finished.get("peak_memory"),
        device=f"{ran_on['device']}{threads}",
    )
