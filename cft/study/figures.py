"""Pictures of a study: scores with intervals by set and by cell, over learning rates, over steps, and on the sphere."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cft.evaluation.bootstrap import MEAN
from cft.job import figures
from cft.study.findings import CellFinding, Findings

COLOURS = ["#0b6e99", "#c8553d", "#2a9d5c", "#8a5fb0", "#b8860b", "#5b6770", "#d1478b", "#3aa6a0"]
PAPER: dict[str, Any] = {"marker": "D", "facecolors": "white", "edgecolors": "#5b6770", "s": 28, "zorder": 3}
_SCORE = "Spearman correlation × 100"
_HERE = "here, with 95% interval"


def figures_for(findings: Findings) -> dict[str, Figure]:
    """The pictures that a study's layout asks for, by name; none while nothing is done."""
    done = findings.done
    if not done:
        return {}
    layout = findings.study.experiment.layout
    found: dict[str, Figure] = {}
    if layout == "curve":
        found["curve"] = curve(findings)
    elif layout == "time":
        found["time"] = time(findings)
    elif layout == "sets":
        found["sets"] = by_set(findings)
        tuned = [cell for cell in done if cell.triplets is not None and cell.triplets_before is not None]
        if tuned:
            found["sphere"] = sphere(tuned)
        for number, cell in enumerate(tuned, start=1):
            before, after = cell.triplets_before, cell.triplets
            assert before is not None and after is not None
            if len(before.negatives):
                found[f"similarities-{number}"] = figures.similarities(before, after, of=cell.cell.name)
    elif len({cell.lr for cell in done}) >= 3:
        found["rates"] = rates(findings)
    else:
        found["overall"] = overall(findings)
    return found


def by_set(findings: Findings) -> Figure:
    """A row a test set: every cell's score with its interval, and the paper's."""
    done = findings.done
    names = [*findings.sets, *([MEAN] if len(findings.sets) > 1 else [])]
    figure, axes = plt.subplots(figsize=(7.5, 1.4 + 0.5 * len(names)), layout="constrained")
    heights = np.arange(len(names))[::-1].astype(float)
    offsets = _offsets(len(done))
    for place, cell in enumerate(done):
        _intervals(axes, cell, names, heights - offsets[place], COLOURS[place % len(COLOURS)], cell.cell.name)
        paper = [_paper(cell, name) for name in names]
        at = [(value, heights[i] - offsets[place]) for i, value in enumerate(paper) if value is not None]
        if at:
            axes.scatter(*zip(*at, strict=True), **PAPER)
    _paper_legend(axes, done)
    axes.set_yticks(heights, ["mean over sets" if name == MEAN else name for name in names])
    axes.set_xlabel(_SCORE)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figures.clean(axes)
    return figure


def overall(findings: Findings) -> Figure:
    """A row a cell: its mean over the sets with its interval, and the paper's."""
    done = findings.done
    figure, axes = plt.subplots(figsize=(7.5, 1.4 + 0.42 * len(done)), layout="constrained")
    heights = np.arange(len(done))[::-1].astype(float)
    for place, cell in enumerate(done):
        _intervals(axes, cell, [MEAN], heights[place : place + 1], COLOURS[0], "" if place else _HERE)
        paper = _paper(cell, MEAN)
        if paper is not None:
            axes.scatter([paper], [heights[place]], **PAPER)
    _paper_legend(axes, done)
    axes.set_yticks(heights, [cell.cell.name for cell in done])
    axes.set_ylim(-0.6, len(done) - 0.4)
    axes.set_xlabel(f"mean over the test sets, {_SCORE}")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figures.clean(axes)
    return figure


def rates(findings: Findings) -> Figure:
    """Mean over the sets against the learning rate."""
    done = sorted(findings.done, key=lambda cell: cell.lr)
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    _line(axes, [cell.lr for cell in done], done, COLOURS[0])
    known = [(cell.lr, _paper(cell, MEAN)) for cell in done if _paper(cell, MEAN) is not None]
    if known:
        axes.scatter(*zip(*known, strict=True), label="paper", **PAPER)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate at its peak")
    axes.set_ylabel("mean over the test sets")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figures.clean(axes)
    return figure


