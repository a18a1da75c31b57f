"""From a command to the end of its first training step: this package, and a bare script on sentence-transformers.

    python benchmarks/first_step.py        # minutes on two cores

Each side is a process of its own, as a person starts one; they take turns. cft's is `cft.run`, which also composes its
configuration, reads the data, checks them, counts memory, and writes its record; once with what the trial at
loading found kept, as in every command but a machine's first, and once without. The script has its rows in memory and
does nothing but import, load, add LoRA and step. The model's files are on the disk on all sides.
"""

import argparse
import csv
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import its_version
from publish import Comparison, Found, publish

from cft.config.compose import compose_model
from cft.model.sources import fetch
from cft.system.files import cache_folder

BATCH = 8
KEPT, TRIED = "cft", "cft, the model tried anew"
ROWS = [f"a man reads book {n}" for n in range(40)]


def script(model: str) -> None:
    """In a child: the bare script's first step; says when it is done."""
    from training_step import theirs

    from cft.data.records import Triplet

    rows = [Triplet(text, text.replace("man", "person"), (text.replace("reads", "burns"),)) for text in ROWS[:BATCH]]
    step, _ = theirs(compose_model(model), rows)
    step()
    print("stepped", flush=True)


def seconds_of_script(model: str) -> float:
    """Seconds until the bare script has made its step."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, __file__, "--child", f"--model={model}"], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "stepped\n", "the script's process has ended; what it wrote stands above"
        seconds = time.perf_counter() - began
        child.kill()
    return seconds


def seconds_of_cft(model: str, folder: Path) -> float:
    """Seconds until `cft.run` has written that its first step is done."""
    rows = folder / "rows.csv"
    lines = [f"{text},{text.replace('man', 'person')},{text.replace('reads', 'burns')}" for text in ROWS]
    rows.write_text("\n".join(["sent0,sent1,hard_neg", *lines]) + "\n")
    outputs = folder / "outputs"
    command = [sys.executable, "-m", "cft.run", f"model={model}", "data=files", f"data.train={rows}", "logger=csv"]
    command += ["baseline=none", "eval=rows", "data.holdout=8", "train=paper", "train.steps=1000", "train.epochs=999"]
    command += [f"train.batch_size={BATCH}", f"outputs={outputs}"]
    began = time.perf_counter()
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True) as child,
    ):
        while not _has_stepped(outputs):
            assert child.poll() is None, (folder / "log").read_text()
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        os.killpg(child.pid, signal.SIGKILL)
    shutil.rmtree(outputs)
    return seconds


def _has_stepped(outputs: Path) -> bool:
    return any(row["event"] == "step" for path in outputs.glob("*/history.csv") for row in csv.DictReader(path.open()))


def main() -> None:
    """Measure the sides in turns and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        script(given.model)
        return
    fetch(compose_model(given.model))
    theirs = its_version()
    times: dict[str, list[float]] = {KEPT: [], TRIED: [], theirs: []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CFT_CACHE"] = str(_cache_beside(Path(folder)))
        for turn in range(given.repeats):
            shutil.rmtree(Path(os.environ["CFT_CACHE"]) / "trials", ignore_errors=True)
            times[TRIED].append(seconds_of_cft(given.model, Path(folder)))
            times[KEPT].append(seconds_of_cft(given.model, Path(folder)))
            times[theirs].append(seconds_of_script(given.model))
            print(f"  turn {turn + 1} of {given.repeats} done", file=sys.stderr)
    found = {name: statistics.median(values) for name, values in times.items()}
    table = [("side", "time, cft's = 1"), *((name, f"{seconds / found[KEPT]:.2f}") for name, seconds in found.items())]
    what = f"the way to the first step of {given.model}"
    publish(
        "first_step",
        Found(
            title="The way to the first step",
            command="python benchmarks/first_step.py",
            table=table,
            comparisons=[
                Comparison(what, f"a bare script on {theirs}", found[theirs] / found[KEPT]),
                Comparison(what, TRIED, found[TRIED] / found[KEPT]),
            ],
            notes=[
                f"Medians of {given.repeats} turns, of processes that begin with the command and end when their "
                f"first step of {BATCH} triplets is done. The script has its rows in memory and neither configuration "
                "nor record; both load the same weights from the disk."
            ],
        ),
    )


def _cache_beside(folder: Path) -> Path:
    """A cache that has the models of the user's, and nothing else."""
    own = folder / "cache"
    own.mkdir()
    for name in ("converted", "wheels"):
        if (cache_folder() / name).is_dir():
            (own / name).symlink_to((cache_folder() / name).resolve())
    return own


if __name__ == "__main__":
    main()
