"""A search for good settings with Optuna."""

import logging
import warnings
from pathlib import Path
from typing import Any

from cft.config.compose import compose_config
from cft.config.schema import Config, EvalSource
from cft.config.sweeps import Dimension, search_space
from cft.evaluation.pairs import overlapping
from cft.job import figures, runner
from cft.job.plan import InputCache
from cft.job.run_folder import RunFolder
from cft.study.arguments import outputs_of
from cft.study.document import Block, Document, Heading, Picture, Table, Text, to_markdown
from cft.system.console import report_error
from cft.system.errors import UserError
from cft.system.files import exclusive_lock, read_json, write_json, write_text
from cft.system.tables import Row
from cft.system.text import shorten
from cft.training.trainer import plan_steps

log = logging.getLogger("cft.search")

SPACE_FILE = "space.json"

_PROBLEM = "problem"  # a trial's attribute: why it failed


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
    _check_development(compose_config([*fixed, *lowest]), inputs)
    with exclusive_lock(folder):  # so trials that are still running are those of killed calls
        write_json(folder / SPACE_FILE, sorted(overrides))
        study = _study(folder, space, seed, prune=prune)
        left = _requeue_interrupted(study, trials)
        if left > 0:
            study.optimize(lambda trial: _trial(trial, fixed, space, inputs), n_trials=left, catch=(UserError,))
        table = ranking(study, space)
        _report(folder, study, table, space)
    return table


def _require_same_search(folder: Path, overrides: list[str]) -> None:
    path = folder / SPACE_FILE
    before = read_json(path, list) if path.exists() else overrides
    if before != overrides:
        raise UserError(
            f"{folder} holds another search ({' '.join(map(str, before))}): give this one another name, or remove that "
            "folder"
        )


def _check_development(config: Config, inputs: InputCache) -> None:
    """Refuse to choose by nothing, or by pairs of the test sets."""
    data = inputs.data(config.data)
    if not data.dev or not config.train.eval_every:
        raise UserError(
            "a search is judged by development pairs during training: name some by data.dev=FILE (sentence1, "
            "sentence2, score), and leave train.eval_every above 0"
        )
    if config.eval.source is not EvalSource.sts:
        return
    shared = overlapping(data.dev, inputs.sets(config.eval))
    if shared:
        raise UserError(
            f"{len(shared)} of {len(data.dev)} development pairs stand in the test sets "
            f"({', '.join(sorted(set(shared)))}): settings chosen by them would be chosen by the test; leave those "
            "pairs out of data.dev"
        )


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


def _requeue_interrupted(study: Any, trials: int) -> int:
    """Have trials of killed calls made again, from their checkpoints; returns how many trials are left to make."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)
    done = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    return trials - len(done) - sum(_PROBLEM in trial.user_attrs for trial in study.trials)


def _trial(trial: Any, fixed: list[str], space: list[Dimension], inputs: InputCache) -> float:
    """Train under proposed settings; returns the development score of the last step."""
    import optuna

    chosen = [f"{dimension.key}={_proposed(trial, dimension)}" for dimension in space]
    log.info("\n# trial %d: %s", trial.number, " ".join(chosen))

    config = compose_config([*fixed, *chosen])
    last = plan_steps(config.train, len(inputs.data(config.data).triplets))

    def on_row(row: dict) -> None:
        if row["event"] == "dev" and row["spearman"] is not None:
            trial.report(row["spearman"], row["step"])
            if row["step"] < last and trial.should_prune():
                log.info("given up at step %d: below the median of the trials before", row["step"])
                raise optuna.TrialPruned

    try:
        folder = runner.train_only(config, inputs, on_row)
    except UserError as error:  # a loss that is not finite, say: this trial failed, and the search goes on
        report_error(error)
        trial.set_user_attr(_PROBLEM, str(error).splitlines()[0])
        raise
    except KeyboardInterrupt:
        trial.study.enqueue_trial(trial.params)
        raise
    trial.set_user_attr("run", folder.name)
    return RunFolder(folder).development_scores()[-1][1]


def _proposed(trial: Any, dimension: Dimension) -> str:
    if dimension.choices:
        return trial.suggest_categorical(dimension.key, dimension.choices)
    if dimension.whole:
        return str(trial.suggest_int(dimension.key, int(dimension.low), int(dimension.high), log=dimension.log))
    return repr(trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log))


def ranking(study: Any, space: list[Dimension]) -> list[Row]:
    """Trials with their settings and development scores, the best first; those that were given up at the end."""
    from optuna.trial import TrialState

    keys = [dimension.key for dimension in space]
    table: list[Row] = [("trial", *keys, "development Spearman", "run")]

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
            add(trial, f"failed: {shorten(trial.user_attrs[_PROBLEM], 60)}")
    return table


def _report(folder: Path, study: Any, table: list[Row], space: list[Dimension]) -> None:
    """Write the table and the pictures, and say what to do with the best."""
    from optuna.trial import TrialState

    done = study.get_trials(states=[TrialState.COMPLETE])
    if not done:
        raise UserError(f"no trial came to its end: {'; '.join(row[-2] for row in table[1:]) or 'none was made'}")
    by_order = {dimension.key: dimension.log for dimension in space}
    drawn = figures.search([(trial.number, trial.value, trial.params) for trial in done], by_order)
    picture, _ = figures.save(drawn, folder, "search")
    best = " ".join(f"{key}={value}" for key, value in study.best_params.items())
    about = "Spearman correlation x 100 on development pairs after the last step. The test sets were not looked at."
    blocks: list[Block] = [Heading(study.study_name, 1), Text([about]), Table("trials", "", table)]
    blocks += [Picture("each trial's score, and the score by setting", picture), Text([f"best: `{best}`"])]
    write_text(folder / "report.md", to_markdown(Document(study.study_name, blocks), folder))
    log.info("\nbest: %s  (%.2f)\nwritten: %s, search.png", best, study.best_value, folder / "report.md")
    log.info("each run of the table is an embedder; score one on test sets by the same settings with python -m cft.run")
