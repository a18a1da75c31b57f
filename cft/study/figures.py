"""Pictures of a study: scores with intervals by set and by cell, over learning rates, over steps, and on the sphere."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cft.evaluation.bootstrap import MEAN
from cft.evaluation.scores import Evaluation
from cft.job import figures
from cft.study.findings import CellResult, Findings

COLOURS = ["#0b6e99", "#c8553d", "#2a9d5c", "#8a5fb0", "#b8860b", "#5b6770", "#d1478b", "#3aa6a0"]
_MARKERS = ["o", "s", "^", "v", "P", "*"]  # tell those of one colour apart
GREY = "#5b6770"
PAPER: dict[str, Any] = {"marker": "D", "facecolors": "white", "edgecolors": GREY, "s": 28}
_MEANS = "mean over the test sets"
_MEASURED = "here, with 95% interval"


def _unit(findings: Findings) -> str:
    """What scores are, beside an axis."""
    return "nDCG@10 × 100" if findings.of_queries else "Spearman correlation × 100"


def figures_for(findings: Findings) -> dict[str, Figure]:
    """The pictures that a study's layout asks for, by name; none while nothing is done."""
    done, layout = findings.done, findings.study.experiment.layout
    if not done:
        return {}
    if layout == "curve":
        return {"curve": curve(findings)}
    if layout == "time":
        return {"time": time(findings)}
    if layout != "sets":
        return {"rates": rates(findings)} if _are_rates(done) else {"overall": overall(findings)}
    drawn = {"sets": by_set(findings)}
    tuned = [cell for cell in done if cell.triplets and cell.triplets_before]
    if tuned:
        drawn["sphere"] = sphere(tuned)
    for number, cell in enumerate(tuned, start=1):
        assert cell.triplets_before and cell.triplets
        if len(cell.triplets_before.negatives):
            drawn[f"similarities-{number}"] = figures.similarities(cell.triplets_before, cell.triplets, of=cell.name)
    return drawn


def _are_rates(cells: Sequence[CellResult]) -> bool:
    """Whether cells are one training at several rates: an untrained model has none, and two at one differ in more."""
    return len({cell.lr for cell in cells}) == len(cells) >= 3 and all(cell.step for cell in cells)


