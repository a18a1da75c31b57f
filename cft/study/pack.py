"""A study's records in one file, to be kept beside a text: all that its report is made of, and nothing else.

    FOLDER/NAME-SCALE.zip
        studies/NAME-SCALE/plan.json      the frozen plan
        studies/runs/DIGEST.json          where each run's results are
        RUN/...                           scores, the cosine of every pair, history of the training

Weights, vectors and logs stay where they are, and so do the human scores: they belong to the test sets. Whoever has
the test sets gets them back by `restore`, which also makes sure that they are the ones the cosines were ranked by.
"""

import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cft.config.compose import compose_config
from cft.config.schema import Config, DataSettings, EvalSettings
from cft.data.training_data import TrainingData
from cft.evaluation import pairs
from cft.evaluation.retrieval import FILE_NAME as QUERIES
from cft.evaluation.scores import COSINES, METRICS, load_evaluation, spearman
from cft.job.plan import InputCache
from cft.job.run_folder import RunFolder
from cft.study import plan
from cft.study.plan import DONE, RunState, Study
from cft.system.digest import DIGEST_LENGTH, sha256_of_file
from cft.system.errors import UserError
from cft.system.files import atomic_write, read_json, staging_folder, write_record
from cft.system.overrides import override

log = logging.getLogger(__name__)

# Settings that name files of whoever reads; the study does not change with them.
READERS_FILES = ("outputs", "data.train", "data.dev", "eval.folder", "eval.file")

_OF_EVALUATION = (METRICS, COSINES, QUERIES)
_OF_TRAINING = (RunFolder.HISTORY, RunFolder.FINISHED, RunFolder.ENVIRONMENT, RunFolder.DATA)
UNPACKED = ".unpacked"  # the folder beside the records that they are laid out in

# Points by which a score may differ from the recorded one: other versions of numpy and scipy add up in another order.
_ROUNDING = 0.001


def pack(studies: Iterable[Study], folder: Path) -> int:
    """Write the records of finished studies, a file each; equal records give equal bytes.

    Args:
        studies: as frozen. folder: made if it is missing; files of other studies in it stay.

    Returns:
        Bytes written.

    Raises:
        UserError: if a run is not done, naming it.
    """
    size = 0
    for study in studies:
        path = _file(folder, study.name)
        with staging_folder(path) as staged:
            for cell, runs in study.cells.items():
                for run in runs:
                    state = plan.state_of(study.outputs, run)
                    if state.state != DONE:
                        raise UserError(f"cell {cell!r} of {study.name} is not done: finish the study, then pack it")
                    _copy_run(study.outputs, state, staged)
                    _copy(plan.state_file(study.outputs, run), plan.state_file(staged, run))
            published = _without_outputs(study)
            published.save(plan.study_folder(staged, study.name))
            _warn_of_absolute_paths(published, staged)
            _write_archive(staged, path)
        size += path.stat().st_size
    return size


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.zip"


def _copy_run(outputs: Path, state: RunState, target: Path) -> None:
    for evaluation in filter(None, (state.scores, state.triplets, state.triplets_before)):
        for name in _OF_EVALUATION:
            if name != QUERIES or (outputs / evaluation / name).exists():
                _copy(outputs / evaluation / name, target / evaluation / name)
    if state.training is not None:
        source, copy = RunFolder(outputs / state.training), RunFolder(target / state.training)
        for name in _OF_TRAINING:
            if source.file(name).exists():
                _copy(source.file(name), copy.file(name))
        write_record(copy.file(copy.CONFIG), read_json(source.file(source.CONFIG)) | {"outputs": Config.outputs})


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise UserError(f"{source} is missing: run the study again, which makes it anew, then pack it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_archive(folder: Path, path: Path) -> None:
    with atomic_write(path) as part, zipfile.ZipFile(part, "w") as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())  # of 1980, whenever it is packed
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


def moved(study: Study, outputs: Path) -> Study:
    """The same study, its results being in another folder."""
    return replace(study, runs={run: replace(config, outputs=str(outputs)) for run, config in study.runs.items()})


def _without_outputs(study: Study) -> Study:
    """The plan as it is published: without the folder that it was carried out in."""

    def elsewhere(overrides: list[str]) -> list[str]:
        return [word for word in overrides if not word.startswith("outputs=")]

    cells = [replace(cell, overrides=elsewhere(cell.overrides)) for cell in study.experiment.cells]
    return replace(
        moved(study, Path(Config.outputs)),
        experiment=replace(study.experiment, cells=cells),
        overrides=elsewhere(study.overrides),
        packed=True,
    )


