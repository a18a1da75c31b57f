"""A study's findings in words and tables, beside the paper's numbers."""

from pathlib import Path

import numpy as np

from cft.evaluation.bootstrap import LEVEL, MEAN
from cft.job import figures
from cft.study import figures as study_figures
from cft.study.document import Block, Heading, Picture, Table, Text
from cft.study.findings import CellFinding, Comparison, Findings
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


def blocks(findings: Findings, folder: Path) -> list[Block]:
    """The report of one study; its pictures are written into `folder`."""
    told = findings.study.experiment
    found: list[Block] = [Heading(told.title), Text([told.question])]
    source = f" Source: {told.source}." if told.source else ""
    note = f" In the tables, {told.paper_note}." if told.paper_note else ""
    found.append(Text([f"Here: {told.about_scale or told.scale}.{source}{note}"]))
    gaps = [f"{cell.cell.name}: {cell.status}" for cell in findings.shown if cell.status]
    gaps += [f"{cell.cell.name}: stale, the files now say something else" for cell in findings.shown if cell.stale]
    if gaps:
        found += [Heading("Cells that want another run", 3), Text(gaps)]
    if told.layout == "sets":
        found.append(Table("scores", _scores_caption(findings), scores_by_set(findings)))
    else:
        found.append(Table("scores", _scores_caption(findings), scores_by_cell(findings)))
    for name, figure in study_figures.figures_for(findings).items():
        found.append(Picture(_caption(name, findings), figures.save(figure, folder, name)[0]))
    if findings.comparisons:
        found.append(Heading("Verdicts", 3))
        found.append(Text([_sentence_of(comparison) for comparison in findings.comparisons], "sentences"))
        found.append(Table("verdicts", _VERDICTS_CAPTION, verdicts(findings)))
    if any(cell.costs for cell in findings.done):
        found += [Heading("Cost", 3), Table("cost", _COST_CAPTION, costs(findings))]
    if findings.overlap and findings.done:
        found.append(Heading("Overlap audit", 3))
        found.append(Table("overlap", _OVERLAP_CAPTION, overlap_by_set(findings)))
        found.append(Table("without_overlap", _WITHOUT_CAPTION, overlap_by_cell(findings)))
    return found


