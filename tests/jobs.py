"""Jobs of tiny models, run as a user would and looked at from outside."""

import json
import re
from pathlib import Path

import captions

from cft.config.compose import compose_job
from cft.config.schema import Config


def composed(*overrides: str) -> Config:
    """A configuration. Tests differ most in the folder, so that all else is composed once."""
    folders = [word for word in overrides if re.fullmatch(r"outputs=[\w./-]+", word)]
    config = compose_job([word for word in overrides if word not in folders])
    for word in folders:
        config.outputs = word.partition("=")[2]
    return config


# What a job is scored by, and what it is trained on and scored by.
SCORED = ["eval=pairs", f"eval.file={captions.PAIRS}", "eval.name=captions"]
TRIPLETS = ["data=files", f"data.train={captions.TRIPLETS}", "data.name=captions", "train=paper"]
CAPTIONS = [*TRIPLETS, "lr=5e-4", "baseline=none", *SCORED]
DEV = f"data.dev={captions.DEV}"

BRIEF = [
    "model=tiny",
    "logger=none",
    "baseline=none",
    "train.steps=6",
    "train.batch_size=8",
    "train.eval_every=3",
    "train.checkpoint_every=2",
    "data.rows=200",
    "data.holdout=20",
    "lora.dropout=0.1",
]

# Pairs of one's own, judged by the documents that held-out ones find.
ROWS = ["data=files", "data.negative_columns=[]", "loss=in_batch", "eval=rows", "lr=5e-3", "data.holdout=12"]


def pairs_file(folder, count: int = 120) -> str:
    path = folder / "pairs.jsonl"
    rows = [{"sent0": f"what is thing {n}?", "sent1": f"thing {n} is number {n * n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings(folder: Path, *overrides: str):
    return composed(*quick(*overrides), f"outputs={folder}", *overrides)


def quick(*overrides: str, job: list[str] = BRIEF) -> list[str]:
    """A brief job's settings but for what the overrides choose: of captions, if they name no data or evaluation."""
    chosen = {word.partition("=")[0] for word in overrides}
    data = [] if "data" in chosen else [*TRIPLETS, "lr=5e-4", DEV]
    scored = [] if chosen & {"data", "eval"} else [*SCORED, "eval.rows=40"]
    return [word for word in (*data, *scored, *job) if word.partition("=")[0] not in chosen]


QUICK = quick()


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
