"""Carry out studies: say what is planned, run what is left, one run after the other or through a Hydra launcher."""

import gc
import logging
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cft.config.schema import Config
from cft.evaluation.scores import METRICS
from cft.job import runner
from cft.job.plan import InputCache, Plan, make_plan
from cft.study import plan as study_plan
from cft.study.plan import DONE, FAILED, Study
from cft.system.console import report_error
from cft.system.digest import to_plain
from cft.system.errors import UserError
from cft.system.files import write_json
from cft.training import checkpoint
from cft.training.trainer import RowCallback

log = logging.getLogger(__name__)

# Steps to see before the time left is estimated; the very first one is slower than the rest.
_STEPS_BEFORE_ESTIMATE = 5


@dataclass
class _Work:
    """All runs of some studies.

    runs: configurations by name. titles: what to call a run. plans: of the runs that can be planned. broken: why the
    others cannot. inputs: what the plans loaded.
    """

    outputs: Path
    runs: dict[str, Config] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    broken: dict[str, UserError] = field(default_factory=dict)
    inputs: InputCache = field(default_factory=InputCache)


def run(
    studies: list[Study], *, only_failed: bool, only_say: bool, launcher: str | None, launcher_overrides: list[str]
) -> int:
    """Do what is left of some studies.

    Args:
        studies: as frozen, all under the same outputs.
        only_failed: leave out what never started.
        only_say: what is planned and what of it is done.
        launcher: a choice of Hydra's group hydra/launcher; None runs here, one after the other.
        launcher_overrides: `hydra.launcher.KEY=VALUE`.

    Returns:
        How many cells are missing in the end; of a plan, how many runs cannot be planned.
    """
    work = _gather(studies)
    todo = _announce(studies, work)
    if only_say:
        for name, error in work.broken.items():
            report_error(UserError(f"{work.titles[name]} cannot run: {error}"))
        return len(work.broken)
    if only_failed:
        todo = [name for name in todo if study_plan.state_of(work.outputs, name).get("state") == FAILED]
        log.info("to be retried: %d", len(todo))
    if launcher and todo:
        _launch(todo, work, launcher, launcher_overrides)
    else:
        _run_in_sequence(todo, work)
    return _conclude(studies, work)


def _gather(studies: list[Study]) -> _Work:
    """Every run once, and its plan."""
    work = _Work(studies[0].outputs)
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
    for folder in {plan.folder for plan in work.plans.values() if plan.data}:
        # whoever trains first keeps the steps that the others are going to ask for
        sharing = [plan for plan in work.plans.values() if plan.data and plan.folder == folder]
        wanted = {step for plan in sharing for step in (*plan.config.train.keep, plan.stop_at) if step < plan.steps}
        for plan in sharing:
            plan.config.train.keep = sorted(wanted)
    return work


def _announce(studies: list[Study], work: _Work) -> list[str]:
    """Say what is planned and what of it is done; returns the runs that are left."""
    plans = list(work.plans.values())
    trainings = {plan.folder for plan in plans if plan.data}
    scored = {folder for plan in plans for folder in study_plan.evaluations(plan)}
    todo = [run for run in work.runs if run in work.broken or not study_plan.is_done(work.plans[run])]
    for run in work.runs:
        if run not in todo:
            study_plan.note_done(work.plans[run], run)
    trained = sum(all(p.is_trained for p in plans if p.data and p.folder == folder) for folder in trainings)
    cells = sum(len(study.cells) for study in studies)
    log.info(
        "%s: %d cells in %d runs, %d of them done; %d trainings, %d of them done; %d evaluations, %d of them done%s",
        ", ".join(study.name for study in studies),
        cells,
        len(work.runs),
        len(work.runs) - len(todo),
        len(trainings),
        trained,
        len(scored),
        sum(map(study_plan.is_evaluated, scored)),
        f"; not counted: {len(work.broken)} runs that cannot start" if work.broken else "",
    )
    return todo


