"""A study as it was when it started: every cell's whole configuration, in one file that later edits do not touch.

    OUTPUTS/studies/NAME-SCALE/plan.json    the frozen plan
    OUTPUTS/studies/runs/DIGEST.json        what became of one run: done (and where its results are) or failed (and why)

A run is one job's configuration. Runs are named by their content, so that studies which share one share its state,
and the job itself finds trainings and evaluations that any earlier job has done.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cft.config.schema import Config, LoggerSettings
from cft.evaluation import pairs
from cft.evaluation.scores import METRICS
from cft.job.plan import Plan
from cft.study.spec import Cell, Experiment
from cft.system.digest import digest, from_plain
from cft.system.errors import UserError
from cft.system.files import read_json, write_json

FILE_NAME = "plan.json"
DONE, FAILED = "done", "failed"

Compose = Callable[[list[str]], Config]


@dataclass(frozen=True)
class Study:
    """An experiment with its runs.

    overrides: for all jobs, as given on the command line. seeds: of every trained cell; none leaves the configured
    one. cells: digests of a cell's runs, one a seed. runs: configurations by their digest, in the order of the cells.
    packed: these are records alone, without what they were made of (study_pack).
    """

    experiment: Experiment
    overrides: list[str]
    seeds: list[int]
    cells: dict[str, list[str]]
    runs: dict[str, Config]
    packed: bool = False

    @property
    def name(self) -> str:
        """Of the study's folder."""
        return f"{self.experiment.name}-{self.experiment.scale}"

    @property
    def outputs(self) -> Path:
        """Where all its results are."""
        return Path(next(iter(self.runs.values())).outputs)

    def save(self, folder: Path) -> None:
        """Freeze."""
        write_json(folder / FILE_NAME, asdict(self))


def compose_study(experiment: Experiment, overrides: list[str], seeds: list[int], compose: Compose) -> Study:
    """Work out every cell's configuration.

    Raises:
        UserError: naming the cell that does not compose.
    """
    cells: dict[str, list[str]] = {}
    runs: dict[str, Config] = {}
    for cell in experiment.cells:
        cells[cell.name] = []
        for seed in [None] if cell.base or not seeds else seeds:
            try:
                config = compose([*cell.overrides, *([] if seed is None else [f"seed={seed}"])])
            except UserError as error:
                raise UserError(f"cell {cell.name!r} of {experiment.name}: {error}") from error
            config.logger.group = config.logger.group or f"{experiment.name}-{experiment.scale}"
            name = run_digest(config)
            cells[cell.name].append(name)
            runs.setdefault(name, config)
    return Study(experiment, list(overrides), list(seeds), cells, runs)


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
    told = read_json(path)
    try:
        laid = told["experiment"]
        experiment = Experiment(
            **{
                **laid,
                "cells": [Cell(**cell) for cell in laid["cells"]],
                "comparisons": [(one, other) for one, other in laid["comparisons"]],
                "rows": [tuple(row) for row in laid["rows"]],
            }
        )
        # JSON is written with its keys sorted; the experiment keeps the order of the cells
        cells = {cell.name: told["cells"][cell.name] for cell in experiment.cells}
        order = [name for names in cells.values() for name in names]
        runs = {name: from_plain(Config, told["runs"][name]) for name in order}
        return Study(experiment, told["overrides"], told["seeds"], cells, runs, told.get("packed", False))
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} is not a plan of this version of cft ({error}); remove it to plan anew") from error


def study_folder(outputs: Path, name: str) -> Path:
    """Where a study's plan and report are kept."""
    return outputs / "studies" / name


def state_file(outputs: Path, run: str) -> Path:
    """Where what became of a run is noted."""
    return outputs / "studies" / "runs" / f"{run}.json"


def state_of(outputs: Path, run: str) -> dict:
    """What became of a run; {} if it never ended."""
    path = state_file(outputs, run)
    return read_json(path) if path.exists() else {}


def note_done(plan: Plan, run: str) -> None:
    """Note that a run ended well, and where its results are."""
    write_json(state_file(plan.outputs, run), {"state": DONE, **places(plan)})


def note_failed(outputs: Path, run: str, cause: str) -> None:
    """Note that a run failed, and why."""
    write_json(state_file(outputs, run), {"state": FAILED, "cause": cause})


def places(plan: Plan) -> dict[str, str | None]:
    """Folders of a run's results, relative to the outputs."""
    owner = plan.result if plan.data else plan.base_folder

    def within(path: Path) -> str:
        return str(path.relative_to(plan.outputs))

    return {
        "training": within(plan.folder) if plan.data else None,
        "embedder": within(plan.result) if plan.data else None,
        "scores": within(plan.scores_folder(owner)),
        "triplets": within(plan.triplets_folder(owner)) if plan.holdout else None,
        "triplets_before": within(plan.triplets_folder(plan.base_folder)) if plan.holdout else None,
    }


def is_done(plan: Plan) -> bool:
    """Whether nothing of a run is left to do."""
    return (not plan.data or plan.is_trained) and all(is_evaluated(folder) for folder in evaluations(plan))


def evaluations(plan: Plan) -> list[Path]:
    """Folders of the scores that a run needs: of the base model and, where it trains, of the result."""
    owners = [plan.base_folder, plan.result] if plan.data else [plan.base_folder]
    found = [plan.scores_folder(owner) for owner in owners]
    return found + ([plan.triplets_folder(owner) for owner in owners] if plan.holdout else [])


def is_evaluated(folder: Path) -> bool:
    """Whether an evaluation is whole; one on scored pairs has a record of them beside it."""
    if not (folder / METRICS).exists():
        return False
    return folder.name.startswith("triplets-") or (folder / pairs.FILE_NAME).exists()


def seconds_of(folder: Path) -> float | None:
    """How long an evaluation took; None if it has not been made."""
    path = folder / METRICS
    return read_json(path).get("seconds") if path.exists() else None


def differences(old: Study, new: Study) -> list[str]:
    """Names of cells that two plans of a study give other configurations, or that only one of them has."""

    def told(study: Study, cell: str) -> list[str] | None:
        # Named anew: a plan of an older version lacks settings that came since, which then have their defaults.
        return [run_digest(study.runs[run]) for run in study.cells[cell]] if cell in study.cells else None

    names = [*new.cells, *(name for name in old.cells if name not in new.cells)]
    return [name for name in names if told(old, name) != told(new, name)]
