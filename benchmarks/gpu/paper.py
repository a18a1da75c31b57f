"""The paper's training by cft's own command: 1,000 steps of 60 NLI triplets, the nine sets before and after."""

import json
import math
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import timed
from training_step import Where, ours

from cft.system.files import read_json
from gpu.kit import Kit, Note

_ROOT = Path(__file__).resolve().parents[2]
_STEPS, _BATCH = 1000, 60
# Of the time that is left: loading, scoring twice, and pictures; then what a step takes besides its passes.
_BESIDE, _MORE = 60.0, 1.3
_TINY = ["train.batch_size=8", "train.checkpoint_every=2", "data.holdout=0"]


def run(kit: Kit, note: Note) -> dict[str, Any]:
    """Steps that were done, their time, and scores before and after.

    Raises:
        RuntimeError: if the command fails; the stage's log has what it said.
    """
    if kit.triplets is None and not kit.tiny:
        return {"table": [("left out", "it wants triplets: TRIPLETS=FILE")]}
    steps, trial = (4, None) if kit.tiny else _affordable(kit)
    words = [*kit.overrides, *_data(kit), f"train.steps={steps}", "logger=none", f"outputs={kit.out / 'paper'}"]
    words += _TINY if kit.tiny else ["train=paper", "lr=5e-5", "loss=hard_neg", "train.eval_every=0"]
    facts = {"command": ["python", "-m", "cft.run", *words], "steps": steps, "trial_seconds_a_step": trial}
    note(facts)
    began = time.perf_counter()
    status = _here(words) if kit.tiny else _as_user(kit, words, lambda done: note(facts | {"steps_done": done}))
    seconds = time.perf_counter() - began
    if status:
        raise RuntimeError(f"cft.run ended with status {status}; the stage's log says why")
    return _found(kit, words, {"wanted_steps": _STEPS, "seconds": seconds, "trial_seconds_a_step": trial})


def _as_user(kit: Kit, words: list[str], on_steps: Callable[[int], None]) -> int:
    """The command in a process of its own; the steps that it has done are noted meanwhile, as it may be stopped."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, sys.path)])}
    with subprocess.Popen([sys.executable, "-m", "cft.run", *words], cwd=kit.out, env=environment) as process:
        while process.poll() is None:
            time.sleep(1)
            histories = (path.read_text() for path in (kit.out / "paper").glob("*/history.jsonl"))
            on_steps(max((text.count('"step"') // 2 for text in histories), default=0))
        return process.returncode


def _here(words: list[str]) -> int:
    """The command in this process, which is the stage's own: its imports would take longer than tiny shapes do."""
    sys.argv = ["cft.run", *words]
    try:
        runpy.run_module("cft.run", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _data(kit: Kit) -> list[str]:
    """Words that name the data of training and scoring."""
    scored = ["eval=sts", f"eval.folder={Path(kit.sts).resolve()}"] if kit.sts else []
    scored += ["baseline=none"]
    if kit.triplets is None:
        return ["data=docstrings", "data.packages=[peft]", "data.rows=60", "eval=docstrings", "eval.rows=20"]
    return ["data=files", f"data.train={Path(kit.triplets).resolve()}", *scored]


def _affordable(kit: Kit) -> tuple[int, float]:
    """How many of the steps fit into the time that is left, and the seconds of one's passes, by a trial."""
    step, _ = ours(kit.base(), kit.rows(_BATCH), Where(kit.device, bf16=True))
    for _ in range(3):
        step()
    seconds = sorted(timed(step, kit.device) for _ in range(5))[2]
    fit = (kit.left - _BESIDE) / (_MORE * seconds)
    return max(min(_STEPS, math.floor(fit)), 20), seconds


def _found(kit: Kit, words: list[str], facts: dict[str, Any]) -> dict[str, Any]:
    """What the run's folder says."""
    folders = [path for path in (kit.out / "paper").iterdir() if (path / "history.jsonl").exists()]
    folder = max(folders, key=lambda path: (path / "history.jsonl").stat().st_mtime)
    lines = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    rows = [row for row in lines if row["event"] == "step"]
    by_step = sorted(row["seconds"] for row in rows[len(rows) // 10 :])
    facts |= {
        "command": ["python", "-m", "cft.run", *words],
        "steps": len(rows),
        "median_step_seconds": by_step[len(by_step) // 2],
        "training_seconds": sum(row["seconds"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "scores": next(iter(read_json(folder / "metrics.json").values())),
    }
    means = {when: facts["scores"].get(when, {}).get("mean") for when in ("before", "after")}
    facts["means"] = means
    table = [
        ("what", "value"),
        ("steps, of 1,000", f"{len(rows):,}"),
        ("a step, s (median)", f"{facts['median_step_seconds']:.4f}"),
        ("training, s", f"{facts['training_seconds']:.1f}"),
        ("the whole command, s", f"{facts['seconds']:.1f}"),
        *((f"mean score {when}", f"{mean:.2f}") for when, mean in means.items() if mean is not None),
    ]
    return facts | {"table": table}
