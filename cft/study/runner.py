"""Carry out studies: say what is planned, run what is left, one run after the other or through a Hydra launcher."""

import gc
import logging
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from cft.config.schema import Config
from cft.evaluation.scores import METRICS
from cft.job import runner
from cft.job.plan import InputCache, Plan, make_plan
from cft.study import plan as study_plan
from cft.study.plan import DONE, FAILED, Study
from cft.system import signals
from cft.system.console import report_error
from cft.system.digest import digest, to_plain
from cft.system.errors import UserError
from cft.system.files import read_json, write_json
from cft.training import checkpoint
from cft.training.trainer import RowCallback

log = logging.getLogger(__name__)

# Steps to see before the time left is estimated; the very first one is slower than the rest.
_STEPS_BEFORE_ESTIMATE = 5


@dataclass
class _Worklist:
    """All runs of some studies, each once."""

    outputs: Path
    runs: dict[str, Config] = field(default_factory=dict)  # by name
    titles: dict[str, str] = field(default_factory=dict)  # what messages call a run
    plans: dict[str, Plan] = field(default_factory=dict)  # of the runs that can be planned
    broken: dict[str, UserError] = field(default_factory=dict)  # why the others cannot
    inputs: InputCache = field(default_factory=InputCache)  # what the plans loaded

    @property
    def trainings(self) -> dict[Path, list[str]]:
        """Folders of trainings, with the names of the runs that share them."""
        sharing: dict[Path, list[str]] = {}
        for name, plan in self.plans.items():
            if plan.data:
                sharing.setdefault(plan.folder, []).append(name)
        return sharing

    @property
    def evaluations(self) -> dict[Path, bool]:
        """Folders of evaluations, with whether each is complete."""
        return {folder: done for plan in self.plans.values() for folder, done in study_plan.evaluations(plan).items()}


def run(
    studies: list[Study], *, only_failed: bool, dry_run: bool, launcher: str | None, launcher_overrides: list[str]
) -> int:
    """Do what is left of some studies.

    Args:
        studies: as frozen, all under the same outputs.
        only_failed: leave out what never started.
        dry_run: only say what is planned and what of it is done.
        launcher: a choice of Hydra's group hydra/launcher; None runs in this process, one after the other.
        launcher_overrides: `hydra.launcher.KEY=VALUE`.

    Returns:
        How many cells are missing in the end; of a dry run, how many runs cannot be planned.
    """
    work = _gather(studies)
    todo = _announce(studies, work)
    if dry_run:
        for name, error in work.broken.items():
            report_error(UserError(f"{work.titles[name]} cannot run: {error}"))
        return len(work.broken)
    if only_failed:
        todo = [name for name in todo if study_plan.state_of(work.outputs, name).state == FAILED]
        log.info("to be retried: %d", len(todo))
    for name in todo:
        study_plan.note_begun(work.outputs, name)
    if launcher and todo:
        _launch(todo, work, launcher, launcher_overrides)
    else:
        _run_in_sequence(todo, work)
    return _conclude(studies, work)


def _gather(studies: list[Study]) -> _Worklist:
    """Every run once, and its plan; runs that share a training keep the same steps of it."""
    work = _Worklist(studies[0].outputs)
    for study in studies:
        for cell, names in study.cells.items():
            for name in names:
                work.runs.setdefault(name, study.runs[name])
                work.titles.setdefault(name, f"{study.experiment.name}: {cell}")
    for name, config in work.runs.items():
        try:
            work.plans[name] = make_plan(config, work.inputs)
        except UserError as error:
            work.broken[name] = error
    for names in work.trainings.values():
        # whichever trains first keeps the steps that the others are going to ask for
        plans = [work.plans[name] for name in names]
        kept = sorted({step for p in plans for step in (*p.config.train.keep, p.stop_at) if step < p.steps})
        for name, plan in zip(names, plans, strict=True):
            config = replace(plan.config, train=replace(plan.config.train, keep=kept))
            work.runs[name], work.plans[name] = config, replace(plan, config=config)
    return work


def _announce(studies: list[Study], work: _Worklist) -> list[str]:
    """Say what is planned and what of it is done; returns the runs that are left."""
    todo = [name for name in work.runs if name in work.broken or not study_plan.is_done(work.plans[name])]
    for name in work.runs:
        if name not in todo:
            study_plan.note_done(work.plans[name], name)
    trainings, evaluations = work.trainings, work.evaluations
    log.info(
        "%s: %d cells in %d runs, %d of them done; %d trainings, %d of them done; %d evaluations, %d of them done%s",
        ", ".join(study.name for study in studies),
        sum(len(study.cells) for study in studies),
        len(work.runs),
        len(work.runs) - len(todo),
        len(trainings),
        sum(all(work.plans[name].is_trained for name in names) for names in trainings.values()),
        len(evaluations),
        sum(evaluations.values()),
        f"; not counted: {len(work.broken)} runs that cannot start" if work.broken else "",
    )
    return todo


