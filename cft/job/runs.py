"""What is under outputs/: trainings listed, found by name, compared and removed."""

import shutil
import sys
from pathlib import Path

from cft.config.compose import all_keys, flatten, nearest_names
from cft.evaluation import pairs, results
from cft.evaluation.bootstrap import MEAN, resample
from cft.evaluation.scores import Evaluation
from cft.job.plan import FAILED, FINISHED
from cft.system.errors import UserError
from cft.system.files import exclusive_lock, read_json
from cft.system.tables import Row, as_text
from cft.system.text import byte_size
from cft.training import checkpoint

CONFIG_FILE = "config.json"


# What a filter or a column may call a setting for short.
_SHORT = {"model": "model.name", "data": "data.name", "steps": "train.steps", "loss": "loss.hard_negatives"}


# Settings that say nothing about a training's result; evaluations are compared by themselves.
_BESIDE = ("eval.", "logger.", "outputs", "device", "train.keep", "train.checkpoint_every")


def trainings(outputs: Path) -> list[Path]:
    """Folders of trainings, finished or not, the newest last."""
    found = [path.parent for path in outputs.glob(f"*/{CONFIG_FILE}")]
    return sorted(found, key=lambda folder: (folder / CONFIG_FILE).stat().st_mtime)


def settings_of(folder: Path) -> dict[str, str]:
    """A run's settings by dotted key; none for an untrained model."""
    path = folder / CONFIG_FILE
    return flatten(read_json(path)) if path.exists() else {}


def list_runs(outputs: Path, filters: list[str]) -> list[Row]:
    """A row a training that all filters hold for.

    Raises:
        UserError: if a filter names no setting.
    """
    wanted = [_filter(entry) for entry in filters]
    table: list[Row] = [
        ("run", "state", "model", "data", "lr", "hard negatives", "seed", "evaluation", "before", "after")
    ]
    for folder in trainings(outputs):
        settings = settings_of(folder)
        if not all(_equal(settings.get(key, ""), value) for key, value in wanted):
            continue
        columns = ("model.name", "data.name", "lr", "loss.hard_negatives", "seed")
        known = (folder.name, _state(folder, settings), *(settings.get(key, "") for key in columns))
        scores = _scores(folder)
        table += [(*known, *row) for row in scores] or [(*known, "", "", "")]
    return table


def _scores(folder: Path) -> list[Row]:
    """Evaluations of a training, earlier steps included: which, and the means before and after."""
    found: list[Row] = []
    for path in [folder / results.METRICS, *sorted(folder.glob(f"steps/*/{results.METRICS}"))]:
        if not path.exists():
            continue
        step = "" if path.parent == folder else f"step {int(path.parent.name)}, "
        for name, entry in read_json(path).items():
            means = [entry[side]["mean"] for side in ("before", "after")]
            label = f"{step}{name.rsplit('-', 1)[0]}, {entry['prompt']}"
            found.append((label, *("" if mean is None else f"{mean:.2f}" for mean in means)))
    return found


def _state(folder: Path, settings: dict[str, str]) -> str:
    if (folder / FINISHED).exists():
        return f"{read_json(folder / FINISHED)['steps']} steps"
    if (folder / FAILED).exists():
        return f"failed at step {read_json(folder / FAILED)['step']} of {settings.get('train.steps', '?')}"
    return f"at step {checkpoint.step_of(folder)} of {settings.get('train.steps', '?')}"


def _filter(entry: str) -> tuple[str, str]:
    key, equals, value = entry.partition("=")
    key = _SHORT.get(key, key)
    known = all_keys()
    if not equals or key not in known:
        raise UserError(f"{entry}: a filter is KEY=VALUE with a key of the configuration{nearest_names(key, known)}")
    return key, value


def _equal(one: str, other: str) -> bool:
    """Whether two values are the same, numbers by their value."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one.casefold() == other.casefold()


def find_run(outputs: Path, name: str) -> Path:
    """A run's folder by its path, its name, or the end of its name.

    Raises:
        UserError: if there is none, or several.
    """
    candidates = [*trainings(outputs), *sorted(outputs.glob("base-*")), *sorted(outputs.glob("adapter-*"))]
    given = Path(name)
    if given.is_dir() and given.resolve() in {folder.resolve() for folder in candidates}:
        return given
    found = [folder for folder in candidates if folder.name == name] or [f for f in candidates if f.name.endswith(name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(folder.name for folder in found or candidates) or "none"
    raise UserError(f"{name}: {'several runs end so' if found else 'no such run'} under {outputs}; there: {names}")


def compare_runs(one: Path, other: Path) -> str:
    """Settings that differ, and the scores of every evaluation that both runs have, with verdicts."""
    settings = [settings_of(folder) for folder in (one, other)]
    rows: list[Row] = [("setting", one.name, other.name)]
    for key in sorted({*settings[0], *settings[1]}):
        values = [found.get(key, "—") for found in settings]
        if values[0] != values[1] and not key.startswith(_BESIDE):
            rows.append((key, *values))
    parts = [as_text(rows) if len(rows) > 1 else "the settings are the same"]
    evaluations = {path.name for path in _evaluations(one)} & {path.name for path in _evaluations(other)}
    for name in sorted(evaluations):
        parts.append(_compared_on(name, one, other))
    if not evaluations:
        parts.append("no evaluation that both have: score them on the same sets under the same prompt")
    return "\n\n".join(parts)


def _evaluations(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob(f"evaluations/*/{pairs.FILE_NAME}")]


def _compared_on(name: str, one: Path, other: Path) -> str:
    """One evaluation's table: both scores, second minus first, and the verdict."""
    folders = [folder / "evaluations" / name for folder in (one, other)]
    data = pairs.read(folders[0])
    cosines = [[_evaluation(folder).cosines] for folder in folders]
    drawn = resample(cosines, data.scores, data.identity)
    (differences,) = drawn.differences([(1, 0)])
    rows: list[Row] = [("set", one.name, other.name, "difference", "the second is")]
    for key in drawn.names if len(drawn.names) > 2 else drawn.names[:1]:
        difference = differences[key]
        scores = [f"{drawn.interval(place, key).value:.2f}" for place in (0, 1)]
        rows.append(("mean over sets" if key == MEAN else key, *scores, str(difference), difference.verdict))
    prompt = (read_json(folders[0] / results.METRICS).get("contract") or {}).get("template", "")
    return f"{name}, prompt {prompt!r}\n\n{as_text(rows)}"


def _evaluation(folder: Path) -> Evaluation:
    found = results.load_evaluation(folder)
    if found is None:
        raise UserError(f"{folder} has no {results.METRICS}: run its job again, which makes it anew")
    return found


def remove_runs(folders: list[Path], *, sure: bool) -> None:
    """Delete trainings with all their scores, after asking unless `sure`."""
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        sys.stdout.write(f"{folder}: {byte_size(size)}\n")
    if not sure:
        if not sys.stdin.isatty():
            raise UserError("nothing was removed: add --yes")
        if input("remove these for good? [y/N] ").strip().casefold() not in ("y", "yes"):
            raise UserError("nothing was removed")
    for folder in folders:
        with exclusive_lock(folder):
            shutil.rmtree(folder)
    sys.stdout.write(f"removed {len(folders)}\n")
