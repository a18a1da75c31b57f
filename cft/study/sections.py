"""A study's findings in words and tables, beside the paper's numbers."""

from dataclasses import astuple
from pathlib import Path

import numpy as np

from cft.evaluation.bootstrap import LEAST_PAIRS, LEVEL, MEAN, NEITHER, TOO_FEW, VERDICTS, undefined_note
from cft.job import figures
from cft.study import figures as study_figures
from cft.study.document import Block, Heading, Picture, Table, Text
from cft.study.findings import CellResult, Comparison, Findings
from cft.system.tables import Row
from cft.system.text import byte_size

_NONE = "—"
_CAPTIONS = {
    "sets": "Score of every cell on every test set, with 95% intervals.",
    "overall": "Mean over the test sets, with 95% intervals.",
    "rates": "Mean over the test sets by learning rate, with 95% intervals.",
    "curve": "Mean over the test sets by training step, with 95% intervals.",
    "time": "Mean over the test sets by minutes of training, with 95% intervals.",
    "sphere": "Alignment and uniformity of held-out triplets before (hollow) and after training; lower is better.",
    "similarities": "Cosines of held-out anchors with entailments and contradictions, before and after training.",
}
_WITH_PAPER = ("sets", "overall", "rates", "curve")
_VERDICTS_CAPTION = (
    "Difference in points of Spearman x 100 over the same pairs, with its 95% interval (paired bootstrap over pairs; a "
    "pair that several sets share is drawn once); verdicts at the 5% level after Holm's correction for all "
    "differences of this table."
)
_VERDICTS_OF_QUERIES = (
    "Difference in points of nDCG@10 x 100 over the same queries, with its 95% interval (paired bootstrap over "
    "queries); verdicts at the 5% level after Holm's correction for all differences of this table."
)
_COST_CAPTION = (
    "What a training took, the mean over its seeds: texts' tokens with their prompts, and those that went through the "
    "model (prefixes that texts share do so once); steps alone, without evaluations; the process's highest memory, or "
    "the GPU's tensors."
)
_OVERLAP_CAPTION = (
    "Pairs that stand in another of the sets too, and pairs of which one or both sentences stand in the training data "
    "(case, blanks and punctuation aside)."
)
_OF_SEVERAL_TRAININGS = (
    " The cells were trained on different data: here a sentence counts if any of them has it, and below each cell is "
    "scored without what it was itself trained on (an untrained one without what any was)."
)
_WITHOUT_CAPTION = (
    "Mean over the sets on all pairs, without pairs that have a sentence in the training data, and with every distinct "
    "pair counted once, in the first set it stands in."
)


def blocks(findings: Findings, folder: Path) -> list[Block]:
    """The report of one study; its pictures are written into `folder`."""
    experiment = findings.study.experiment
    source = f" Source: {experiment.source}." if experiment.source else ""
    note = f" In the tables, {experiment.paper_note}." if experiment.paper_note else ""
    report: list[Block] = [Heading(experiment.title), Text([experiment.question])]
    report.append(Text([f"Here: {experiment.about_scale or experiment.scale}.{source}{note}"]))
    # those that no table shows too: comparisons with them are missing
    gaps = [f"{cell.name}: {cell.status}" for cell in findings.cells if cell.status]
    gaps += [f"{cell.name}: stale, the files now say something else" for cell in findings.cells if cell.stale]
    if gaps:
        report += [Heading("Cells that want another run", 3), Text(gaps)]
    scores = scores_by_set if experiment.layout == "sets" else scores_by_cell
    report.append(Table("scores", _scores_caption(findings), scores(findings)))
    if note := _of_precisions(findings):
        report.append(Text([note], "precisions"))
    for name, figure in study_figures.figures_for(findings).items():
        report.append(Picture(_caption(name, findings), figures.save(figure, folder, name)[0]))
    if findings.comparisons:
        report.append(Heading("Verdicts", 3))
        report.append(Text([_sentence_of(comparison) for comparison in findings.comparisons], "sentences"))
        report.append(Text([_basis(findings)], "basis"))
        caption = _VERDICTS_OF_QUERIES if findings.of_queries else _VERDICTS_CAPTION
        report.append(Table("verdicts", caption, verdicts(findings)))
    if any(cell.costs for cell in findings.done):
        report += [Heading("Cost", 3), Table("cost", _COST_CAPTION, costs(findings))]
    if findings.overlap and findings.done:
        report.append(Heading("Overlap audit", 3))
        of_several = _OF_SEVERAL_TRAININGS if findings.overlap.differs else ""
        report.append(Table("overlap", _OVERLAP_CAPTION + of_several, overlap_by_set(findings)))
        report.append(Table("without_overlap", _WITHOUT_CAPTION, overlap_by_cell(findings)))
    return report


