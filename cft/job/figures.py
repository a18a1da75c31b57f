"""Pictures of a job: scores before and after, similarities of positives and negatives, the training curve."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend must be chosen first
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from cft.evaluation.retrieval import HEADLINE  # noqa: E402
from cft.evaluation.scores import Evaluation  # noqa: E402
from cft.job.run_folder import development_scores  # noqa: E402
from cft.job.verdicts import Baseline, Shortened  # noqa: E402
from cft.system.files import atomic_write  # noqa: E402

BEFORE, AFTER = "#9aa5b1", "#0b6e99"
BESIDE = "#c98a1b"
ENTAILED, CONTRADICTED = "#2a9d5c", "#c8553d"

_DPI = 150


def scores(before: Evaluation, after: Evaluation) -> Figure:
    """A dumbbell a set: where its Spearman was and where it went."""
    names = [*before.scores, "mean over sets"] if len(before.scores) > 1 else list(before.scores)
    old = [*before.scores.values(), before.mean][: len(names)]
    new = [*after.scores.values(), after.mean][: len(names)]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.42 * len(names)), layout="constrained")
    heights = np.arange(len(names))[::-1]
    axes.hlines(heights, old, new, color="#d5dbe1", linewidth=3, zorder=1)
    axes.scatter(old, heights, s=60, color=BEFORE, label="before", zorder=2)
    axes.scatter(new, heights, s=60, color=AFTER, label="after", zorder=2)
    for height, score in zip(heights, new, strict=True):
        axes.annotate(f"{score:.1f}", (score, height), xytext=(9, -3.5), textcoords="offset points", fontsize=9)
    axes.set_yticks(heights, names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlim(min(0, *old, *new) - 3, 100)
    axes.set_xlabel("Spearman correlation with the given scores × 100")
    axes.set_title("Before and after contrastive fine-tuning", loc="left")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    clean(axes)
    return figure


def recall(before: Evaluation, after: Evaluation, baseline: Baseline | None = None) -> Figure:
    """Share of the relevant documents among the first k, over k, before, after and by a baseline; a panel a set."""
    names = list(after.retrieval)
    figure, panels = plt.subplots(
        1, len(names), figsize=(1.5 + 3.6 * len(names), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, name in zip(panels[0], names, strict=True):
        lines = [(before, BEFORE, "before", "-"), (after, AFTER, "after", "-")]
        lines += [(baseline.evaluation, BESIDE, baseline.name, "--")] if baseline else []
        for evaluation, colour, label, style in lines:
            curve = 100 * evaluation.retrieval[name].recall
            places = np.arange(1, len(curve) + 1)
            axes.plot(places, curve, color=colour, linewidth=2, label=label, linestyle=style)
        axes.set_xscale("log")
        axes.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        axes.set_xlabel("k, documents that are looked at")
        axes.set_title(f"{name}: nDCG@10 {before.retrieval[name].means[HEADLINE]:.1f} to "
                       f"{after.retrieval[name].means[HEADLINE]:.1f}", loc="left", fontsize=10)  # fmt: skip
        clean(axes)
    lowest = min(float(line.get_ydata().min()) for axes in panels[0] for line in axes.lines)
    # curves that begin high differ where an axis from 0 would press them against its upper end
    panels[0][0].set_ylim(max(0, 10 * math.floor((lowest - 1) / 10)), 101)
    panels[0][0].set_ylabel("relevant documents found, %")
    panels[0][0].legend(frameon=False, loc="best")
    return figure


def dimensions(before: Evaluation, after: Evaluation, shortened: Shortened) -> Figure:
    """The mean score over how many first numbers of vectors are taken, before and after; lines for whole vectors."""
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    widths = list(shortened.after)
    for of_width, whole, colour, label in (
        (shortened.before, before, BEFORE, "before"),
        (shortened.after, after, AFTER, "after"),
    ):
        axes.plot(widths, [of_width[width].headline for width in widths], "o-", color=colour, label=label)
        axes.axhline(whole.headline, color=colour, linewidth=1, linestyle=":")
    axes.plot([], [], color=AFTER, linewidth=1, linestyle=":", label="whole vectors")
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, list(map(str, widths)))
    axes.minorticks_off()
    axes.set_xlabel("first numbers of a vector that are taken")
    axes.set_ylabel(f"{'nDCG@10' if after.retrieval else 'Spearman'} × 100, mean")
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    clean(axes)
    return figure


def similarities(before: Evaluation, after: Evaluation, *, of: str = "") -> Figure:
    """Cosines of held-out anchors with their positives and their hard negatives, before and after; `of` whom."""
    figure, panels = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    lowest = min(float(e.negatives.min()) for e in (before, after))
    # one outline for all bars: a patch for each takes a second to draw
    bars: dict[str, Any] = {"bins": np.linspace(min(0.0, lowest), 1.0, 51), "alpha": 0.65, "histtype": "stepfilled"}
    for axes, evaluation, title in zip(
        panels, (before, after), ("before", f"{of}, after" if of else "after"), strict=True
    ):
        axes.hist(evaluation.positives, color=ENTAILED, label="positive", **bars)
        axes.hist(evaluation.negatives, color=CONTRADICTED, label="hard negative", **bars)
        axes.set_title(f"{title}: {evaluation.triplet_accuracy:.0%} of triplets in order", loc="left", fontsize=10)
        axes.set_ylabel("triplets")
        clean(axes)
    panels[-1].set_xlabel("cosine similarity with the anchor")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def training(history: Sequence[dict]) -> Figure:
    """Loss over the steps and, where it was measured, the development score."""
    steps = [row for row in history if row["event"] == "step"]
    dev = development_scores(history)
    measure = "Spearman" if any(row.get("spearman") is not None for row in history) else "nDCG@10"
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    places = [row["step"] for row in steps]
    axes.plot(places, [row["loss"] for row in steps], color=BEFORE, linewidth=1.2)
    if steps and all("candidates" in row for row in steps):
        guessed = [math.log(row["candidates"]) for row in steps]
        axes.plot(places, guessed, color=BEFORE, linewidth=1, linestyle=":")
        axes.annotate(
            "guessing", (places[-1], guessed[-1]), xytext=(0, 3), textcoords="offset points", fontsize=8, ha="right"
        )
    axes.set_xlabel("step")
    axes.set_title("The training: loss of its batches" + (" and development score" if dev else ""), loc="left")
    alone = bool(steps) and all("scored_loss" in row and "accuracy" not in row for row in steps)
    axes.set_ylabel("loss of scored pairs" if alone else "InfoNCE loss, nats")
    axes.set_ylim(bottom=0)
    clean(axes)
    if dev:
        other = axes.twinx()
        other.plot(*zip(*dev, strict=True), "o-", color=AFTER)
        other.set_ylabel(f"development {measure} × 100", color=AFTER)
        low, high = other.get_ylim()
        other.set_ylim(low, min(high, max(100.5, low + 1)))  # nothing is above 100, and its line's points are whole
        other.spines[["top", "left"]].set_visible(False)
    return figure


def search(trials: Sequence[tuple[int, float, dict]], logged: dict[str, bool], measure: str) -> Figure:
    """Scores of a search's trials in their order, and by every setting.

    Args:
        trials: number, score and settings of each. logged: every setting, and whether it goes by orders of magnitude.
        measure: of the scores.
    """
    figure, panels = plt.subplots(
        1, 1 + len(logged), figsize=(3.6 * (1 + len(logged)), 3.2), sharey=True, layout="constrained"
    )
    numbers, scores = [number for number, _, _ in trials], [score for _, score, _ in trials]
    panels[0].scatter(numbers, scores, s=24, color=BEFORE)
    panels[0].step(numbers, np.maximum.accumulate(scores), where="post", color=AFTER, label="best so far")
    panels[0].legend(frameon=False)
    panels[0].set_xlabel("trial")
    panels[0].set_ylabel(f"development {measure} × 100")
    for axes, (name, by_order) in zip(panels[1:], logged.items(), strict=True):
        values: list[Any] = [settings.get(name) for _, _, settings in trials]
        if all(_is_number(value) for value in values):
            values = [float(value) for value in values]
        axes.scatter(values, scores, s=24, color=AFTER)
        axes.set_xlabel(name)
        if by_order:
            axes.set_xscale("log")
    for axes in panels:
        clean(axes)
    return figure


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def clean(axes: Axes) -> None:
    """No frame, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#eceff2")
    axes.set_axisbelow(True)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG and PNG and close it; equal figures give equal bytes. Returns both paths."""
    # Not by savefig, which lays a figure out and draws it twice for every file.
    figure.set_dpi(_DPI)
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    with matplotlib.rc_context({"svg.hashsalt": "cft"}):
        with atomic_write(png) as part:
            FigureCanvasAgg(figure).print_png(part, metadata={"Software": None})
        figure.set_layout_engine("none")  # what was laid out for the one stays for the other
        with atomic_write(svg) as part:
            FigureCanvasSVG(figure).print_svg(part, metadata={"Date": None})
    plt.close(figure)
    return [svg, png]


def layers(scores: dict[str, np.ndarray], mean: np.ndarray, poolings: Sequence[str], title: str) -> Figure:
    """Scores of every layer as heat maps: the mean by pooling, and the best pooling set by set.

    Args:
        scores: (layers, poolings) a set, NaN where there is none. mean: the same over the sets. poolings: names.
    """
    row, column = map(int, np.unravel_index(np.nanargmax(mean), mean.shape))
    panels = [(mean.T, [name.replace("_", " ") for name in poolings], "mean over sets, by pooling")]
    if len(scores) > 1:
        by_set = np.stack([of_set[:, column] for of_set in scores.values()])
        panels.append((by_set, list(scores), f"{poolings[column].replace('_', ' ')} pooling, set by set"))
    else:
        panels[0] = (mean.T, panels[0][1], f"{next(iter(scores))}, by pooling")
    best = f"best {mean[row, column]:.1f}: layer {row + 1}, {poolings[column].replace('_', ' ')}"
    panels[0] = (*panels[0][:2], f"{panels[0][2]} ({best})")
    heights = [len(names) for _, names, _ in panels]
    width = max(6.5, 2.4 + 0.34 * len(mean))
    figure, all_axes = plt.subplots(
        len(panels), 1, figsize=(width, 1.6 + 0.42 * sum(heights)), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    lowest, highest = (float(pick([pick(v[np.isfinite(v)]) for v, _, _ in panels])) for pick in (np.min, np.max))
    for axes, (values, names, caption) in zip(all_axes[:, 0], panels, strict=True):
        image = axes.imshow(
            np.ma.masked_invalid(values), aspect="auto", cmap="viridis", vmin=lowest, vmax=highest, interpolation="none"
        )
        axes.set_facecolor("#d5dbe1")  # where no rank correlation is defined
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(
            range(len(mean)), [str(n + 1) if (n + 1) % 2 or len(mean) < 20 else "" for n in range(len(mean))]
        )
        axes.set_title(caption, loc="left", fontsize=10)
        for spine in axes.spines.values():
            spine.set_visible(False)
    top = all_axes[0, 0]
    top.add_patch(plt.Rectangle((row - 0.5, column - 0.5), 1, 1, fill=False, edgecolor="#c8553d", linewidth=2))
    all_axes[-1, 0].set_xlabel("layer (the last one after the final norm)")
    figure.colorbar(image, ax=all_axes, label="Spearman × 100", shrink=0.9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure
