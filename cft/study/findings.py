"""What a study found: the scores of its cells with intervals, verdicts on its comparisons, and the overlap audit."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cft.config.schema import Config
from cft.evaluation import pairs
from cft.evaluation.bootstrap import (
    LEAST_PAIRS,
    LEVEL,
    MEAN,
    METHOD,
    RESAMPLES,
    Difference,
    Interval,
    Resamples,
    resample,
    resample_means,
)
from cft.evaluation.pairs import Arrays, Pairs
from cft.evaluation.retrieval import FILE_NAME as QUERIES
from cft.evaluation.scores import COSINES, METRICS, Evaluation, load_evaluation, spearman
from cft.job.run_folder import Cost, RunFolder
from cft.study import plan
from cft.study.plan import DONE, FAILED, RunState, Study
from cft.study.spec import Cell
from cft.system.digest import digest, sha256_of_file
from cft.system.errors import UserError
from cft.system.files import read_json, write_record

log = logging.getLogger(__name__)

FILE_NAME = "verdicts.json"


@dataclass(frozen=True)
class CellResult:
    """What became of one cell."""

    cell: Cell
    status: str  # empty if all its runs are done, otherwise why not
    stale: bool  # whether the files now say something else than what was run
    folders: list[Path]  # of its scores, one a seed; empty unless all its runs are done
    by_seed: list[Evaluation]  # the scores in those folders
    triplets: Evaluation | None  # of the held-out triplets, by the first seed; None without any
    triplets_before: Evaluation | None  # the same by the untrained model
    intervals: dict[str, Interval]  # by set, and under MEAN of the mean over sets; empty without results
    training: RunFolder | None  # of the first seed
    lr: float
    step: int | None  # of the training; 0 is the untrained model
    costs: list[Cost]  # of the trainings up to that step, one a seed, as far as they left records
    precisions: list[str]  # that its embedders compute in, as far as records say so: one, unless seeds differ

    @property
    def name(self) -> str:
        """What tables and pictures call the cell."""
        return self.cell.name

    @property
    def overall(self) -> list[float]:
        """Mean over the sets, a number a seed."""
        return [evaluation.headline for evaluation in self.by_seed]

    @property
    def deviation(self) -> float:
        """Population standard deviation over the sets, as in the paper, of the scores' mean over the seeds."""
        names = list(self.by_seed[0].by_set)
        by_seed = [[evaluation.by_set[name] for name in names] for evaluation in self.by_seed]
        return float(np.std(np.mean(by_seed, axis=0)))


@dataclass(frozen=True)
class Comparison:
    """One cell against another."""

    left: str
    right: str
    differences: dict[str, Difference]  # left minus right, by set and under MEAN on the mean over sets

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"{self.left} − {self.right}"


@dataclass(frozen=True)
class SetOverlap:
    """Pairs of a test set that are not its own."""

    pairs: int  # in the set
    shared: int  # of them in another set too
    one_seen: int  # of which one sentence stands in the training data
    both_seen: int


@dataclass(frozen=True)
class Overlap:
    """The overlap audit."""

    sets: dict[str, SetOverlap]
    # By cell, the mean over the sets on all pairs, without the pairs that have a sentence in the training data, and
    # with every distinct pair counted once, in the first set it stands in; None where a set has too few pairs left.
    scores: dict[str, tuple[float, float | None, float | None]]
    means_over: dict[str, tuple[int, int, int]]  # by cell, how many sets each of these is the mean over
    differs: bool = False  # whether cells were trained on different data, with other sentences of the sets


@dataclass(frozen=True)
class Findings:
    """All of a study."""

    study: Study
    cells: list[CellResult]
    sets: dict[str, int]  # pairs, or queries, in every test set; empty while nothing is done
    distinct: int = 0  # different ones in all of them
    of_queries: bool = False  # whether documents were looked for
    comparisons: list[Comparison] = field(default_factory=list)
    overlap: Overlap | None = None

    @property
    def shown(self) -> list[CellResult]:
        """Cells that tables show."""
        return [cell for cell in self.cells if not cell.cell.hidden]

    @property
    def done(self) -> list[CellResult]:
        """Shown cells with results."""
        return [cell for cell in self.shown if cell.by_seed]

    @property
    def rows(self) -> list[str]:
        """The test sets, and MEAN if there are several."""
        return [*self.sets, *([MEAN] if len(self.sets) > 1 else [])]