def _warn_of_absolute_paths(study: Study, folder: Path) -> None:
    """Name places of this machine in the plan, and in the settings that its trainings were begun with."""
    absolute = {word for word in study.overrides if word.partition("=")[2].startswith(("/", "~"))}
    for path in folder.rglob(RunFolder.CONFIG):
        settings: dict[str, Any] = read_json(path)
        absolute |= {override(key, value) for key, value in _strings("", settings) if value.startswith(("/", "~"))}
    if absolute:
        log.warning(
            "%s: the records name places of this machine (%s); run a study with relative paths where they are to be "
            "published",
            study.name,
            ", ".join(sorted(absolute)),
        )


def _strings(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every text of settings, with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(f"{key}.{name}" if key else name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(key, inner)


def unpack(folder: Path, name: str) -> Study | None:
    """A study out of its records, which are laid out in a hidden folder beside them.

    Args:
        folder: of the records. name: of the study.

    Returns:
        The study with its results, to which `restore` adds the human scores; None if there are no records of it.

    Raises:
        UserError: if the file is damaged.
    """
    path = _file(folder, name)
    if not path.exists():
        return None
    target = folder / UNPACKED / f"{name}-{sha256_of_file(path)[:DIGEST_LENGTH]}"
    if not target.exists():
        with staging_folder(target) as staged:
            try:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(staged)  # never outside of it
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise UserError(f"cannot read {path}: {error}; pack the study again") from error
            os.replace(staged, target)
    study = plan.load(plan.study_folder(target, name))
    if study is None:
        raise UserError(f"{path} holds no records of {name}; pack the study again")
    return moved(study, target)


def restore(study: Study, overrides: list[str]) -> None:
    """Put the human scores beside unpacked cosines again, out of the reader's own files.

    Args:
        study: as unpacked. overrides: as on the command line; those of READERS_FILES say where the files are.

    Raises:
        UserError: if files are missing, or are not those that the study was made on.
    """
    given = {key: value for key, _, value in (word.partition("=") for word in overrides)}
    inputs = InputCache()
    described: dict[tuple[int, int], Path] = {}
    for run, config in study.runs.items():
        state = plan.state_of(study.outputs, run)
        folder = study.outputs / state.scores
        if (folder / pairs.FILE_NAME).exists():
            continue
        stored = load_evaluation(folder)
        assert stored is not None
        if stored.retrieval:  # what each query found is all that verdicts need
            pairs.write_once(folder, {}, None)
            continue
        evaluation, training = _readers_evaluation(study, given, config.eval), config.data
        if training.train is not None and state.training is not None:
            dev = given.get("data.dev") if training.dev else None  # scores need none
            training = replace(training, train=_reader_file(study, given, "data.train", "the triplets' file"), dev=dev)
        sets = inputs.sets(evaluation)
        for name, cosines in stored.cosines.items():
            scores = [pair.score for pair in sets[name]]
            if len(scores) != len(cosines) or abs(spearman(cosines, scores, name) - stored.scores[name]) > _ROUNDING:
                raise UserError(
                    f"{evaluation.folder or evaluation.file or 'the data'}: the pairs of {name} are not those that "
                    f"{study.name} was scored on, or {folder / COSINES} was changed"
                )
        data = inputs.data(training) if state.training is not None else None
        if data is not None and state.training is not None:
            _require_same_rows(study, RunFolder(study.outputs / state.training), data, training)
        same = described.setdefault((id(sets), id(data)), folder)  # the cache hands out the same objects
        if same == folder:
            pairs.write_once(folder, sets, data)
        else:
            _copy(same / pairs.FILE_NAME, folder / pairs.FILE_NAME)


def _readers_evaluation(study: Study, given: dict[str, str], evaluation: EvalSettings) -> EvalSettings:
    """The evaluation with the reader's own files."""
    if evaluation.folder is not None:
        folder = _reader_file(study, given, "eval.folder", "the test sets' folder")
        return replace(evaluation, folder=folder)
    if evaluation.file is None:
        return evaluation
    file = _reader_file(study, given, "eval.file", "the scored pairs' file")
    return replace(evaluation, file=compose_config(["eval=pairs", f"eval.file={file}"]).eval.file)  # or a list of them


def _require_same_rows(study: Study, folder: RunFolder, data: TrainingData, settings: DataSettings) -> None:
    """Refuse other rows than were trained on: the overlap audit would be of those. Without `data.dev`, by their number.

    Raises:
        UserError: naming the file.
    """
    path = folder.file(RunFolder.DATA)
    known = read_json(path) if path.exists() else {}
    had_pairs = known.get("development_pairs", 0) > 0
    same = known.get("triplets", len(data.triplets)) == len(data.triplets)
    if not had_pairs or data.dev:
        same &= known.get("content", data.content) == data.content
    if not same:
        files = " and ".join(str(name) for name in (settings.train, settings.dev) if name) or "the data"
        raise UserError(f"{files}: these are not the rows that {study.name} was trained on, which the audit counts")


def _reader_file(study: Study, given: dict[str, str], key: str, what: str) -> str:
    if key not in given:
        raise UserError(f"{study.name} is kept without the human scores: name {what} by {key}=..., to put them back")
    return given[key]
