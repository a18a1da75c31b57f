"""How time and memory grow with the size of the batch, the length of the texts and the size of the data.

    python benchmarks/growth.py

Each quantity is measured at sizes that double, and shown relative to the smallest: a straight line of slope 1 is what
the model itself demands, for each token has to go through it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from peers import medians
from publish import Found, publish, save_png

from cft.config.compose import compose_config
from cft.config.schema import DataSettings, DataSource, LoraSettings, LossSettings
from cft.data.records import Triplet
from cft.data.training_data import load_training_data
from cft.job import figures
from cft.model.embedder import Embedder
from cft.model.lora import add_lora
from cft.training import memory
from cft.training.contrastive import BatchSetup, contrastive_backward

BATCHES = (4, 8, 16, 32, 64)
LENGTHS = (16, 32, 64, 128, 256)
LENGTH, TRIPLETS = 18, 4  # of a text when the batch grows; of a batch when the texts grow
CHUNK = 1024  # tokens at once, with gradient caching
ROWS = (1_000, 10_000, 100_000, 1_000_000)
CPU = torch.device("cpu")

Curve = dict[int, float]


def words(generator: np.random.Generator, tokens: int) -> str:
    """A text of about so many tokens that shares its beginning with no other."""
    return " ".join(str(number) for number in generator.integers(10, 99, max((tokens - 1) // 3, 1)))


def batch(triplets: int, length: int) -> list[Triplet]:
    """Triplets of random texts."""
    generator = np.random.default_rng(0)
    return [
        Triplet(words(generator, length), words(generator, length), (words(generator, length),))
        for _ in range(triplets)
    ]


def steps(embedder: Embedder, sizes: dict[int, list[Triplet]], chunk: int | None) -> tuple[Curve, Curve]:
    """Seconds and peak bytes of a training step at each size."""

    def step(rows: list[Triplet]) -> Callable[[], None]:
        return lambda: contrastive_backward(embedder, rows, BatchSetup(LossSettings(), chunk_tokens=chunk)) and None

    work = {str(size): step(rows) for size, rows in sizes.items()}
    seconds = {int(size): value for size, value in medians(work, 3).items()}
    return seconds, {size: float(memory.peak_bytes(work[str(size)], CPU)) for size in sizes}


def opening(rows: int) -> dict[str, float]:
    """Seconds and peak bytes of opening a training file of so many rows, the first time and again, in new processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "triplets.jsonl"
        generator = np.random.default_rng(0)
        with path.open("w") as stream:
            for _ in range(rows):
                cells = {name: words(generator, LENGTH) for name in ("sent0", "sent1", "hard_neg")}
                stream.write(json.dumps(cells) + "\n")
        found = {"file": float(path.stat().st_size)}
        for turn in ("first", "again"):
            command = [sys.executable, __file__, "--open", str(path)]
            environment = {"CFT_CACHE": folder, "PYTHONPATH": ":".join(sys.path)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            found |= {f"{turn} seconds": seconds, f"{turn} memory": peak}
        return found


def open_file(path: str) -> tuple[float, float]:
    """Seconds of opening a training file and of reading one batch, and bytes by which the process grew."""
    import pyarrow  # noqa: F401  what every process loads is not the data's cost

    before = most_memory()
    began = time.perf_counter()
    data = load_training_data(DataSettings(name="files", source=DataSource.files, train=path), seed=0)
    [data.triplets[int(row)] for row in np.random.default_rng(0).integers(0, len(data.triplets), 60)]
    return time.perf_counter() - began, most_memory() - before


def most_memory() -> float:
    """Bytes of memory that this process had at its largest; `getrusage` would count its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def slope(curve: Curve) -> float:
    """Exponent of the growth over the upper half of the sizes."""
    sizes = sorted(curve)[len(curve) // 2 - 1 :]
    return float(np.polyfit(np.log(sizes), np.log([curve[size] for size in sizes]), 1)[0])


def relative(curve: Curve) -> Curve:
    """To the smallest size."""
    return {size: value / curve[min(curve)] for size, value in curve.items()}


def draw(panels: dict[str, dict[str, Curve]]) -> None:
    """One panel a quantity that grows, both axes logarithmic."""
    figure, all_axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), layout="constrained")
    colours = [figures.AFTER, figures.CONTRADICTED, figures.ENTAILED, figures.BEFORE]
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        sizes = sorted(next(iter(curves.values())))
        axes.plot(sizes, [size / sizes[0] for size in sizes], color="#d5dbe1", linewidth=5, label="in proportion")
        for colour, (name, curve) in zip(colours, curves.items(), strict=False):
            axes.plot(list(curve), list(curve.values()), "o-", color=colour, markersize=4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(title)
        axes.legend(frameon=False, fontsize=8)
        figures.clean(axes)
    all_axes[0].set_ylabel("relative to the smallest")
    save_png(figure, "growth")


def main() -> None:
    """Measure everything and publish one table and one picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(open_file(arguments.open)))
        return
    config = compose_config([f"model={arguments.model}", "model.max_length=512"])
    base = Embedder.base(config.model)
    embedder = Embedder(add_lora(base.model, LoraSettings(), seed=0), base.backbone, base.contract)
    embedder.model.train()
    whole = steps(embedder, {size: batch(size, LENGTH) for size in BATCHES}, None)
    chunked = steps(embedder, {size: batch(size, LENGTH) for size in BATCHES}, CHUNK)
    long = steps(embedder, {length: batch(TRIPLETS, length) for length in LENGTHS}, None)
    files = {rows: opening(rows) for rows in ROWS}

    def of_files(key: str) -> Curve:
        return {rows: found[key] for rows, found in files.items()}

    curves = {
        f"triplets in a batch (texts of {LENGTH} tokens)": {
            "time of a step": whole[0],
            "memory of a step": whole[1],
            f"time, at most {CHUNK} tokens at once": chunked[0],
            f"memory, at most {CHUNK} tokens at once": chunked[1],
        },
        f"tokens in a text ({TRIPLETS} triplets)": {"time of a step": long[0], "memory of a step": long[1]},
        "rows of a training file": {
            "time, first opening": of_files("first seconds"),
            "time, opened again": of_files("again seconds"),
        },
    }
    table: list[tuple[str, ...]] = [("what grows", "measured", "from", "to", "grows", "exponent")]
    for title, by_name in curves.items():
        for name, curve in by_name.items():
            low, high = min(curve), max(curve)
            table.append(
                (title, name, f"{low:,}", f"{high:,}", f"{curve[high] / curve[low]:,.1f}x", f"{slope(curve):.2f}")
            )
    last = files[ROWS[-1]]
    sizes = ", ".join(
        f"{found['first memory'] / 2**20:.0f} and {found['again memory'] / 2**20:.0f} MiB for {rows:,} rows"
        for rows, found in files.items()
    )
    draw({title: {name: relative(curve) for name, curve in by_name.items()} for title, by_name in curves.items()})
    publish(
        "growth",
        Found(
            title="How cost grows",
            command="python benchmarks/growth.py",
            table=table,
            notes=[
                f"{config.model.name}, LoRA of the paper, float32. The exponent is fitted to the upper sizes. With "
                "chunks (gradient caching) memory stays where a chunk has it, but for the vectors.",
                "Memory that a process grows by when it opens a training file, the first time (converting it) and "
                f"again: {sizes}. A file of {ROWS[-1]:,} rows ({last['file'] / 2**20:.0f} MiB) is open again in "
                f"{last['again seconds'] / last['first seconds']:.2f} of the first time: its content is hashed, not "
                "parsed.",
            ],
        ),
    )


if __name__ == "__main__":
    main()