def collect(study: Study, stale: list[str], *, resamples: int = RESAMPLES) -> Findings:
    """Read the results of a study's runs and work out intervals, verdicts and overlaps.

    Args:
        study: its plan.
        stale: names of cells whose configuration differs by now.
        resamples: for intervals and verdicts.

    Raises:
        UserError: if cells were scored on different pairs.
    """
    cells = [_read_cell(study, cell, stale=cell.name in stale) for cell in study.experiment.cells]
    data = {cell.name: pairs.read(cell.folders[0]) for cell in cells if cell.by_seed}
    if not data:
        return Findings(study, cells, {})
    reference = next(iter(data.values()))
    for cell in cells:
        for folder in cell.folders:
            _require_same_pairs({next(iter(data)): reference, cell.name: pairs.read(folder)}, reference)
    _require_same_queries([cell for cell in cells if cell.by_seed])
    intervals, comparisons = _verdicts(study, [cell for cell in cells if cell.by_seed], reference, resamples)
    cells = [replace(cell, intervals=intervals.get(cell.name, {})) for cell in cells]
    found = next(cell for cell in cells if cell.by_seed).by_seed[0].retrieval
    if found:
        sizes = {name: len(of_set.first) for name, of_set in found.items()}
        return Findings(study, cells, sizes, sum(sizes.values()), of_queries=True, comparisons=comparisons)
    sizes = {name: len(scores) for name, scores in reference.scores.items()}
    distinct = len(np.unique(np.concatenate(list(reference.identity.values()))))
    overlap = _overlap(cells, data, reference)
    return Findings(study, cells, sizes, distinct, comparisons=comparisons, overlap=overlap)


def _read_cell(study: Study, cell: Cell, *, stale: bool) -> CellResult:
    outputs = study.outputs
    states = [plan.state_of(outputs, run) for run in study.cells[cell.name]]
    status = _status(states, outputs)
    folders = [] if status else [outputs / state.scores for state in states]
    trainings = [] if status else [RunFolder(outputs / state.training) for state in states if state.training]
    first = RunState() if status else states[0]
    config = _as_trained(study.runs[study.cells[cell.name][0]], trainings)
    step = _step(cell, config, trainings)
    costs = [] if cell.base else [t.cost(batch_size=config.rows_a_step, stop_at=config.eval.step) for t in trainings]
    return CellResult(
        cell=cell,
        status=status,
        stale=stale,
        folders=folders,
        by_seed=[evaluation for evaluation in map(load_evaluation, folders) if evaluation],
        triplets=load_evaluation(outputs / first.triplets) if first.triplets else None,
        triplets_before=load_evaluation(outputs / first.triplets_before) if first.triplets_before else None,
        intervals={},
        training=trainings[0] if trainings else None,
        lr=config.lr,
        step=step,
        costs=[cost for cost in costs if cost],
        precisions=sorted(filter(None, {_precision(folder) for folder in folders})),
    )


def _precision(folder: Path) -> str:
    """What the embedder of an evaluation computed in; empty in records of older versions."""
    return (read_json(folder / METRICS).get("contract") or {}).get("dtype", "")


def _step(cell: Cell, config: Config, trainings: Sequence[RunFolder]) -> int:
    """The step that is scored; the data or train.patience may have ended a training before the step that was asked."""
    if cell.base:
        return 0
    finished = trainings[0].finished() if trainings and config.eval.step is None else None
    return finished.steps if finished else (config.eval.step or config.train.steps)