def by_set(findings: Findings) -> Figure:
    """A row a test set: every cell's score with its interval, and the paper's."""
    done, names = findings.done, findings.rows
    figure, axes = plt.subplots(figsize=(7.5, 1.4 + 0.5 * len(names)), layout="constrained")
    heights = np.arange(len(names))[::-1].astype(float)
    offsets = np.linspace(-0.22, 0.22, len(done)) if len(done) > 1 else np.zeros(1)
    for place, cell in enumerate(done):
        _intervals(axes, cell, names, heights - offsets[place], cell.name, place)
        _papers(axes, [(_paper(cell, name), heights[i] - offsets[place]) for i, name in enumerate(names)])
    _paper_legend(axes, done, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(heights, ["mean over sets" if name == MEAN else name for name in names])
    return _finished(figure, axes, _unit(findings))


def overall(findings: Findings) -> Figure:
    """A row a cell: its mean over the sets with its interval, and the paper's."""
    done = findings.done
    figure, axes = plt.subplots(figsize=(7.5, 1.4 + 0.42 * len(done)), layout="constrained")
    heights = np.arange(len(done))[::-1].astype(float)
    for place, cell in enumerate(done):
        _intervals(axes, cell, [MEAN], heights[place : place + 1], "" if place else _MEASURED)
        _papers(axes, [(_paper(cell, MEAN), heights[place])])
    _paper_legend(axes, done, [MEAN])
    axes.set_yticks(heights, [cell.name for cell in done])
    axes.set_ylim(-0.6, len(done) - 0.4)
    return _finished(figure, axes, f"{_MEANS}, {_unit(findings)}", columns=2)


def rates(findings: Findings) -> Figure:
    """Mean over the sets against the learning rate."""
    done = sorted(findings.done, key=lambda cell: cell.lr)
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    _line(axes, [cell.lr for cell in done], done)
    _papers(axes, [(cell.lr, _paper(cell, MEAN)) for cell in done], label="paper")
    axes.set_xscale("log")
    return _finished(figure, axes, "learning rate at its peak", _MEANS, columns=2)


def curve(findings: Findings) -> Figure:
    """Mean over the sets against the step, the development score of the same training, and the paper's claim."""
    done = sorted(findings.done, key=lambda cell: cell.step or 0)
    steps = [cell.step or 0 for cell in done]
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    _line(axes, steps, done)
    trainings = [cell.training for cell in done if cell.training]
    development = trainings[-1].development_scores() if trainings else []
    if development:
        axes.plot(*zip(*development, strict=True), ".-", color=COLOURS[2], linewidth=1.2, label="development pairs")
    has_paper = _papers(axes, [(cell.step, _paper(cell, MEAN)) for cell in done], label="paper")
    if has_paper and steps[0] == 0:  # a study of one's own has nothing to do with the claim
        _draw_claim(axes, done[0].intervals[MEAN].value + 50, last=max(steps))
    sizes = {cost.triplets // cell.step for cell in done if cell.step for cost in cell.costs}
    x_label = f"training step, of {min(sizes)} triplets" if len(sizes) == 1 else "training step"
    return _finished(figure, axes, x_label, _MEANS)


def _draw_claim(axes: Axes, score: float, *, last: int) -> None:
    axes.axhline(score, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate(
        "paper's claim: +50 points within 200 steps",
        (0.01, score),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=8,
        color=GREY,
    )
    if last >= 200:
        axes.axvline(200, color=GREY, linewidth=0.8, linestyle=":")


def time(findings: Findings) -> Figure:
    """Mean over the sets against the minutes of training, a line a training; cells of a line differ in their step."""
    lines: dict[str, list[tuple[float, CellResult]]] = {}
    for cell in findings.done:
        minutes = float(np.mean([cost.seconds for cost in cell.costs])) / 60 if cell.costs else 0.0
        lines.setdefault(cell.name.partition(", step ")[0], []).append((minutes, cell))
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for place, (name, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point[0])
        minutes_of, cells = zip(*points, strict=True)
        _line(axes, minutes_of, cells, name, place)
    devices = dict.fromkeys(cost.device for cell in findings.done for cost in cell.costs)
    x_label = f"minutes of training ({'; '.join(devices)})" if devices else "minutes of training"
    return _finished(figure, axes, x_label, _MEANS)


def sphere(tuned: Sequence[CellResult]) -> Figure:
    """Uniformity and alignment of held-out triplets, before and after training; both are better when lower."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for place, cell in enumerate(tuned):
        start, end = _on_sphere(cell.triplets_before), _on_sphere(cell.triplets)
        if start is None or end is None:
            continue
        colour, marker = _look(place)
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.2})
        axes.scatter(*start, s=40, marker=marker, facecolors="white", edgecolors=colour, zorder=2)
        axes.scatter(*end, s=40, marker=marker, color=colour, zorder=2, label=cell.name)
    axes.scatter([], [], s=40, facecolors="white", edgecolors=GREY, label="before training")
    axes.margins(0.15)
    x_label, y_label = "uniformity (lower: anchors fill the sphere more evenly)", "alignment (lower: positives nearer)"
    return _finished(figure, axes, x_label, y_label, columns=2)


def _on_sphere(triplets: Evaluation | None) -> tuple[float, float] | None:
    """Uniformity and alignment, or None if they were not measured."""
    if triplets is None or triplets.uniformity is None or triplets.alignment is None:
        return None
    return triplets.uniformity, triplets.alignment


def _finished(figure: Figure, axes: Axes, x_label: str, y_label: str = "", *, columns: int = 3) -> Figure:
    """The figure with labels, its legend above, and no frame."""
    axes.set(xlabel=x_label, ylabel=y_label)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    figures.clean(axes)
    return figure


def _look(place: int) -> tuple[str, str]:
    """Colour and marker of the cell, or line, at a place: no two of 48 are alike."""
    return COLOURS[place % len(COLOURS)], _MARKERS[place // len(COLOURS) % len(_MARKERS)]


def _line(axes: Axes, x: Sequence[float], cells: Sequence[CellResult], label: str = _MEASURED, place: int = 0) -> None:
    """Means over the sets with their intervals, joined; `place` is among the lines of the picture."""
    colour, marker = _look(place)
    intervals = [cell.intervals[MEAN] for cell in cells]
    axes.fill_between(x, [i.low for i in intervals], [i.high for i in intervals], color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, [i.value for i in intervals], f"{marker}-", color=colour, label=label)


def _intervals(
    axes: Axes, cell: CellResult, names: Sequence[str], heights: np.ndarray, label: str, place: int = 0
) -> None:
    """A row each: a dot and its interval; an empty label stays out of the legend, `place` is among the cells there."""
    colour, marker = _look(place)
    intervals = [cell.intervals[name] for name in names]
    axes.hlines(heights, [i.low for i in intervals], [i.high for i in intervals], color=colour, linewidth=1.6)
    dots: dict[str, Any] = {"s": 34, "marker": marker, "color": colour, "zorder": 2, "label": label or None}
    axes.scatter([i.value for i in intervals], heights, **dots)


def _papers(axes: Axes, points: Sequence[tuple[float | None, float | None]], label: str | None = None) -> bool:
    """Draw the paper's numbers, those that are known; returns whether there are any."""
    known = [point for point in points if None not in point]
    if known:
        axes.scatter(*zip(*known, strict=True), label=label, zorder=3, **PAPER)
    return bool(known)


def _paper(cell: CellResult, name: str) -> float | None:
    """The paper's number for a set or the mean."""
    value = cell.cell.paper.get(name)
    return value[0] if isinstance(value, list) else value


def _paper_legend(axes: Axes, cells: Sequence[CellResult], names: Sequence[str]) -> None:
    if any(_paper(cell, name) is not None for cell in cells for name in names):
        axes.scatter([], [], label="paper", **PAPER)
