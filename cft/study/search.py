"""A search for good settings with Optuna."""

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cft.config.compose import compose_config
from cft.config.schema import Config, EvalSettings, EvalSource
from cft.config.sweeps import Dimension, search_space
from cft.data.retrieval import watched_sets
from cft.data.training_data import TrainingData
from cft.evaluation.pairs import overlapping
from cft.evaluation.retrieval import HEADLINE, MEASURE_NAMES
from cft.job import figures, runner
from cft.job.plan import InputCache, Plan, make_plan
from cft.job.run_folder import RunFolder, development_scores
from cft.study.arguments import outputs_of
from cft.study.document import Block, Document, Heading, Picture, Table, Text, to_markdown
from cft.system.console import report_error
from cft.system.digest import digest
from cft.system.errors import GivenUp, UserError
from cft.system.files import exclusive_lock, read_json, write_json, write_text
from cft.system.tables import Row
from cft.system.text import shorten

log = logging.getLogger("cft.search")

SPACE_FILE = "space.json"

# Attributes of a trial.
_PROBLEM = "problem"  # why it failed
_TRAINING = "training"  # a name that holds all that its training depends on
_JUDGE = "judge"  # what it was judged by, a short name of its content

_SPEARMAN = "Spearman"


class _FailedBefore(UserError):
    """The sampler proposed settings that have failed: no new trial."""


def search(name: str, overrides: list[str], *, trials: int, seed: int = 0, prune: bool = True) -> list[Row]:
    """Carry out a search, or what is left of it.

    Args:
        name: of its folder. overrides: fixed settings, and settings with several values or an interval.
        trials: in all, those of earlier calls included. seed: of the proposals. prune: whether to give up trainings
            that fall behind.

    Returns:
        The trials, the best first, under a header.

    Raises:
        UserError: if nothing is searched, a value is none, there are no development pairs, or the folder holds another
            search.
    """
    if "/" in name or "=" in name or not name.strip("."):
        raise UserError(f"{name!r} is no name for a search: letters, digits, - and _")
    fixed, space = search_space(overrides)
    if not space:
        raise UserError("nothing is searched: give a setting several values, as in lora.rank=4,8, or an interval")
    if trials < 1:
        raise UserError(f"--trials {trials}: must be 1 or more")
    folder = outputs_of(fixed) / "searches" / name
    _require_same_search(folder, sorted(overrides))
    inputs = InputCache()
    lowest = [f"{d.key}={d.choices[0] if d.choices else int(d.low) if d.whole else d.low}" for d in space]
    first = compose_config([*fixed, *lowest])
    _check_judge(first, inputs)
    measure = _measure(inputs.data(first.data))
    with exclusive_lock(folder):  # so trials that are still running are those of killed calls
        study = _study(folder, space, seed, prune=prune)
        _require_same_inputs(folder, study, fixed, inputs)
        write_json(folder / SPACE_FILE, sorted(overrides))
        _requeue_interrupted(study)
        _make_trials(study, trials, space, lambda trial: _trial(trial, fixed, space, inputs))
        table = ranking(study, space, measure)
        _report(folder, study, table, space, measure)
    return table


def _make_trials(study: Any, trials: int, space: list[Dimension], objective: Callable[[Any], float]) -> None:
    """Make the trials that are left, of which those count that came to a result or failed by their settings."""
    size = math.prod(len(dimension.choices) for dimension in space)  # 0 with an interval, which has no end
    while (left := trials - len(_counted(study))) > 0:
        before = len(_counted(study))
        if size and len({_settings(trial) for trial in _counted(study)}) >= size:
            log.info("all %d combinations were tried", size)
            return
        study.optimize(objective, n_trials=left, catch=(UserError,))
        if len(_counted(study)) == before:
            log.warning("the search ends here: what would be tried next has failed before")
            return


def _counted(study: Any) -> list[Any]:
    """Trials that came to a result, were given up or failed by their settings; not those that were interrupted."""
    from optuna.trial import TrialState

    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in study.trials if trial.state in ended or _PROBLEM in trial.user_attrs]


def _settings(trial: Any) -> tuple[tuple[str, Any], ...]:
    """What was proposed for a trial."""
    return tuple(sorted(trial.params.items()))


def _require_same_inputs(folder: Path, study: Any, fixed: list[str], inputs: InputCache) -> None:
    """Refuse to go on where a trial would be another training by now: its scores do not compare with new ones."""
    for trial in _counted(study):
        before = trial.user_attrs.get(_TRAINING)
        if before is None:  # of an older version, or it failed before its training had a name
            continue
        chosen = [f"{key}={value}" for key, value in trial.params.items()]
        config = _unscored(compose_config([*fixed, *chosen]))
        if _training_name(config, make_plan(config, inputs), inputs) != before:
            raise UserError(
                f"{folder} holds trials on other files than there are now (trial {trial.number}, {' '.join(chosen)}, "
                "would be another training): the data, the model or this version of cft have changed since. Give this "
                "search another name, or remove that folder"
            )