def _as_trained(config: Config, trainings: Sequence[RunFolder]) -> Config:
    """A cell's configuration with what its data chose (train=fitted), which its trainings have on record."""
    if not config.train.fitted or not trainings:
        return config
    record = read_json(trainings[0].file(RunFolder.CONFIG))
    chosen = {name: record["train"][name] for name in ("steps", "batch_size", "epochs")}
    return replace(config, lr=record["lr"], train=replace(config.train, **chosen))


def _status(states: list[RunState], outputs: Path) -> str:
    """Why a cell has no results; empty if it has."""
    for state in states:
        if state.state == FAILED:
            return f"failed: {state.cause}"
        if state.state != DONE or not plan.is_scored(outputs / state.scores):
            return "missing"
    return ""


def _require_same_pairs(data: dict[str, Pairs], reference: Pairs) -> None:
    first = next(iter(data))
    for name, of_cell in data.items():
        if _same_pairs(of_cell, reference):
            continue
        if name == first:
            raise UserError(
                f"the trainings of cell {name!r} were scored on different pairs: the test sets have changed since the "
                "study began; run it again"
            )
        raise UserError(
            f"cells {first!r} and {name!r} were scored on different pairs: give them the same eval.* settings, and run "
            "the study again if the test sets have changed since it began"
        )


def _same_pairs(left: Pairs, right: Pairs) -> bool:
    """Whether two records are of the same pairs, in whatever order their sets stand."""
    names = list(right.scores)
    return (
        set(left.scores) == set(names)
        and all(np.array_equal(left.scores[name], right.scores[name]) for name in names)
        and np.array_equal(_first_places(left, names), _first_places(right, names))
    )


def _first_places(of: Pairs, names: Sequence[str]) -> np.ndarray:
    """Of every pair of these sets, one after the other, the place where it comes first."""
    numbers = np.concatenate([np.empty(0, dtype=np.int32), *(of.identity[name] for name in names)])
    _, first, number = np.unique(numbers, return_index=True, return_inverse=True)
    return first[number]


def _require_same_queries(cells: Sequence[CellResult]) -> None:
    """Refuse cells of which some look for documents that others do not."""
    known = {(folder, read_json(folder / METRICS).get("data")) for cell in cells for folder in cell.folders}
    if any(evaluation.retrieval for cell in cells for evaluation in cell.by_seed) and len({of for _, of in known}) > 1:
        raise UserError("cells looked for different documents: give them the same eval.* settings")


def _drawn(cells: Sequence[CellResult], reference: Pairs, resamples: int) -> Resamples:
    """The cells' scores in resamples of the pairs or queries, each the mean over its seeds."""
    if not cells[0].by_seed[0].retrieval:
        embedders = [[evaluation.cosines for evaluation in cell.by_seed] for cell in cells]
        return resample(embedders, reference.scores, reference.identity, resamples=resamples)
    names = cells[0].by_seed[0].retrieval
    measures = [
        {name: np.mean([each.by_query[name] for each in cell.by_seed], axis=0) for name in names} for cell in cells
    ]
    return resample_means(measures, resamples=resamples)


def _verdicts(
    study: Study, cells: list[CellResult], reference: Pairs, resamples: int
) -> tuple[dict[str, dict[str, Interval]], list[Comparison]]:
    """Intervals and differences, out of the study's folder if they were worked out before for the same files."""
    names = [cell.name for cell in cells]
    compared = [(left, right) for left, right in study.experiment.comparisons if left in names and right in names]
    inputs = digest(
        {
            "method": [METHOD, LEVEL, LEAST_PAIRS, resamples],
            "cells": [(cell.name, [_content(folder) for folder in cell.folders]) for cell in cells],
            "compared": compared,
        }
    )
    path = plan.study_folder(study.outputs, study.name) / FILE_NAME
    record = _worked_out(path)
    if record.get("of") != inputs:
        drawn = _drawn(cells, reference, resamples)
        differences = drawn.differences([(names.index(left), names.index(right)) for left, right in compared])
        intervals = [{key: drawn.interval(place, key) for key in drawn.names} for place in range(len(names))]
        entries = [
            {"one": left, "other": right, "differences": by_set}
            for (left, right), by_set in zip(compared, differences, strict=True)
        ]
        by_name = dict(zip(names, intervals, strict=True))
        write_record(path, {"of": inputs, "resamples": resamples, "intervals": by_name, "comparisons": entries})
        record = read_json(path)
    order = [*cells[0].by_seed[0].by_set, MEAN]  # JSON is written with its keys sorted
    return (
        {name: {key: Interval(**by_set[key]) for key in order} for name, by_set in record["intervals"].items()},
        [
            Comparison(entry["one"], entry["other"], {key: Difference(**entry["differences"][key]) for key in order})
            for entry in record["comparisons"]
        ],
    )


