"""A study as it was when it started: every cell's whole configuration, in one file that later edits do not touch.

    OUTPUTS/studies/NAME-SCALE/plan.json    the frozen plan
    OUTPUTS/studies/runs/DIGEST.json        the state of one run: done (and where its results are) or failed (and why)

A run is one job's configuration. Runs are named by their content, so that studies which share one share its state,
and the job itself finds trainings and evaluations that any earlier job has done.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cft.config.schema import BaselineSettings, Config, EvalSource, LoggerSettings
from cft.evaluation import pairs
from cft.evaluation.scores import METRICS
from cft.job.plan import Plan
from cft.study.spec import Cell, Experiment
from cft.system.digest import digest, from_plain
from cft.system.errors import UserError
from cft.system.files import read_json, read_record, write_json

FILE_NAME = "plan.json"
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Study:
    """An experiment with its runs."""

    experiment: Experiment
    overrides: list[str]  # for all jobs, as given on the command line
    seeds: list[int]  # that every trained cell is trained with; none for the configured one
    cells: dict[str, list[str]]  # names of a cell's runs, one a seed
    runs: dict[str, Config]  # by name, in the order of the cells
    packed: bool = False  # whether these are records alone, without what they were made of (cft/study/pack.py)

    @property
    def name(self) -> str:
        """Name of the study's folder."""
        return f"{self.experiment.name}-{self.experiment.scale}"

    @property
    def outputs(self) -> Path:
        """Folder of all its results."""
        return Path(next(iter(self.runs.values())).outputs)

    def save(self, folder: Path) -> None:
        """Freeze the plan."""
        write_json(folder / FILE_NAME, asdict(self))


@dataclass(frozen=True)
class RunState:
    """What became of a run. Folders are relative to the outputs."""

    state: str = ""  # DONE or FAILED; empty if the run never ended
    cause: str = ""  # of the failure
    scores: str = ""  # folder of the scores on the test sets
    training: str | None = None  # None where nothing is trained
    embedder: str | None = None  # the step of the training that is scored
    triplets: str | None = None  # folder of the cosines of held-out triplets; None without any
    triplets_before: str | None = None  # the same of the untrained model


def compose_study(
    experiment: Experiment, overrides: list[str], seeds: list[int], compose: Callable[[list[str]], Config]
) -> Study:
    """Work out every cell's configuration.

    Raises:
        UserError: naming the cell that does not compose.
    """
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={','.join(map(str, seeds))}: a seed named twice is one training, not two")
    cells: dict[str, list[str]] = {}
    runs: dict[str, Config] = {}
    for cell in experiment.cells:
        cells[cell.name] = []
        for seed in [None] if cell.base or not seeds else seeds:
            try:
                config = compose([*cell.overrides, *([] if seed is None else [f"seed={seed}"])])
                config = replace(config, baseline=BaselineSettings())  # a study's cells are what it compares
                _require_scores(config)
            except UserError as error:
                raise UserError(f"cell {cell.name!r} of {experiment.name}: {error}") from error
            group = config.logger.group or f"{experiment.name}-{experiment.scale}"
            name = run_digest(config)
            cells[cell.name].append(name)
            runs.setdefault(name, replace(config, logger=replace(config.logger, group=group)))
            if not config.train.steps:
                break  # nothing is trained: every seed has the same scores
    _require_one_place(experiment, runs.values())
    return Study(experiment, list(overrides), list(seeds), cells, runs)


def _require_one_place(experiment: Experiment, configs: Iterable[Config]) -> None:
    """Refuse cells that are kept in different folders: none of them would find the others' results."""
    places = list(dict.fromkeys(config.outputs for config in configs))
    if len(places) > 1:
        raise UserError(
            f"{experiment.name}: its cells have outputs={places[0]} and outputs={places[1]}; all of a study is in one "
            "folder, which the scale or the command line names"
        )


def _require_scores(config: Config) -> None:
    """Refuse cells without a score, and those of two trainings."""
    if config.first.data is not None:
        raise UserError("a study's cell is one training: write first=none, and name the first stage's run by adapter")
    if config.eval.source is EvalSource.none:
        raise UserError("eval=none: a study compares scores, and there would be none; choose another eval")


def run_digest(config: Config) -> str:
    """Name of a run: by all of its configuration that its results depend on, wherever they are kept."""
    return digest(replace(config, logger=LoggerSettings(), train=replace(config.train, keep=[]), outputs=""))


