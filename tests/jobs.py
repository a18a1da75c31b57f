"""Jobs of tiny models, run as a user would and looked at from outside."""

import json
import re
from pathlib import Path

from cft.config.compose import compose_job
from cft.config.schema import Config


def composed(*overrides: str) -> Config:
    """A configuration. Tests differ most in the folder, so that all else is composed once."""
    folders = [word for word in overrides if re.fullmatch(r"outputs=[\w./-]+", word)]
    config = compose_job([word for word in overrides if word not in folders])
    for word in folders:
        config.outputs = word.partition("=")[2]
    return config


# Development pairs of scenes: making and embedding 200 of them would take longer than the training of a tiny job.
DEV_PAIRS = 40

QUICK = [
    "model=tiny",
    "logger=none",
    "train.steps=6",
    "train.batch_size=8",
    "train.eval_every=3",
    "train.checkpoint_every=2",
    "data.rows=200",
    "data.holdout=20",
    "eval.pairs=40",
    "lora.dropout=0.1",
    "baseline=none",
]

# Pairs of one's own, judged by the documents that held-out ones find.
ROWS = ["data=files", "data.negative_columns=[]", "loss=in_batch", "eval=rows", "lr=5e-3", "data.holdout=12"]


def pairs_file(folder, count: int = 120) -> str:
    path = folder / "pairs.jsonl"
    rows = [{"sent0": f"what is thing {n}?", "sent1": f"thing {n} is number {n * n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings(folder: Path, *overrides: str):
    return composed(*QUICK, f"outputs={folder}", *overrides)


class Killed(Exception):
    """What ends a job in the middle of its training."""


def run_killed_at(step: int, config: Config) -> None:
    """A job that is ended when it reports a step."""
    import pytest

    from cft.job import runner

    def stop(row: dict) -> None:
        if row["event"] == "step" and row["step"] == step:
            raise Killed

    with pytest.raises(Killed):
        runner.run(config, on_row=stop)


def run_folder(outputs: Path) -> Path:
    (found,) = (path for path in outputs.iterdir() if path.name.startswith("tiny-"))
    return found


def adapter_bytes(outputs: Path) -> bytes:
    return (run_folder(outputs) / "adapter" / "adapter_model.safetensors").read_bytes()


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def scores(outputs: Path) -> dict:
    """The only entry of the run's summary."""
    (entry,) = json.loads((run_folder(outputs) / "metrics.json").read_text()).values()
    return entry