def _worked_out(path: Path) -> dict[str, Any]:
    """What was worked out before; nothing where the file is no record of that, as all of it can be worked out again."""
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except UserError:
        log.warning("%s is damaged, or was changed after cft wrote it: its verdicts are worked out again", path)
        return {}


def _content(folder: Path) -> list[str]:
    """The content of all files of an evaluation that intervals and verdicts are made of."""
    names = [METRICS, COSINES, pairs.FILE_NAME, *([QUERIES] if (folder / QUERIES).exists() else [])]
    return [sha256_of_file(folder / name) for name in names]


def _overlap(cells: Sequence[CellResult], data: dict[str, Pairs], reference: Pairs) -> Overlap:
    """Count what sets share with one another and with the training data, and score without it."""
    by_cell = {name: of_cell.seen for name, of_cell in data.items() if of_cell.seen}
    # of any training; what an untrained cell is measured by, beside whichever it is compared with
    seen = {
        name: np.max([of_cell[name] for of_cell in by_cell.values()], axis=0) for name in reference.identity if by_cell
    }
    sets_with: dict[int, list[str]] = {}
    for name, numbers in reference.identity.items():
        for number in np.unique(numbers).tolist():
            sets_with.setdefault(number, []).append(name)
    counts, once = {}, {}
    for name, numbers in reference.identity.items():
        sentences = seen[name] if seen else np.zeros(len(numbers), dtype=np.uint8)
        sets = [sets_with[number] for number in numbers.tolist()]
        _, first = np.unique(numbers, return_index=True)
        once[name] = np.isin(np.arange(len(numbers)), first) & np.array([names[0] == name for names in sets])
        counts[name] = SetOverlap(
            pairs=len(numbers),
            shared=sum(len(names) > 1 for names in sets),
            one_seen=int(np.sum(sentences == 1)),
            both_seen=int(np.sum(sentences == 2)),
        )
    scores, means_over = {}, {}
    for cell in cells:
        if not cell.by_seed or cell.cell.hidden:
            continue
        unseen = _unseen(by_cell.get(cell.name, seen)) if seen else {}
        scores[cell.name] = (
            float(np.mean(cell.overall)),
            _mean_on(cell, reference.scores, unseen) if seen else None,
            _mean_on(cell, reference.scores, once),
        )
        left, distinct = (sum(bool(of_set.any()) for of_set in kept.values()) for kept in (unseen, once))
        means_over[cell.name] = (len(counts), left, distinct)
    differs = any(not np.array_equal(of_cell[name], seen[name]) for of_cell in by_cell.values() for name in seen)
    return Overlap(counts, scores, means_over, differs)


def _unseen(seen: Arrays) -> Arrays:
    """Pairs of which no sentence stands in the training data, by set."""
    return {name: of_set == 0 for name, of_set in seen.items()}


def _mean_on(cell: CellResult, scores: Arrays, kept: Arrays) -> float | None:
    """Mean over sets and seeds on the kept pairs, without sets that have none left; None if no set can be scored so."""
    names = [name for name in scores if kept[name].any()]
    if not names:
        return None
    try:
        by_set = [
            spearman(evaluation.cosines[name][kept[name]], scores[name][kept[name]].tolist(), name)
            for evaluation in cell.by_seed
            for name in names
        ]
    except UserError:
        return None
    return float(np.mean(by_set))