def _training_name(config: Config, plan: Plan, inputs: InputCache) -> str:
    """A name that holds all that a trial's training depends on; `plan` is that of the trial without its first stage."""
    stage = runner.first_stage(config, inputs)
    return f"{make_plan(stage, inputs).folder.name} {plan.folder.name}" if stage else plan.folder.name


def _require_same_search(folder: Path, overrides: list[str]) -> None:
    path = folder / SPACE_FILE
    before = read_json(path, list) if path.exists() else overrides
    if before != overrides:
        raise UserError(
            f"{folder} holds another search ({' '.join(map(str, before))}): give this one another name, or remove that "
            "folder"
        )


def _check_judge(config: Config, inputs: InputCache) -> None:
    """Refuse to choose by nothing, by an unfinished training, or by pairs of the test sets."""
    if config.eval.step is not None:
        raise UserError(
            f"eval.step={config.eval.step}: a search judges every training by its last step, not by an earlier one; "
            "leave it out, or make the trainings shorter by train.steps"
        )
    if not config.train.steps:
        raise UserError("train.steps=0: a search compares trainings, and there is nothing to train")
    data = inputs.data(config.data)
    if not (data.dev or config.train.chooses) or not config.train.eval_every:
        raise UserError(
            "a search is judged by development pairs during training: name some by data.dev=FILE (sentence1, "
            "sentence2, score), or have half of the held-out rows judge by train.best=true, and leave "
            "train.eval_every above 0"
        )
    if config.eval.source not in (EvalSource.sts, EvalSource.pairs):
        return
    shared = overlapping(data.dev, inputs.sets(config.eval))
    if shared:
        raise UserError(
            f"{len(shared)} of {len(data.dev)} development pairs stand in the test sets "
            f"({', '.join(sorted(set(shared)))}): settings chosen by them would be chosen by the test; leave those "
            "pairs out of data.dev"
        )


def _measure(data: TrainingData) -> str:
    """What trials are judged by: the correlation on scored pairs, or else how well held-out rows are found."""
    return _SPEARMAN if data.dev else MEASURE_NAMES[HEADLINE]


def _require_same_judge(trial: Any, data: TrainingData) -> None:
    """Refuse a trial whose score would not compare with those of the others, as it is judged by other rows."""
    if not data.dev and not watched_sets(data):
        raise UserError(
            f"of {len(data.watched)} held-out rows to judge by none can be searched for its positive: raise "
            "data.holdout, bring more rows, or give scored pairs by data.dev=FILE"
        )
    judge = digest([list(row) for row in data.dev or data.watched])
    for other in trial.study.trials:
        if other.user_attrs.get(_JUDGE, judge) != judge:
            raise UserError(
                f"would be judged by other {'pairs' if data.dev else 'held-out rows'} than trial {other.number}: a "
                "search compares trainings on one and the same; search that setting by several searches"
            )
    trial.set_user_attr(_JUDGE, judge)


def _unscored(config: Config) -> Config:
    """The job without a score of held-out rows: development pairs are the judge, and there may be no such rows."""
    none = EvalSettings(name=EvalSource.none.value, source=EvalSource.none)
    return replace(config, eval=none) if config.eval.source is EvalSource.rows else config


def _study(folder: Path, space: list[Dimension], seed: int, *, prune: bool) -> Any:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("cft.search needs Optuna: pip install 'cft[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # failures are reported below, without a traceback
    study = optuna.create_study(
        study_name=folder.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.jsonl"))),  # JSON lines; nothing is pickled
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4) if prune else optuna.pruners.NopPruner(),
    )
    if all(dimension.choices for dimension in space):
        with warnings.catch_warnings():  # experimental since Optuna 3.1
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = optuna.samplers.BruteForceSampler(seed=seed)  # no combination twice
    else:  # a sampler that starts anew with one seed would propose the same again
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), n_startup_trials=8)
    return study