def curve(findings: Findings) -> Figure:
    """Mean over the sets against the step, the development score of the same training, and the paper's claim."""
    done = sorted(findings.done, key=lambda cell: cell.step or 0)
    steps = [cell.step or 0 for cell in done]
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    _line(axes, steps, done, COLOURS[0])
    trained = [cell.training for cell in done if cell.training is not None]
    watched = figures.development(trained[-1]) if trained else []
    if watched:
        axes.plot(*zip(*watched, strict=True), ".-", color=COLOURS[2], linewidth=1.2, label="development pairs")
    known = [(cell.step, _paper(cell, MEAN)) for cell in done if _paper(cell, MEAN) is not None]
    if known:
        axes.scatter(*zip(*known, strict=True), label="paper", **PAPER)
    start = done[0].intervals[MEAN].value if steps[0] == 0 else None
    if known and start is not None:  # a study of one's own has nothing to do with the claim
        axes.axhline(start + 50, color="#5b6770", linewidth=0.8, linestyle=":")
        axes.annotate(
            "paper's claim: +50 points within 200 steps",
            (0.01, start + 50),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=8,
            color="#5b6770",
        )
        if max(steps) >= 200:
            axes.axvline(200, color="#5b6770", linewidth=0.8, linestyle=":")
    sizes = {cost.triplets // cell.step for cell in done if cell.step for cost in cell.costs}
    axes.set_xlabel(f"training step, of {min(sizes)} triplets" if len(sizes) == 1 else "training step")
    axes.set_ylabel("mean over the test sets")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figures.clean(axes)
    return figure


def time(findings: Findings) -> Figure:
    """Mean over the sets against the minutes of training, a line a training; cells of a line differ in their step."""
    lines: dict[str, list[tuple[float, CellFinding]]] = {}
    for cell in findings.done:
        minutes = float(np.mean([cost.seconds for cost in cell.costs])) / 60 if cell.costs else 0.0
        lines.setdefault(cell.cell.name.partition(", step ")[0], []).append((minutes, cell))
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for place, (name, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point[0])
        at = [minutes for minutes, _ in points]
        _line(axes, at, [cell for _, cell in points], COLOURS[place % len(COLOURS)], name)
    devices = dict.fromkeys(cost.device for cell in findings.done for cost in cell.costs)
    axes.set_xlabel(f"minutes of training ({'; '.join(devices)})" if devices else "minutes of training")
    axes.set_ylabel("mean over the test sets")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figures.clean(axes)
    return figure


def sphere(tuned: Sequence[CellFinding]) -> Figure:
    """Uniformity and alignment of held-out triplets, before and after training; both are better when lower."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for place, cell in enumerate(tuned):
        before, after = cell.triplets_before, cell.triplets
        assert before is not None and after is not None
        if before.uniformity is None or after.uniformity is None or before.alignment is None or after.alignment is None:
            continue
        colour = COLOURS[place % len(COLOURS)]
        start, end = (before.uniformity, before.alignment), (after.uniformity, after.alignment)
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.2})
        axes.scatter(*start, s=40, facecolors="white", edgecolors=colour, zorder=2)
        axes.scatter(*end, s=40, color=colour, zorder=2, label=cell.cell.name)
    axes.scatter([], [], s=40, facecolors="white", edgecolors="#5b6770", label="before training")
    axes.margins(0.15)
    axes.set_xlabel("uniformity (lower: anchors fill the sphere more evenly)")
    axes.set_ylabel("alignment (lower: positives nearer)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figures.clean(axes)
    return figure


def _line(axes: Axes, at: Sequence[float], cells: Sequence[CellFinding], colour: str, label: str = _HERE) -> None:
    """Means over the sets with their intervals, joined."""
    intervals = [cell.intervals[MEAN] for cell in cells]
    axes.fill_between(
        at, [i.low for i in intervals], [i.high for i in intervals], color=colour, alpha=0.18, linewidth=0
    )
    axes.plot(at, [i.value for i in intervals], "o-", color=colour, label=label)


def _intervals(
    axes: Axes, cell: CellFinding, names: Sequence[str], heights: np.ndarray, colour: str, label: str
) -> None:
    """A row each: a dot and its interval; an empty label stays out of the legend."""
    found = [cell.intervals[name] for name in names]
    axes.hlines(heights, [i.low for i in found], [i.high for i in found], color=colour, linewidth=1.6)
    axes.scatter([i.value for i in found], heights, s=34, color=colour, zorder=2, label=label or None)


def _offsets(cells: int) -> np.ndarray:
    return np.linspace(-0.22, 0.22, cells) if cells > 1 else np.zeros(1)


def _paper(cell: CellFinding, name: str) -> float | None:
    """The paper's number for a set or the mean."""
    value = cell.cell.paper.get("overall" if name == MEAN else name)
    return value[0] if isinstance(value, list) else value


def _paper_legend(axes: Axes, cells: Sequence[CellFinding]) -> None:
    if any(cell.cell.paper for cell in cells):
        axes.scatter([], [], label="paper", **{key: value for key, value in PAPER.items() if key != "zorder"})