def load(folder: Path) -> Study | None:
    """The frozen plan in a study's folder; None if it was never started.

    Raises:
        UserError: if the file is damaged or of another version of cft.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    plan = read_json(path)
    try:
        experiment = Experiment(
            **{
                **plan["experiment"],
                "cells": [Cell(**cell) for cell in plan["experiment"]["cells"]],
                "comparisons": [(left, right) for left, right in plan["experiment"]["comparisons"]],
                "rows": [tuple(row) for row in plan["experiment"]["rows"]],
            }
        )
        # JSON is written with its keys sorted; the experiment keeps the order of the cells
        cells = {cell.name: plan["cells"][cell.name] for cell in experiment.cells}
        runs = {name: from_plain(Config, plan["runs"][name]) for names in cells.values() for name in names}
        return Study(experiment, plan["overrides"], plan["seeds"], cells, runs, plan.get("packed", False))
    except (TypeError, UserError) as error:  # a key too many, or one too few
        raise UserError(f"{path} is not a plan of this version of cft ({error}); remove it to plan anew") from error


def study_folder(outputs: Path, name: str) -> Path:
    """Folder of a study's plan and report."""
    return outputs / "studies" / name


def state_file(outputs: Path, run: str) -> Path:
    """File of a run's state."""
    return outputs / "studies" / "runs" / f"{run}.json"


def state_of(outputs: Path, run: str) -> RunState:
    """What became of a run."""
    path = state_file(outputs, run)
    return read_record(path, RunState) if path.exists() else RunState()


def note_done(plan: Plan, run: str) -> None:
    """Record that a run ended well, and where its results are."""
    owner = plan.result if plan.data else plan.base_folder
    folders = {
        "training": plan.folder if plan.data else None,
        "embedder": plan.result if plan.data else None,
        "scores": plan.scores_folder(owner),
        "triplets": plan.triplets_folder(owner) if plan.holdout else None,
        "triplets_before": plan.triplets_folder(plan.base_folder) if plan.holdout else None,
    }
    relative = {kind: folder and folder.relative_to(plan.outputs) for kind, folder in folders.items()}
    write_json(state_file(plan.outputs, run), {"state": DONE, **relative})


def note_failed(outputs: Path, run: str, cause: str) -> None:
    """Record that a run failed, and why."""
    write_json(state_file(outputs, run), {"state": FAILED, "cause": cause})


def note_begun(outputs: Path, run: str) -> None:
    """Let go of where a run's results were: made of other files, or removed since, they are not the run's any more."""
    if state_of(outputs, run).state == DONE:  # that it failed stays known, so that it can be retried
        state_file(outputs, run).unlink()


def is_done(plan: Plan) -> bool:
    """Whether nothing of a run is left to do."""
    return (not plan.data or plan.is_trained) and all(evaluations(plan).values())


def scores_folders(plan: Plan) -> list[Path]:
    """Folders of the scores that a run needs: of the base model and, where it trains, of the result."""
    return [plan.scores_folder(owner) for owner in _embedders(plan)]


def evaluations(plan: Plan) -> dict[Path, bool]:
    """Folders of all evaluations that a run needs, each with whether the evaluation is complete."""
    complete = {folder: is_scored(folder) for folder in scores_folders(plan)}
    if plan.holdout:
        for folder in map(plan.triplets_folder, _embedders(plan)):
            complete[folder] = (folder / METRICS).exists()
    return complete


def _embedders(plan: Plan) -> list[Path]:
    return [plan.base_folder, plan.result] if plan.data else [plan.base_folder]


def is_scored(folder: Path) -> bool:
    """Whether an evaluation on scored pairs is complete, with the record of its pairs."""
    return (folder / METRICS).exists() and (folder / pairs.FILE_NAME).exists()


def differences(old: Study, new: Study) -> list[str]:
    """Names of cells that two plans of a study give other configurations, or that only one of them has."""

    def digests(study: Study, cell: str) -> list[str] | None:
        # Named anew: a plan of an older version lacks settings that came since, which then have their defaults.
        return [run_digest(study.runs[run]) for run in study.cells[cell]] if cell in study.cells else None

    names = [*new.cells, *(name for name in old.cells if name not in new.cells)]
    return [name for name in names if digests(old, name) != digests(new, name)]