class _Estimate:
    """Seconds that a step and an evaluation have taken in this process, and what is left of both."""

    def __init__(self, work: _Worklist) -> None:
        self._work = work
        self._steps: list[float] = []

    def on_row(self, row: dict) -> None:
        """Take note of a step's time; after the first few, say what is left."""
        if row["event"] != "step":
            return
        self._steps.append(row["seconds"])
        if len(self._steps) == _STEPS_BEFORE_ESTIMATE:
            self.say(steps_done=len(self._steps))

    def say(self, steps_done: int = 0) -> None:
        """Say how long the rest will take, as far as it can be known."""
        plans = self._work.plans.values()
        goals: dict[Path, int] = {}
        for plan in plans:
            if plan.data and not plan.is_trained:
                goals[plan.folder] = max(goals.get(plan.folder, 0), plan.stop_at)
        steps = max(0, sum(goal - checkpoint.step_of(folder) for folder, goal in goals.items()) - steps_done)
        # those of the held-out triplets take next to no time
        metrics = {folder / METRICS for plan in plans for folder in study_plan.scores_folders(plan)}
        evaluated = [read_json(path) for path in metrics if path.exists()]
        times = [record["seconds"] for record in evaluated if record.get("seconds") is not None]
        left = len(metrics) - len(evaluated)
        usual = self._steps[1:] or self._steps
        if steps and not usual:
            return
        seconds = steps * (sum(usual) / len(usual) if usual else 0) + left * (sum(times) / len(times) if times else 0)
        unknown = " (their time is not known before the first)" if left and not times else ""
        log.info("about %s to go: %d training steps, %d evaluations%s", _duration(seconds), steps, left, unknown)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def _run_in_sequence(todo: list[str], work: _Worklist) -> None:
    """One run after the other in this process; a run that fails is reported at once and the others go on."""
    estimate = _Estimate(work)
    for number, name in enumerate(todo, start=1):
        log.info("\n# %d of %d, %s", number, len(todo), work.titles[name])
        if carry_out(name, work.runs[name], work.inputs, estimate.on_row) and number < len(todo):
            estimate.say()


def carry_out(name: str, config: Config, inputs: InputCache | None = None, on_row: RowCallback | None = None) -> bool:
    """Do one run and record its state.

    Args:
        name: of the run. config: its configuration. inputs, on_row: as `cft.job.runner.run` takes them.

    Returns:
        Whether it ended well; if not, the cause has been reported and recorded.
    """
    inputs = inputs or InputCache()
    try:
        plan = make_plan(config, inputs)
        runner.run(config, inputs, on_row, alone=False)
    except Exception as error:  # whatever it is, the other cells must go on
        report_error(error)
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        study_plan.note_failed(Path(config.outputs), name, cause)
        return False
    finally:
        gc.collect()
    study_plan.note_done(plan, name)
    return True


def _groups(todo: list[str], work: _Worklist) -> list[list[str]]:
    """Runs that must not go in parallel, together: those that share a training."""
    training_of = {name: str(folder) for folder, names in work.trainings.items() for name in names}
    groups: dict[str, list[str]] = {}
    for name in todo:
        groups.setdefault(training_of.get(name, name), []).append(name)
    return list(groups.values())


def _launch(todo: list[str], work: _Worklist, launcher: str, launcher_overrides: list[str]) -> None:
    """Hand the runs to one of Hydra's launchers, in groups that share no training."""
    folder = study_plan.study_folder(work.outputs, "launched")
    groups = _groups(todo, work)
    handed = {"groups": groups, "runs": {name: to_plain(work.runs[name]) for name in todo}}
    # by its content as well: two that are begun in the same second must not do one another's work
    path = folder / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{digest(handed)}.json"
    write_json(path, handed)
    log.info("%d groups of runs go to hydra/launcher=%s", len(groups), launcher)
    if launcher.startswith("submitit"):
        log.info("what they print goes to %s", folder / ".submitit")
    numbers = ",".join(map(str, range(len(groups))))
    command = [sys.executable, "-m", "cft.study.worker", "-m", f"runs='{path.resolve()}'", f"group={numbers}"]
    command += [f"hydra/launcher={launcher}", f"hydra.sweep.dir='{folder.resolve()}'", *launcher_overrides]
    if signals.run_child(command):
        log.info("the launcher ended with an error; what its jobs finished is kept")


def _conclude(studies: list[Study], work: _Worklist) -> int:
    """Say which cells are missing and why; returns how many."""
    missing = [
        (study.name, cell, state.cause or "it never ended")
        for study in studies
        for cell, names in study.cells.items()
        for state in (study_plan.state_of(work.outputs, name) for name in names)
        if state.state != DONE
    ]
    for study_name, cell, cause in missing:
        log.info("%s: %s is missing: %s", study_name, cell, cause)
    if missing:
        log.info("after mending the cause: the same command with `retry` in the place of `run`")
    return len(missing)
