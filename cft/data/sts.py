"""The nine English STS test sets of the paper, from the hub at pinned revisions or from a folder."""

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cft.config.schema import EvalSettings, EvalSource, problem_of_set_name
from cft.data.files import read_scored_pairs, stream_scored_pairs
from cft.data.formats import ENDINGS
from cft.data.portrait import warnings_of_pairs
from cft.data.records import ScoredPair, require_rankable
from cft.system.errors import UserError
from cft.system.files import user_path
from cft.system.hub import OFFLINE_HINT, hub_answers, without_hub
from cft.system.overrides import override
from cft.system.text import printable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubSet:
    """Where a set is on the hub: the text and rows that MTEB scores."""

    name: str
    repository: str
    revision: str
    split: str = "test"
    subset: str | None = None


# Repositories and revisions as MTEB 2.26.24 pins them for the tasks of the same names.
NINE_SETS = {
    entry.name: entry
    for entry in (
        HubSet("STS12", "mteb/sts12-sts", "a0d554a64d88156834ff5ae9920b964011b16384"),
        HubSet("STS13", "mteb/sts13-sts", "7e90230a92c190f1bf69ae9002b8cea547a64cca"),
        HubSet("STS14", "mteb/sts14-sts", "6031580fec1f6af667f0bd2da0a551cf4f0b2375"),
        HubSet("STS15", "mteb/sts15-sts", "ae752c7c21bf194d8b67fd573edf7ae58183cbe3"),
        HubSet("STS16", "mteb/sts16-sts", "4d8694f8f0e0100860b497b999b3dbed754a0513"),
        HubSet("STS17", "mteb/sts17-crosslingual-sts", "faeb762787bd10488a50c8b5be4a3b82e411949c", subset="en-en"),
        HubSet("STSBenchmark", "mteb/stsbenchmark-sts", "b0fddb56ed78048fa8b90373c8a3cfc37b684831"),
        HubSet("BIOSSES", "mteb/biosses-sts", "d3fb88f8f02e40887cd149695127462bbcf29b4a"),
        HubSet("SICK-R", "mteb/sickr-sts", "20a6d6f312dd54037fe07a32d58e5e168867909d"),
    )
}
DEV_SET = replace(NINE_SETS["STSBenchmark"], name="STSBenchmark-dev", split="validation")


def load_eval_sets(settings: EvalSettings) -> dict[str, list[ScoredPair]]:
    """Load the scored pairs of an evaluation, by set.

    Args:
        settings: conf/eval.

    Raises:
        UserError: if a set is unknown, has no file in the folder or no scores to rank by, or the hub does not answer.
    """
    if settings.source not in (EvalSource.sts, EvalSource.pairs):
        return {}  # documents are looked for, no pairs scored
    if settings.source is EvalSource.pairs:
        return {path.name.split(".")[0]: _read_pairs(path, "eval.file", settings) for path in _own_files(settings)}
    if settings.folder is not None:
        folder = user_path(settings.folder)
        return {name: _read_set(name, folder, settings) for name in settings.sets}
    unknown = [name for name in settings.sets if name not in NINE_SETS]
    if unknown:
        raise UserError(f"eval.sets: {', '.join(unknown)} unknown on the hub; choose among {', '.join(NINE_SETS)}")
    return {name: thin_out(load_hub_set(NINE_SETS[name]), settings.rows) for name in settings.sets}


def require_readable(settings: EvalSettings) -> None:
    """Read the first pair of each of a user's files: a wrong path or column is known before anything is loaded.

    Raises:
        UserError: as `load_eval_sets`, which reads the other pairs too.
    """
    paths: list[tuple[str, Path]] = []
    if settings.source is EvalSource.pairs:
        paths = [("eval.file", path) for path in _own_files(settings)]
    elif settings.source is EvalSource.sts and settings.folder is not None:
        folder = user_path(settings.folder)
        paths = [("eval.folder", _find_file(name, folder)) for name in settings.sets]
    for key, path in paths:
        next(stream_scored_pairs(path, columns=settings.columns, key=key))


def thin_out(pairs: list[ScoredPair], rows: int | None) -> list[ScoredPair]:
    """At most `rows` pairs, at even distances so that every part of a set is represented; None keeps all."""
    if rows is None or len(pairs) <= rows:
        return pairs
    return [pairs[index * len(pairs) // rows] for index in range(rows)]


def _own_files(settings: EvalSettings) -> list[Path]:
    """The files of `eval.file`, no two of one name."""
    paths = [user_path(name) for name in dict.fromkeys(settings.files)]
    names = [path.name.split(".")[0] for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    for problem in filter(None, map(problem_of_set_name, names)):
        raise UserError(f"{override('eval.file', settings.files)}: {problem} (a set is called as its file)")
    if twice is not None:
        raise UserError(f"{override('eval.file', settings.files)}: two files are called {twice!r}; rename one of them")
    return paths


def _read_set(name: str, folder: Path, settings: EvalSettings) -> list[ScoredPair]:
    """A set from its file in the folder."""
    return _read_pairs(_find_file(name, folder), "eval.folder", settings)


def _read_pairs(path: Path, key: str, settings: EvalSettings) -> list[ScoredPair]:
    """Pairs of a file, refused before a model is loaded if no embedder could be scored on them."""
    pairs = read_scored_pairs(path, columns=settings.columns, key=key)[0]
    for warning in warnings_of_pairs(pairs):
        log.warning("%s: %s", printable(path.name), warning)
    thinned = thin_out(pairs, settings.rows)
    note = "" if len(thinned) == len(pairs) else f", thinned out by eval.rows={settings.rows}"
    require_rankable([pair.score for pair in thinned], f"{path.name.split('.')[0]} ({override(key, path)}{note})")
    return thinned


def _find_file(name: str, folder: Path) -> Path:
    try:
        if not folder.is_dir():
            raise UserError(f"{override('eval.folder', folder)}: no such folder")
        for ending in ENDINGS:
            path = folder / f"{name}{ending}"
            if path.exists() or path.is_symlink():  # reading reports a broken link
                return path
    except OSError as error:
        raise UserError(
            f"{override('eval.folder', folder)}: {name} cannot be read ({error.strerror or error})"
        ) from error
    raise UserError(
        f"{override('eval.folder', folder)} holds no file for {name} ({name}.jsonl.gz, .jsonl, .csv, .tsv or .parquet "
        "with the columns of eval.columns); leave it out of eval.sets, or add it"
    )


def load_hub_set(entry: HubSet) -> list[ScoredPair]:
    """Load a set from the hub, or from the hub's cache on this machine.

    Raises:
        UserError: if neither has it.
    """
    try:
        rows = fetch_dataset(entry.repository, entry.subset, revision=entry.revision, split=entry.split)
    except (OSError, ValueError) as error:
        raise not_here(entry) from error
    return [ScoredPair(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]


def fetch_dataset(repository: str, subset: str | None, **which: str | None) -> Any:
    """A data set of the hub, or of the hub's cache on this machine.

    Args:
        repository, subset: where it is. which: `revision`, and a `split` unless all are wanted.

    Raises:
        OSError, ValueError: if neither has it.
    """
    import datasets

    datasets.disable_progress_bars()
    with contextlib.nullcontext() if hub_answers() else without_hub():
        return datasets.load_dataset(repository, subset, **which)


def not_here(entry: HubSet) -> UserError:
    """An error about a set that cannot be had."""
    return UserError(
        f"the set {entry.name} ({entry.repository}) is not on this machine and the hub does not answer; {OFFLINE_HINT}"
    )
