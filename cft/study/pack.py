"""A study's records, to be kept beside a text: all that its report is made of, and nothing else.

    FOLDER/studies/NAME-SCALE/plan.json      the frozen plan
    FOLDER/studies/runs/DIGEST.json          where each run's results are
    FOLDER/RUN/...                           scores, the cosine of every pair, history of the training

Weights, vectors and logs stay where they are, and so do the human scores: they belong to the test sets. Whoever has
the test sets gets them back by `restore`, which also makes sure that they are the ones the cosines were ranked by.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cft.evaluation import pairs
from cft.evaluation.scores import COSINES, METRICS, load_evaluation, spearman
from cft.job import figures
from cft.job.plan import InputCache
from cft.job.run_folder import RunFolder
from cft.study import plan as study_plan
from cft.study.plan import DONE, Study
from cft.study.spec import DEFAULT_OUTPUTS
from cft.system.errors import UserError
from cft.system.files import read_arrays, read_json, write_arrays, write_json, write_text

log = logging.getLogger(__name__)

# Settings that name files of whoever reads; the study does not change with them.
PLACES = ("outputs", "data.train", "data.dev", "eval.folder")

_CONFIG = "config.json"
_OF_TRAINING = (figures.HISTORY, RunFolder.FINISHED, "environment.json", "data.json")

# Points by which a score may differ from the recorded one: other versions of numpy and scipy add up in another order.
_ROUNDING = 0.001


def pack(studies: Iterable[Study], folder: Path) -> int:
    """Copy the records of finished studies.

    Args:
        studies: as frozen. folder: made if it is not there; what is in it of other studies stays.

    Returns:
        Bytes copied.

    Raises:
        UserError: if a run is not done, naming it.
    """
    written: set[Path] = set()
    for study in studies:
        for cell, runs in study.cells.items():
            for run in runs:
                state = study_plan.state_of(study.outputs, run)
                if state.get("state") != DONE:
                    raise UserError(f"cell {cell!r} of {study.name} is not done: finish the study, then pack it")
                written |= _pack_run(study, run, state, folder)
        target = study_plan.study_folder(folder, study.name)
        # Whoever reads it says where it is; where it was packed is no part of it.
        plan = replace(_without_outputs(moved(study, Path(DEFAULT_OUTPUTS))), packed=True)
        plan.save(target)
        written.add(target / study_plan.FILE_NAME)
        _warn_of_absolute_places(plan)
    return sum(path.stat().st_size for path in written)


def _pack_run(study: Study, run: str, state: dict, folder: Path) -> set[Path]:
    written = set()
    for kind in ("scores", "triplets", "triplets_before"):
        if state[kind] is not None:
            source, target = study.outputs / state[kind], folder / state[kind]
            write_text(target / METRICS, (source / METRICS).read_text(encoding="utf-8"))
            write_arrays(target / COSINES, read_arrays(source / COSINES), compressed=True)
            written |= {target / METRICS, target / COSINES}
    if state["training"] is not None:
        source, target = study.outputs / state["training"], folder / state["training"]
        for name in _OF_TRAINING:
            if (source / name).exists():
                write_text(target / name, (source / name).read_text(encoding="utf-8"))
                written.add(target / name)
        write_json(target / _CONFIG, read_json(source / _CONFIG) | {"outputs": DEFAULT_OUTPUTS})
        written.add(target / _CONFIG)
    write_json(study_plan.state_file(folder, run), state)
    return written | {study_plan.state_file(folder, run)}


def moved(study: Study, outputs: Path) -> Study:
    """The same study, its results being in another folder."""
    return replace(study, runs={run: replace(config, outputs=str(outputs)) for run, config in study.runs.items()})


def _without_outputs(study: Study) -> Study:
    """The plan without the folder that it was given on the command line."""

    def elsewhere(overrides: list[str]) -> list[str]:
        return [override for override in overrides if not override.startswith("outputs=")]

    cells = [replace(cell, overrides=elsewhere(cell.overrides)) for cell in study.experiment.cells]
    return replace(study, experiment=replace(study.experiment, cells=cells), overrides=elsewhere(study.overrides))


def _warn_of_absolute_places(study: Study) -> None:
    named = {override for override in study.overrides if override.partition("=")[2].startswith(("/", "~"))}
    if named:
        log.warning(
            "%s: the records name places of this machine (%s); run a study with relative paths where they are to be "
            "published",
            study.name,
            ", ".join(sorted(named)),
        )


def restore(study: Study, overrides: list[str]) -> None:
    """Put the human scores beside packed cosines again, out of the reader's own files.

    Args:
        study: as packed. overrides: as on the command line; those of PLACES say where the files are.

    Raises:
        UserError: if files are missing, or are not those that the study was made on.
    """
    given = {key: value for key, _, value in (override.partition("=") for override in overrides) if key in PLACES}
    inputs = InputCache()
    for run, config in study.runs.items():
        state = study_plan.state_of(study.outputs, run)
        folder = study.outputs / state["scores"]
        if (folder / pairs.FILE_NAME).exists():
            continue
        evaluation, training = config.eval, config.data
        if evaluation.folder is not None:
            evaluation = replace(evaluation, folder=_wanted(study, given, "eval.folder", "the test sets' folder"))
        if training.train is not None and state["training"] is not None:
            training = replace(training, train=_wanted(study, given, "data.train", "the triplets' file"), dev=None)
        sets = inputs.sets(evaluation)
        found = load_evaluation(folder)
        assert found is not None
        for name, cosines in found.cosines.items():
            scores = [pair.score for pair in sets[name]]
            if len(scores) != len(cosines) or abs(spearman(cosines, scores, name) - found.scores[name]) > _ROUNDING:
                raise UserError(
                    f"{evaluation.folder or 'the data'}: the pairs of {name} are not those that {study.name} was "
                    f"scored on, or {folder / COSINES} was changed"
                )
        pairs.write_once(folder, sets, inputs.data(training) if state["training"] is not None else None)


def _wanted(study: Study, given: dict[str, str], key: str, what: str) -> str:
    if key not in given:
        raise UserError(f"{study.name} is kept without the human scores: name {what} by {key}=..., to put them back")
    return given[key]
