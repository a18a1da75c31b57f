"""Embedders trained for a moment, and exported as a user would."""

from pathlib import Path

from jobs import CAPTIONS, composed

from cft.deploy import export
from cft.export import COMMAND
from cft.job import runner

QUICK = "logger=none train.steps=3 train.batch_size=8 data.rows=60 data.holdout=0 eval.rows=10 train.eval_every=0"


def train(tmp_path: Path, *overrides: str) -> Path:
    """A finished embedder's folder; the learning rate is high, so that the adapter matters."""
    runner.run(composed(*CAPTIONS, *QUICK.split(), "lr=0.05", f"outputs={tmp_path / 'outputs'}", *overrides))
    (folder,) = (path.parent for path in (tmp_path / "outputs").glob("*/contract.json"))
    return folder


def exported(folder: Path, tmp_path: Path, *more: str, name: str = "exported") -> tuple[Path, str]:
    """What was written, and what was said of it."""
    target = tmp_path / name
    said = export.export(COMMAND.read([f"run={folder}", *more, str(target)]))
    return target, said