_VERDICTS_CAPTION = (
    "Difference in points of Spearman x 100 over the same pairs, with its 95% interval (paired bootstrap over pairs; a "
    "pair that several sets share is drawn once); verdicts at the 5% level after Holm's correction for all "
    "differences of this table."
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
_WITHOUT_CAPTION = (
    "Mean over the sets on all pairs, without pairs that have a sentence in the training data, and with every distinct "
    "pair counted once, in the first set it stands in."
)


def _scores_caption(findings: Findings) -> str:
    seeds = max((len(cell.by_seed) for cell in findings.shown), default=0)  # what is not trained has one score
    over = f" Mean over {seeds} seeds, (seeds ±) their sample standard deviation." if seeds > 1 else ""
    return (
        "Spearman x 100 with 95% bootstrap intervals over pairs; ± beside a mean over sets is the population standard "
        f"deviation over the sets, as in the paper.{over}"
    )


def _caption(picture: str, findings: Findings) -> str:
    caption = _CAPTIONS[picture.partition("-")[0]]
    if picture in _WITH_PAPER and any(cell.cell.paper for cell in findings.done):
        caption += " Hollow diamonds are the paper's numbers."
    return caption


def scores_by_set(findings: Findings) -> list[Row]:
    """A row a test set; for every shown cell its score with interval, the paper's and the difference."""
    shown = findings.shown
    header = ["set", "pairs"]
    for cell in shown:
        header += [cell.cell.name, "paper", "difference"] if cell.cell.paper else [cell.cell.name]
    table: list[Row] = [tuple(header)]
    papers = dict.fromkeys(name for cell in shown for name in cell.cell.paper if name != "overall")
    sets = list(findings.sets or papers)
    for name in [*sets, *([MEAN] if len(sets) != 1 else [])]:
        row = ["mean over sets" if name == MEAN else name, str(findings.sets.get(name, ""))]
        for cell in shown:
            row += [_score(cell, name), *_beside_paper(cell, name)] if cell.cell.paper else [_score(cell, name)]
        table.append(tuple(row))
    return table


def scores_by_cell(findings: Findings) -> list[Row]:
    """A row a cell: its mean over the sets, the paper's and the difference."""
    with_paper = any(cell.cell.paper for cell in findings.shown)
    table: list[Row] = [("cell", "mean over sets", *(("paper", "difference") if with_paper else ()))]
    for cell in findings.shown:
        beside = _beside_paper(cell, MEAN) if with_paper else ()
        table.append((cell.cell.name, _score(cell, MEAN), *beside))
    return table


def verdicts(findings: Findings) -> list[Row]:
    """A row a set and one for the mean; a column a comparison. With many comparisons, a row each instead."""
    if len(findings.comparisons) <= 2:
        names = [f"{found.one} − {found.other}" for found in findings.comparisons]
        header = [cell for name in names for cell in (name, "verdict")]
        table: list[Row] = [("set", *header)]
        for name in _rows(findings):
            differences = [found.differences[name] for found in findings.comparisons]
            cells = [cell for difference in differences for cell in (str(difference), difference.verdict)]
            table.append(("mean over sets" if name == MEAN else name, *cells))
        return table
    table = [("comparison", "mean over sets", "p, corrected", "verdict", "sets higher", "sets lower", "neither")]
    for found in findings.comparisons:
        mean = found.differences[MEAN]
        of_sets = [value.verdict for name, value in found.differences.items() if name != MEAN]
        table.append(
            (
                f"{found.one} − {found.other}",
                str(mean),
                f"{mean.corrected:.4f}",
                mean.verdict,
                *(str(of_sets.count(verdict)) for verdict in ("higher", "lower", "not distinguishable")),
            )
        )
    return table


def costs(findings: Findings) -> list[Row]:
    """A row a trained cell."""
    table: list[Row] = [
        ("cell", "triplets", "tokens", "through the model", "triplets a second", "minutes", "peak memory", "device")
    ]
    for cell in findings.done:
        if not cell.costs:
            continue
        triplets, tokens, nodes, seconds = (
            float(np.mean([getattr(cost, name) for cost in cell.costs]))
            for name in ("triplets", "tokens", "nodes", "seconds")
        )
        peaks = [cost.peak_memory for cost in cell.costs if cost.peak_memory]
        table.append(
            (
                cell.cell.name,
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
    table: list[Row] = [("set", "pairs", "in another set too", "one sentence seen", "both seen")]
    for name, counts in findings.overlap.sets.items():
        row = (counts.pairs, counts.shared, counts.one_seen, counts.both_seen)
        table.append((name, *(str(count) for count in row)))
    return table


def overlap_by_cell(findings: Findings) -> list[Row]:
    """A row a cell."""
    assert findings.overlap
    table: list[Row] = [("cell", "all pairs", "no sentence seen in training", "every pair once")]
    for name, scores in findings.overlap.scores.items():
        table.append((name, *(_NONE if score is None else f"{score:.2f}" for score in scores)))
    return table


def _rows(findings: Findings) -> list[str]:
    return [*findings.sets, *([MEAN] if len(findings.sets) > 1 else [])]


def _score(cell: CellFinding, name: str) -> str:
    """A score with its interval, or why there is none."""
    if not cell.by_seed:
        return "failed" if cell.status.startswith("failed") else "missing"
    interval = cell.intervals[name]
    text = f"{interval.value:.2f}"
    if name == MEAN:
        text += f" ± {cell.deviation:.2f}"
    text += f" [{interval.low:.1f}, {interval.high:.1f}]"
    if len(cell.by_seed) > 1:
        by_seed = cell.overall if name == MEAN else [found.scores[name] for found in cell.by_seed]
        text += f" (seeds ± {np.std(by_seed, ddof=1):.2f})"
    return text + (" (stale)" if cell.stale else "")


def _beside_paper(cell: CellFinding, name: str) -> tuple[str, str]:
    """The paper's number, and ours minus it."""
    value = cell.cell.paper.get(name)
    if value is None:
        return _NONE, _NONE
    number, deviation = (value[0], value[1] if len(value) > 1 else None) if isinstance(value, list) else (value, None)
    text = f"{number:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
    return text, f"{cell.intervals[name].value - number:+.2f}" if cell.by_seed else _NONE


def _sentence_of(comparison: Comparison) -> str:
    """A comparison's outcome in words."""
    mean = comparison.differences[MEAN]
    interval = f"[{mean.low:+.2f}, {mean.high:+.2f}]"
    if mean.verdict == "not distinguishable":
        head = f"{comparison.one} and {comparison.other} are not distinguishable on the mean over sets"
    else:
        head = f"{comparison.one} scores {mean.verdict} than {comparison.other} on the mean over sets"
    head += f" ({mean.value:+.2f} points, {LEVEL:.0%} interval {interval}, corrected p {mean.corrected:.4f})"
    by_verdict: dict[str, list[str]] = {}
    for name, value in comparison.differences.items():
        if name != MEAN:
            by_verdict.setdefault(value.verdict, []).append(name)
    if sum(map(len, by_verdict.values())) < 2:
        return head + "."
    order = [verdict for verdict in ("higher", "lower", "not distinguishable") if verdict in by_verdict]
    parts = [f"{verdict} on {', '.join(by_verdict[verdict])}" for verdict in order]
    return f"{head}; {'; '.join(parts)}."
