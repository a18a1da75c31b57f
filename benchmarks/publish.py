"""What benchmarks found, kept as JSON in docs/benchmarks/ and shown as one page with a picture.

python benchmarks/publish.py      # docs/benchmarks.md and docs/benchmarks/ratios.png, out of what is kept
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cft.job import figures
from cft.system.environment import processor
from cft.system.files import read_json, write_json, write_text
from cft.system.tables import as_markdown, as_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
ORDER = ("training_step", "fused", "attention", "encoding", "bfloat16", "bootstrap", "growth")


@dataclass(frozen=True)
class Comparison:
    """One ratio. what: that was timed. against: whom. ratio: above 1 is in favour of cft. wanted: the aim, or None.

    short: why the ratio is below the aim, if it is.
    """

    what: str
    against: str
    ratio: float
    wanted: float | None = None
    short: str = ""


@dataclass(frozen=True)
class Found:
    """One benchmark's outcome. table: header and rows. notes: lines under the table."""

    title: str
    command: str
    table: list[tuple[str, ...]]
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def publish(name: str, found: Found, precision: str = "float32") -> None:
    """Print a benchmark's outcome, keep it and bring the page up to date."""
    print(f"\n{found.title}\n\n{as_text(found.table)}\n")
    for note in found.notes:
        print(note)
    for one in found.comparisons:
        print(f"{one.what}: {one.ratio:.2f}x {one.against}" + (f" (wanted {one.wanted:g})" if one.wanted else ""))
    (DOCS / "benchmarks").mkdir(exist_ok=True)
    write_json(DOCS / "benchmarks" / f"{name}.json", {**asdict(found), "machine": machine(precision)})
    write_page()


def machine(precision: str) -> str:
    """What the numbers depend on, in a line, without the machine's name."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    version = torch.__version__.partition("+")[0]
    return f"{torch.get_num_threads()} threads, {processor()}{gpu}, {precision}, torch {version}"


def write_page() -> None:
    """docs/benchmarks.md and its picture, of whatever is kept."""
    kept = _kept()
    write_text(DOCS / "benchmarks.md", page(kept))
    _draw(_comparisons(kept))


def _kept() -> dict[str, dict]:
    kept = {path.stem: read_json(path) for path in (DOCS / "benchmarks").glob("*.json")}
    return {name: kept[name] for name in (*ORDER, *sorted(kept.keys() - set(ORDER))) if name in kept}


def _comparisons(kept: dict[str, dict]) -> list[Comparison]:
    return [Comparison(**one) for found in kept.values() for one in found["comparisons"]]


def page(kept: dict[str, dict] | None = None) -> str:
    """The page of what is kept."""
    kept = _kept() if kept is None else kept
    every = _comparisons(kept)
    text = [
        "# Benchmarks",
        "Written by `make bench` (or the single commands below). Both sides run in one go, on the same texts, weights "
        "and loss, after their results were compared; a ratio above 1 is in favour of cft. There are no times of a CPU "
        "here: they say more of the machine than of the code.",
        as_markdown([("what", "against", "ratio", "aim", "if short, why"), *(_row(one) for one in every)]),
        "![ratios](benchmarks/ratios.png)",
    ]
    for name, found in kept.items():
        text += [f"## {found['title']}", f"    {found['command']}", as_markdown(list(map(tuple, found["table"])))]
        text += [*found["notes"], f"({found['machine']})"]
        text += [f"![{name}](benchmarks/{name}.png)"] if (DOCS / "benchmarks" / f"{name}.png").exists() else []
    return "\n\n".join(text) + "\n"


def _row(one: Comparison) -> tuple[str, ...]:
    aim = f"{one.wanted:g}" if one.wanted else ""
    return one.what, one.against, f"{one.ratio:.2f}", aim, one.short if one.wanted and one.ratio < one.wanted else ""


def _draw(every: list[Comparison]) -> None:
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(every)), layout="constrained")
    heights = list(range(len(every)))[::-1]
    axes.barh(heights, [one.ratio for one in every], height=0.55, color=figures.AFTER)
    for height, one in zip(heights, every, strict=True):
        axes.annotate(f"{one.ratio:.2f}", (one.ratio, height), xytext=(4, -3.5), textcoords="offset points", fontsize=9)
        if one.wanted:
            axes.plot([one.wanted] * 2, [height - 0.35, height + 0.35], color=figures.CONTRADICTED, linewidth=2)
    axes.plot([], [], color=figures.CONTRADICTED, linewidth=2, label="aim")
    axes.axvline(1, color=figures.BEFORE, linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(heights, [f"{one.what}\nagainst {one.against}" for one in every], fontsize=8)
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.set_xlabel("times as fast, or as small (log scale)")
    figure.legend(loc="outside upper right", frameon=False)
    figures.clean(axes)
    save_png(figure, "ratios")


def save_png(figure: Figure, name: str) -> None:
    """Keep a figure beside the numbers, as a PNG alone."""
    for path in figures.save(figure, DOCS / "benchmarks", name):
        if path.suffix != ".png":
            path.unlink()


if __name__ == "__main__":
    write_page()
