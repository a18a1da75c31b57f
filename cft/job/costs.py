"""What a training took: out of the records in its folder."""

from pathlib import Path

from cft.job.run_folder import Cost, RunFolder

__all__ = ["Cost", "training_cost"]


def training_cost(folder: Path, *, batch_size: int, stop_at: int) -> Cost | None:
    """What the steps up to `stop_at` took; None where the training left no history."""
    return RunFolder(folder).cost(batch_size=batch_size, stop_at=stop_at)