def _requeue_interrupted(study: Any) -> None:
    """Have trials of killed calls made again, from their checkpoints."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)


def _trial(trial: Any, fixed: list[str], space: list[Dimension], inputs: InputCache) -> float:
    """Train under proposed settings; returns the development score of the last step, or of the one that was kept."""
    chosen = [f"{dimension.key}={_proposed(trial, dimension)}" for dimension in space]
    if any(_PROBLEM in other.user_attrs and other.params == trial.params for other in trial.study.trials):
        raise _FailedBefore(" ".join(chosen))
    log.info("\n# trial %d: %s", trial.number, " ".join(chosen))
    try:
        return _train(trial, compose_config([*fixed, *chosen]), inputs)
    except UserError as error:  # a loss that is not finite, say: this trial failed, and the search goes on
        report_error(error)
        trial.set_user_attr(_PROBLEM, str(error))
        raise
    except KeyboardInterrupt:
        trial.study.enqueue_trial(trial.params)
        raise


def _train(trial: Any, config: Config, inputs: InputCache) -> float:
    """Train one trial, which may be given up; returns its score."""
    import optuna

    config = _unscored(config)
    _check_judge(config, inputs)  # what is searched may be what trials are judged by
    plan = make_plan(config, inputs)
    assert plan.data is not None  # there are steps
    _require_same_judge(trial, plan.data)
    trial.set_user_attr(_TRAINING, _training_name(config, plan, inputs))

    def on_row(row: dict) -> None:
        for step, score in development_scores([row]):
            trial.report(score, step)
            if step < plan.steps and trial.should_prune():
                log.info("given up at step %d: below the median of the trials before", step)
                raise GivenUp

    try:
        folder = runner.train_only(config, inputs, on_row)
    except GivenUp as ended:
        raise optuna.TrialPruned from ended
    trial.set_user_attr("run", folder.name)
    return RunFolder(folder).development_score()


def _proposed(trial: Any, dimension: Dimension) -> str:
    if dimension.choices:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    if dimension.whole:
        return str(trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), log=dimension.log))
    return repr(trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log))


def ranking(study: Any, space: list[Dimension], measure: str) -> list[Row]:
    """Trials with their settings and development scores, the best first; those that were given up at the end."""
    from optuna.trial import TrialState

    keys = [dimension.key for dimension in space]
    table: list[Row] = [("trial", *keys, f"development {measure}", "run")]

    def add(trial: Any, score: str, run: str = "") -> None:
        values = [trial.params.get(key, "") for key in keys]
        shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
        table.append((str(trial.number), *shown, score, run))

    for trial in sorted(study.get_trials(states=[TrialState.COMPLETE]), key=lambda trial: -trial.value):
        add(trial, f"{trial.value:.2f}", trial.user_attrs.get("run", ""))
    for trial in study.get_trials(states=[TrialState.PRUNED]):
        step, score = max(trial.intermediate_values.items())
        add(trial, f"{score:.2f} at step {step}, given up")
    for trial in study.trials:
        if _PROBLEM in trial.user_attrs:
            add(trial, f"failed: {shorten(_one_line(trial.user_attrs[_PROBLEM]), 60)}")
    return table


def _one_line(cause: str) -> str:
    """A cause without the line that only announces what follows."""
    lines = [line.strip() for line in cause.splitlines() if line.strip()]
    return " ".join(lines[1:] if len(lines) > 1 and lines[0].endswith(":") else lines[:1])


def _failures(study: Any) -> list[str]:
    """A line a failed trial: its settings and the whole cause."""
    return [
        f"trial {trial.number}, {' '.join(f'{key}={value}' for key, value in trial.params.items())}: "
        f"{_one_line(trial.user_attrs[_PROBLEM])}"
        for trial in study.trials
        if _PROBLEM in trial.user_attrs
    ]


def _report(folder: Path, study: Any, table: list[Row], space: list[Dimension], measure: str) -> None:
    """Write the table and the pictures, and say what to do with the best."""
    from optuna.trial import TrialState

    done, failed = study.get_trials(states=[TrialState.COMPLETE]), _failures(study)
    if not done:
        causes = "; ".join(failed or [row[-2] for row in table[1:]])
        raise UserError(f"no trial came to its end: {causes or 'none was made'}")
    by_order = {dimension.key: dimension.log for dimension in space}
    drawn = figures.search([(trial.number, trial.value, trial.params) for trial in done], by_order, measure)
    picture, _ = figures.save(drawn, folder, "search")
    best = " ".join(f"{key}={value}" for key, value in study.best_params.items())
    about = "on development pairs, after the last step or the one that was kept. The test sets were not looked at."
    if measure != _SPEARMAN:
        about = "on half of the held-out rows, after the step that was kept. The other half was not looked at."
    about = f"{measure} x 100 {about}"
    blocks: list[Block] = [Heading(study.study_name, 1), Text([about]), Table("trials", "", table)]
    blocks += [Picture("each trial's score, and the score by setting", picture), Text([f"best: `{best}`"])]
    if failed:
        blocks += [Heading("Failed", 2), Text(failed, "failed")]
    write_text(folder / "report.md", to_markdown(Document(study.study_name, blocks), folder))
    log.info("\nbest: %s  (%.2f)\nwritten: %s, search.png", best, study.best_value, folder / "report.md")
    if failed:
        log.warning(
            "%d of %d trials failed, and are not tried again in this search:\n  %s",
            len(failed),
            len(_counted(study)),
            "\n  ".join(failed),
        )
    log.info("each run of the table is an embedder; score one on test sets by the same settings with python -m cft.run")