def _scores_caption(findings: Findings) -> str:
    seeds = max((len(cell.by_seed) for cell in findings.shown), default=0)  # what is not trained has one score
    over = f" Mean over {seeds} seeds, (seeds ±) their sample standard deviation." if seeds > 1 else ""
    unit, things = ("nDCG@10", "queries") if findings.of_queries else ("Spearman", "pairs")
    return (
        f"{unit} x 100 with 95% bootstrap intervals over {things}; ± beside a mean over sets is the population "
        f"standard deviation over the sets, as in the paper.{over}"
    )


def _of_precisions(findings: Findings) -> str:
    """Which cells were computed in which precision, if not all in one; empty otherwise."""
    cells: dict[str, list[str]] = {}
    for cell in findings.done:
        for precision in cell.precisions:
            cells.setdefault(precision, []).append(cell.name)
    if len(cells) < 2:
        return ""
    parts = [f"in {precision} {', '.join(names)}" for precision, names in cells.items()]
    return f"Computed {'; '.join(parts)}. Differences between the two are of rounding too."


def _caption(picture: str, findings: Findings) -> str:
    caption = _CAPTIONS[picture.partition("-")[0]]
    if picture in _WITH_PAPER and any(cell.cell.paper for cell in findings.done):
        caption += " Hollow diamonds are the paper's numbers."
    return caption


def scores_by_set(findings: Findings) -> list[Row]:
    """A row a test set; for every shown cell its score with interval, the paper's and the difference."""
    shown = findings.shown
    papers = dict.fromkeys(name for cell in shown for name in cell.cell.paper if name != MEAN)
    header = ["set", _things(findings)]
    for cell in shown:
        header += [cell.name, "paper", "difference"] if cell.cell.paper else [cell.name]
    table: list[Row] = [tuple(header)]
    for name in findings.rows or [*papers, *([MEAN] if len(papers) != 1 else [])]:
        row = [_set_name(name), str(findings.sets.get(name, ""))]
        for cell in shown:
            row += [_score(cell, name), *(_beside_paper(cell, name) if cell.cell.paper else ())]
        table.append(tuple(row))
    return table


def scores_by_cell(findings: Findings) -> list[Row]:
    """A row a cell: its mean over the sets, the paper's and the difference."""
    if not any(cell.cell.paper for cell in findings.shown):
        return [("cell", "mean over sets"), *((cell.name, _score(cell, MEAN)) for cell in findings.shown)]
    rows = [(cell.name, _score(cell, MEAN), *_beside_paper(cell, MEAN)) for cell in findings.shown]
    return [("cell", "mean over sets", "paper", "difference"), *rows]


def verdicts(findings: Findings) -> list[Row]:
    """A row a set and one for the mean; a column a comparison. With many comparisons, a row each instead."""
    comparisons = findings.comparisons
    if len(comparisons) > 2:
        header = ("comparison", "mean over sets", "p, corrected", "verdict", "sets higher", "sets lower", "neither")
        return [header, *map(_verdict_row, comparisons)]
    table: list[Row] = [("set", *(column for comparison in comparisons for column in (comparison.title, "verdict")))]
    for name in findings.rows:
        differences = [comparison.differences[name] for comparison in comparisons]
        table.append((_set_name(name), *(cell for value in differences for cell in (str(value), value.verdict))))
    return table


def _verdict_row(comparison: Comparison) -> Row:
    mean = comparison.differences[MEAN]
    by_verdict = _sets_by_verdict(comparison)
    counts = (str(len(by_verdict[verdict])) for verdict in VERDICTS if verdict != TOO_FEW)
    return (comparison.title, str(mean), f"{mean.corrected:.4f}", mean.verdict, *counts)


def costs(findings: Findings) -> list[Row]:
    """A row a trained cell."""
    table: list[Row] = [
        ("cell", "triplets", "tokens", "through the model", "triplets a second", "minutes", "peak memory", "device")
    ]
    for cell in findings.done:
        if not cell.costs:
            continue
        triplets, tokens, nodes, seconds = np.mean([(c.triplets, c.tokens, c.nodes, c.seconds) for c in cell.costs], 0)
        peaks = [cost.peak_memory for cost in cell.costs if cost.peak_memory]
        table.append(
            (
                cell.name,
                f"{triplets:,.0f}",
                f"{tokens:,.0f}",
                f"{nodes:,.0f}",
                f"{triplets / seconds:.1f}" if seconds else _NONE,
                f"{seconds / 60:.1f}",
                byte_size(float(np.mean(peaks))) if peaks else _NONE,
                "; ".join(dict.fromkeys(cost.device for cost in cell.costs)),
            )
        )
    return table


