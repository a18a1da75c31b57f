"""What a study found: the scores of its cells with intervals, verdicts on its comparisons, and the overlap audit."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from cft.evaluation import pairs
from cft.evaluation.bootstrap import MEAN, RESAMPLES, Difference, Interval, resample
from cft.evaluation.pairs import Arrays, Pairs
from cft.evaluation.scores import Evaluation, load_evaluation, spearman
from cft.job.costs import Cost, training_cost
from cft.study import plan
from cft.study.plan import DONE, FAILED, Study
from cft.study.spec import Cell
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import read_json, write_json

FILE_NAME = "verdicts.json"


@dataclass(frozen=True)
class CellFinding:
    """One cell.

    status: "" where all its runs are done, otherwise why not. stale: the files now say something else than what was
    run. by_seed: an evaluation a seed. triplets, triplets_before: of the held-out triplets, if there are any, by this
    embedder and by its untrained model. intervals: by set, and under MEAN of the mean over sets; empty without
    results. training: folder of its training, if it has one. lr, step: of the training; step 0 is the untrained model.
    costs: of its trainings up to that step, one a seed, as far as they left records.
    """

    cell: Cell
    status: str
    stale: bool
    by_seed: list[Evaluation]
    triplets: Evaluation | None
    triplets_before: Evaluation | None
    intervals: dict[str, Interval]
    training: Path | None
    lr: float
    step: int | None
    costs: list[Cost] = field(default_factory=list)

    @property
    def overall(self) -> list[float]:
        """Mean over the sets, a number a seed."""
        return [found.mean for found in self.by_seed]

    @property
    def deviation(self) -> float:
        """Population standard deviation over the sets, as in the paper, of the scores' mean over the seeds."""
        sets = [found.scores for found in self.by_seed]
        return float(np.std([np.mean([scores[name] for scores in sets]) for name in sets[0]]))


@dataclass(frozen=True)
class Comparison:
    """One cell against another, by set and on the mean."""

    one: str
    other: str
    differences: dict[str, Difference]


@dataclass(frozen=True)
class SetOverlap:
    """Pairs of a test set that are not its own: shared with other sets, or with sentences seen in training."""

    pairs: int
    shared: int
    one_seen: int
    both_seen: int


@dataclass(frozen=True)
class Overlap:
    """The overlap audit.

    sets: counts by set. scores: by cell, the mean over the sets on all pairs, without the pairs that have a sentence
    in the training data, and with every distinct pair counted once (in the first set it stands in); None where a set
    has too few pairs left.
    """

    sets: dict[str, SetOverlap]
    scores: dict[str, tuple[float, float | None, float | None]]


@dataclass(frozen=True)
class Findings:
    """All of a study."""

    study: Study
    cells: list[CellFinding]
    sets: dict[str, int]
    comparisons: list[Comparison] = field(default_factory=list)
    overlap: Overlap | None = None

    @property
    def shown(self) -> list[CellFinding]:
        """Cells that tables show."""
        return [found for found in self.cells if not found.cell.hidden]

    @property
    def done(self) -> list[CellFinding]:
        """Shown cells with results."""
        return [found for found in self.shown if found.by_seed]


def collect(study: Study, stale: list[str], *, resamples: int = RESAMPLES) -> Findings:
    """Read what a study's runs left and work out intervals, verdicts and overlaps.

    Args:
        study: its plan.
        stale: names of cells whose configuration differs by now.
        resamples: for intervals and verdicts.

    Raises:
        UserError: if cells were scored on different pairs.
    """
    outputs = study.outputs
    folders: dict[str, list[Path]] = {}
    cells = []
    for cell in study.experiment.cells:
        states = [plan.state_of(outputs, run) for run in study.cells[cell.name]]
        status = _status(states, outputs)
        found = [] if status else [load_evaluation(outputs / state["scores"]) for state in states]
        by_seed = [evaluation for evaluation in found if evaluation is not None]
        if by_seed:
            folders[cell.name] = [outputs / state["scores"] for state in states]
        first = states[0] if states and not status else {}
        config = study.runs[study.cells[cell.name][0]]
        step = 0 if cell.base else (config.eval.step or config.train.steps)
        cells.append(
            CellFinding(
                cell=cell,
                status=status,
                stale=cell.name in stale,
                by_seed=by_seed,
                triplets=load_evaluation(outputs / first["triplets"]) if first.get("triplets") else None,
                triplets_before=load_evaluation(outputs / first["triplets_before"]) if first.get("triplets") else None,
                intervals={},
                training=outputs / first["training"] if first.get("training") else None,
                lr=config.lr,
                step=step,
                costs=_costs([] if status or cell.base else states, outputs, config.train.batch_size, step),
            )
        )
    if not folders:
        return Findings(study, cells, {})
    data = {name: pairs.read(of_seeds[0]) for name, of_seeds in folders.items()}
    reference = next(iter(data.values()))
    _require_same_pairs(data, reference)
    comparable = [(one, other) for one, other in study.experiment.comparisons if one in folders and other in folders]
    intervals, comparisons = _verdicts(study, cells, folders, comparable, reference, resamples)
    cells = [replace(found, intervals=intervals.get(found.cell.name, {})) for found in cells]
    sizes = {name: len(scores) for name, scores in reference.scores.items()}
    return Findings(study, cells, sizes, comparisons, _overlap(cells, data, reference))