class _Estimate:
    """Seconds a step and an evaluation have taken here, and what is left of both."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._steps: list[float] = []

    def watch(self, row: dict) -> None:
        """Take note of a step's time; after the first few, say what is left."""
        if row["event"] != "step":
            return
        self._steps.append(row["seconds"])
        if len(self._steps) == _STEPS_BEFORE_ESTIMATE:
            self.say(done_here=len(self._steps))

    def say(self, done_here: int = 0) -> None:
        """Say how long the rest will take, as far as it can be known."""
        goals: dict[Path, int] = {}
        for plan in self._work.plans.values():
            if plan.data and not plan.is_trained:
                goals[plan.folder] = max(goals.get(plan.folder, 0), plan.stop_at)
        steps = max(0, sum(goal - checkpoint.step_of(folder) for folder, goal in goals.items()) - done_here)
        folders = {folder for plan in self._work.plans.values() for folder in study_plan.evaluations(plan)}
        on_pairs = [folder for folder in folders if not folder.name.startswith("triplets-")]  # those take the time
        left = sum(not (folder / METRICS).exists() for folder in on_pairs)
        times = [seconds for seconds in map(study_plan.seconds_of, on_pairs) if seconds is not None]
        usual = self._steps[1:] or self._steps
        if steps and not usual:
            return
        seconds = steps * (sum(usual) / len(usual) if usual else 0) + left * (sum(times) / len(times) if times else 0)
        unknown = " (their time is not known before the first)" if left and not times else ""
        log.info("about %s to go: %d training steps, %d evaluations%s", _duration(seconds), steps, left, unknown)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def _run_in_sequence(todo: list[str], work: _Work) -> None:
    """One run after the other in this process; a run that fails is reported at once and the others go on."""
    estimate = _Estimate(work)
    for number, run in enumerate(todo, start=1):
        log.info("\n# %d of %d, %s", number, len(todo), work.titles[run])
        if carry_out(run, work.runs[run], work.inputs, estimate.watch) and number < len(todo):
            estimate.say()


def carry_out(name: str, config: Config, inputs: InputCache | None = None, watch: RowCallback | None = None) -> bool:
    """Do one run and note what became of it.

    Args:
        name: of the run. config: its configuration. inputs, watch: as `job.run` takes them.

    Returns:
        Whether it ended well; if not, the cause has been reported and noted.
    """
    inputs = inputs or InputCache()
    outputs = Path(config.outputs)
    try:
        plan = make_plan(config, inputs)
        runner.run(config, inputs, watch)
    except Exception as error:  # whatever it is, the other cells must go on
        report_error(error)
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        study_plan.note_failed(outputs, name, cause)
        return False
    finally:
        gc.collect()
    study_plan.note_done(plan, name)
    return True


def _groups(todo: list[str], plans: dict[str, Plan]) -> list[list[str]]:
    """Runs that must not go in parallel, together: those that share a training."""
    groups: dict[str, list[str]] = {}
    for run in todo:
        plan = plans.get(run)
        shared = str(plan.folder) if plan and plan.data else run
        groups.setdefault(shared, []).append(run)
    return list(groups.values())


def _launch(todo: list[str], work: _Work, launcher: str, launcher_overrides: list[str]) -> None:
    """Hand the runs to one of Hydra's launchers, in groups that share no training."""
    folder = study_plan.study_folder(work.outputs, "launched")
    path = folder / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"
    groups = _groups(todo, work.plans)
    write_json(path, {"groups": groups, "runs": {run: to_plain(work.runs[run]) for run in todo}})
    log.info("%d groups of runs go to hydra/launcher=%s", len(groups), launcher)
    if launcher.startswith("submitit"):
        log.info("what they print goes to %s", folder / ".submitit")
    numbers = ",".join(str(number) for number in range(len(groups)))
    command = [sys.executable, "-m", "cft.study.worker", "-m", f"runs='{path.resolve()}'", f"group={numbers}"]
    command += [f"hydra/launcher={launcher}", f"hydra.sweep.dir='{folder.resolve()}'", *launcher_overrides]
    if subprocess.run(command, check=False).returncode:
        log.info("the launcher ended with an error; what its jobs finished is kept")


def _conclude(studies: list[Study], work: _Work) -> int:
    """Say which cells are missing and why; returns how many."""
    failed = 0
    for study in studies:
        for cell, runs in study.cells.items():
            for run in runs:
                state = study_plan.state_of(work.outputs, run)
                if state.get("state") == DONE:
                    continue
                failed += 1
                log.info("%s: %s is missing: %s", study.name, cell, state.get("cause", "it never ended"))
    if failed:
        log.info("after mending the cause: the same command with `retry` in the place of `run`")
    return failed