def overlap_by_set(findings: Findings) -> list[Row]:
    """A row a test set."""
    assert findings.overlap
    rows = [(name, *map(str, astuple(counts))) for name, counts in findings.overlap.sets.items()]
    return [("set", "pairs", "in another set too", "one sentence seen", "both seen"), *rows]


def overlap_by_cell(findings: Findings) -> list[Row]:
    """A row a cell; where a mean lacks sets, as none of their pairs is left, it says over how many it is."""
    assert findings.overlap
    of = len(findings.overlap.sets)
    rows = []
    for name, scores in findings.overlap.scores.items():
        counts = findings.overlap.means_over[name]
        over = ["" if count == of else f" ({count} of {of} sets)" for count in counts]
        cells = (_NONE if score is None else f"{score:.2f}{note}" for score, note in zip(scores, over, strict=True))
        rows.append((name, *cells))
    return [("cell", "all pairs", "no sentence seen in training", "every pair once"), *rows]


def _things(findings: Findings) -> str:
    """What a score is the mean over."""
    return "queries" if findings.of_queries else "pairs"


def _set_name(name: str) -> str:
    return "mean over sets" if name == MEAN else name


def _score(cell: CellResult, name: str) -> str:
    """A score with its interval, or why there is none."""
    if not cell.by_seed:
        return "failed" if cell.status.startswith("failed") else "missing"
    interval = cell.intervals[name]
    text = f"{interval.value:.2f}"
    if name == MEAN and len(cell.by_seed[0].by_set) > 1:
        text += f" ± {cell.deviation:.2f}"
    text += f" [{interval.low:.1f}, {interval.high:.1f}]"
    if len(cell.by_seed) > 1:
        by_seed = cell.overall if name == MEAN else [evaluation.by_set[name] for evaluation in cell.by_seed]
        text += f" (seeds ± {np.std(by_seed, ddof=1):.2f})"
    return text + (" (stale)" if cell.stale else "")


def _beside_paper(cell: CellResult, name: str) -> tuple[str, str]:
    """The paper's number, and ours minus it."""
    value = cell.cell.paper.get(name)
    if value is None:
        return _NONE, _NONE
    number, *deviation = value if isinstance(value, list) else [value]
    text = " ± ".join(f"{part:.2f}" for part in (number, *deviation[:1]))
    return text, f"{cell.intervals[name].value - number:+.2f}" if cell.by_seed else _NONE


def _sets_by_verdict(comparison: Comparison) -> dict[str, list[str]]:
    """Names of the test sets by what may be said of them."""
    differences = {name: value for name, value in comparison.differences.items() if name != MEAN}
    return {verdict: [name for name, value in differences.items() if value.verdict == verdict] for verdict in VERDICTS}


def _sentence_of(comparison: Comparison) -> str:
    """A comparison's outcome in words."""
    mean = comparison.differences[MEAN]
    interval = f"[{mean.low:+.2f}, {mean.high:+.2f}]"
    if mean.verdict == TOO_FEW:
        head = f"{comparison.left} and {comparison.right}: {TOO_FEW} on the mean over sets"
    elif mean.verdict == NEITHER:
        head = f"{comparison.left} and {comparison.right} are not distinguishable on the mean over sets"
    else:
        head = f"{comparison.left} scores {mean.verdict} than {comparison.right} on the mean over sets"
    if mean.verdict == TOO_FEW:
        head += f" ({mean.value:+.2f} points)"
    else:
        head += f" ({mean.value:+.2f} points, {LEVEL:.0%} interval {interval}, corrected p {mean.corrected:.4f})"
    if len(comparison.differences) < 3:  # one set and its mean
        return head + "."
    parts = [f"{verdict} on {', '.join(names)}" for verdict, names in _sets_by_verdict(comparison).items() if names]
    return f"{head}; {'; '.join(parts)}."


def _basis(findings: Findings) -> str:
    """On how few pairs and seeds the verdicts stand, and which score is subtracted from which."""
    sizes, things = sorted(findings.sets.values()), _things(findings)
    of_sets = f"{len(sizes)} sets of {sizes[0]:,} to {sizes[-1]:,} {things}" if len(sizes) > 1 else "one set"
    seeds = min((len(cell.by_seed) for cell in findings.cells if cell.by_seed and cell.step), default=0)
    trained = {
        0: "",
        1: " and on one training a cell: they hold for these trained weights, and another seed may turn them round",
    }.get(
        seeds,
        f" and on {seeds} trainings a cell, whose mean is compared: the intervals are over {things}, not seeds",
    )
    text = (
        f"Differences are the first minus the second. The verdicts stand on {findings.distinct:,} different {things} "
        f"({of_sets}){trained}. Below {LEAST_PAIRS} different {things} there is no verdict."
    )
    differences = [each for comparison in findings.comparisons for each in comparison.differences.values()]
    return " ".join(filter(None, [text, undefined_note(differences)]))