def _costs(states: list[dict], outputs: Path, batch_size: int, until: int) -> list[Cost]:
    """What the trainings of a cell took."""
    folders = [outputs / state["training"] for state in states if state.get("training")]
    found = [training_cost(folder, batch_size=batch_size, stop_at=until) for folder in folders]
    return [cost for cost in found if cost is not None]


def _status(states: list[dict], outputs: Path) -> str:
    """Why a cell has no results; empty if it has."""
    for state in states:
        if state.get("state") == FAILED:
            return f"failed: {state['cause']}"
        if state.get("state") != DONE or not plan.is_evaluated(outputs / state["scores"]):
            return "missing"
    return "" if states else "missing"


def _require_same_pairs(data: dict[str, Pairs], reference: Pairs) -> None:
    first = next(iter(data))
    for name, found in data.items():
        same = list(found.scores) == list(reference.scores) and all(
            np.array_equal(found.identity[key], reference.identity[key])
            and np.array_equal(found.scores[key], reference.scores[key])
            for key in reference.scores
        )
        if not same:
            raise UserError(
                f"cells {first!r} and {name!r} were scored on different pairs: give them the same eval.* settings"
            )


def _verdicts(
    study: Study,
    cells: list[CellFinding],
    folders: dict[str, list[Path]],
    comparable: list[tuple[str, str]],
    reference: Pairs,
    resamples: int,
) -> tuple[dict[str, dict[str, Interval]], list[Comparison]]:
    """Intervals and differences, out of the study's folder if they were worked out for these very results before."""
    names = list(folders)
    known_by = digest([{name: list(map(str, of)) for name, of in folders.items()}, comparable, resamples])
    path = plan.study_folder(study.outputs, study.name) / FILE_NAME
    told = read_json(path) if path.exists() else {}
    if told.get("of") != known_by:
        by_name = {found.cell.name: found for found in cells}
        embedders = [[evaluation.cosines for evaluation in by_name[name].by_seed] for name in names]
        drawn = resample(embedders, reference.scores, reference.identity, resamples=resamples)
        differences = drawn.differences([(names.index(one), names.index(other)) for one, other in comparable])
        told = {
            "of": known_by,
            "resamples": resamples,
            "intervals": {
                name: {key: asdict(drawn.interval(place, key)) for key in drawn.names}
                for place, name in enumerate(names)
            },
            "comparisons": [
                {"one": one, "other": other, "differences": {key: asdict(value) for key, value in by_set.items()}}
                for (one, other), by_set in zip(comparable, differences, strict=True)
            ],
        }
        write_json(path, told)
    order = [*reference.scores, MEAN]
    intervals = {name: {key: Interval(**by_set[key]) for key in order} for name, by_set in told["intervals"].items()}
    comparisons = [
        Comparison(entry["one"], entry["other"], {key: Difference(**entry["differences"][key]) for key in order})
        for entry in told["comparisons"]
    ]
    return intervals, comparisons


def _overlap(cells: list[CellFinding], data: dict[str, Pairs], reference: Pairs) -> Overlap:
    """Count what sets share with one another and with the training data, and score without it."""
    seen = next((found.seen for found in data.values() if found.seen), None)
    home: dict[int, str] = {}
    places: dict[int, set[str]] = {}
    for name, numbers in reference.identity.items():
        for number in numbers.tolist():
            home.setdefault(number, name)
            places.setdefault(number, set()).add(name)
    counts = {}
    once, unseen = {}, {}
    for name, numbers in reference.identity.items():
        sentences = seen[name] if seen else np.zeros(len(numbers), dtype=np.uint8)
        _, first = np.unique(numbers, return_index=True)
        own = np.zeros(len(numbers), dtype=bool)
        own[first] = True
        own &= np.array([home[number] == name for number in numbers.tolist()])
        once[name], unseen[name] = own, sentences == 0
        counts[name] = SetOverlap(
            pairs=len(numbers),
            shared=sum(len(places[number]) > 1 for number in numbers.tolist()),
            one_seen=int(np.sum(sentences == 1)),
            both_seen=int(np.sum(sentences == 2)),
        )
    scores = {}
    for found in cells:
        if found.by_seed and not found.cell.hidden:
            mean = float(np.mean(found.overall))
            without = _mean_on(found, reference.scores, unseen) if seen else None
            scores[found.cell.name] = (mean, without, _mean_on(found, reference.scores, once))
    return Overlap(counts, scores)


def _mean_on(found: CellFinding, scores: Arrays, kept: Arrays) -> float | None:
    """Mean over sets and seeds on the kept pairs; sets with none left do not count, None if a set cannot be scored."""
    names = [name for name in scores if kept[name].any()]
    try:
        return float(
            np.mean(
                [
                    spearman(evaluation.cosines[name][kept[name]], scores[name][kept[name]].tolist(), name)
                    for evaluation in found.by_seed
                    for name in names
                ]
            )
        )
    except UserError:
        return None
