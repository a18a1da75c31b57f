"""What is under outputs/: trainings listed, found by name, compared and removed."""

import shutil
import sys
from pathlib import Path

from cft.config.compose import all_keys, flatten, nearest_names
from cft.evaluation import pairs
from cft.evaluation.bootstrap import MEAN, resample, resample_means, undefined_note
from cft.evaluation.retrieval import FILE_NAME as QUERIES
from cft.evaluation.retrieval import HEADLINE, load_retrieval
from cft.evaluation.scores import METRICS, Evaluation, load_evaluation
from cft.job.run_folder import RunFolder, evaluation_name
from cft.system.errors import UserError
from cft.system.files import exclusive_lock, read_json
from cft.system.tables import Row, as_text
from cft.system.text import byte_size
from cft.training import checkpoint

# Short names of settings in filters.
_SHORT = {"model": "model.name", "data": "data.name", "steps": "train.steps", "loss": "loss.hard_negatives"}

# Settings without influence on a training's result; evaluations are compared apart.
_WITHOUT_INFLUENCE = ("eval.", "logger.", "outputs", "device", "train.keep", "train.checkpoint_every")


def trainings(outputs: Path) -> list[RunFolder]:
    """Folders of trainings, finished or not, the newest last."""
    configs = sorted(outputs.glob(f"*/{RunFolder.CONFIG}"), key=lambda path: path.stat().st_mtime)
    return [RunFolder(path.parent) for path in configs]


def settings_of(run: RunFolder) -> dict[str, str]:
    """A run's settings by dotted key; none for an untrained model."""
    path = run.file(RunFolder.CONFIG)
    return flatten(read_json(path)) if path.exists() else {}


def list_runs(outputs: Path, filters: list[str]) -> list[Row]:
    """A row a training that all filters hold for.

    Raises:
        UserError: if a filter names no setting.
    """
    wanted = [_parse_filter(entry) for entry in filters]
    table: list[Row] = [
        ("run", "state", "model", "data", "lr", "hard negatives", "seed", "evaluation", "before", "after")
    ]
    for run in trainings(outputs):
        settings = settings_of(run)
        if not all(_equal(settings.get(key, ""), value) for key, value in wanted):
            continue
        columns = ("model.name", "data.name", "lr", "loss.hard_negatives", "seed")
        cells = (run.path.name, _state(run, settings), *(settings.get(key, "") for key in columns))
        table += [(*cells, *scores) for scores in _scores(run)] or [(*cells, "", "", "")]
    return table


def _scores(training: RunFolder) -> list[Row]:
    """Evaluations of a training, earlier steps included: which, and the means before and after."""
    rows: list[Row] = []
    for run in [training, *training.kept_steps()]:
        path = run.file(RunFolder.SCORES)
        step = "" if run == training else f"step {int(run.path.name)}, "
        for name, entry in (read_json(path) if path.exists() else {}).items():
            means = [entry[side]["mean"] for side in ("before", "after")]
            label = f"{step}{evaluation_name(name)}, {entry['prompt']}"
            rows.append((label, *("" if mean is None else f"{mean:.2f}" for mean in means)))
    return rows


def _state(run: RunFolder, settings: dict[str, str]) -> str:
    planned = _planned_steps(run, settings)
    if finished := run.finished():
        return f"{finished.steps} steps"
    if failure := run.failure():
        return f"failed at step {failure.step} of {planned}"
    return f"at step {checkpoint.step_of(run.path)} of {planned}"


def _planned_steps(run: RunFolder, settings: dict[str, str]) -> str:
    """The steps that a training comes to: as many as configured, but at most its epochs have full batches for."""
    path = run.file(RunFolder.DATA)
    names = ("train.steps", "train.epochs", "train.batch_size")
    if not path.exists() or not all(settings.get(name, "").isdigit() for name in names):
        return settings.get("train.steps", "?")
    steps, epochs, batch = (int(settings[name]) for name in names)
    return str(min(steps, epochs * (int(read_json(path)["triplets"]) // batch)))


def _parse_filter(entry: str) -> tuple[str, str]:
    key, equals, value = entry.partition("=")
    key = _SHORT.get(key, key)
    keys = all_keys()
    if not equals or key not in keys:
        raise UserError(f"{entry}: a filter is KEY=VALUE with a key of the configuration{nearest_names(key, keys)}")
    return key, value


def _equal(left: str, right: str) -> bool:
    """Whether two values are the same, numbers by their value."""
    try:
        return float(left) == float(right)
    except ValueError:
        return left.casefold() == right.casefold()


def find_run(outputs: Path, name: str) -> Path:
    """A run's folder by its path, its name, or the end of its name.

    Raises:
        UserError: if there is none, or several.
    """
    candidates = [run.path for run in trainings(outputs)]
    candidates += [*sorted(outputs.glob("base-*")), *sorted(outputs.glob("adapter-*"))]
    given = Path(name)
    if given.is_dir() and given.resolve() in {folder.resolve() for folder in candidates}:
        return given
    exact = [folder for folder in candidates if folder.name == name]
    matches = exact or [folder for folder in candidates if folder.name.endswith(name)]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(folder.name for folder in matches or candidates) or "none"
    raise UserError(f"{name}: {'several runs end so' if matches else 'no such run'} under {outputs}; there: {names}")


def compare_runs(left: Path, right: Path) -> str:
    """Settings that differ, and the scores of every evaluation that both runs have, with verdicts."""
    settings = [settings_of(RunFolder(folder)) for folder in (left, right)]
    rows: list[Row] = [("setting", left.name, right.name)]
    for key in sorted({*settings[0], *settings[1]}):
        values = [each.get(key, "—") for each in settings]
        if values[0] != values[1] and not key.startswith(_WITHOUT_INFLUENCE):
            rows.append((key, *values))
    parts = [as_text(rows) if len(rows) > 1 else "the settings are the same"]
    shared = {path.name for path in _evaluations(left)} & {path.name for path in _evaluations(right)}
    parts += [_compare_evaluation(name, left, right) for name in sorted(shared)]
    if not shared:
        parts.append("no evaluation that both have: score them on the same sets under the same prompt")
    return "\n\n".join(parts)


def _evaluations(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob(f"{RunFolder.EVALUATIONS}/*/{pairs.FILE_NAME}")]


def _compare_evaluation(name: str, left: Path, right: Path) -> str:
    """One evaluation's table: both scores, the first minus the second as in studies, and the verdict."""
    folders = [folder / RunFolder.EVALUATIONS / name for folder in (left, right)]
    if (folders[0] / QUERIES).exists():
        sides = [{key: each.measures[HEADLINE] for key, each in load_retrieval(folder).items()} for folder in folders]
        drawn, noun, unit = resample_means(sides), "queries", ", nDCG@10"
    else:
        data = pairs.read(folders[0])
        drawn = resample([[_load(folder).cosines] for folder in folders], data.scores, data.identity)
        noun, unit = "different pairs", ""
    (differences,) = drawn.differences([(0, 1)])
    rows: list[Row] = [("set", left.name, right.name, "first − second", "the first is")]
    for key in drawn.shown:
        difference = differences[key]
        scores = [f"{drawn.interval(place, key).value:.2f}" for place in (0, 1)]
        rows.append(("mean over sets" if key == MEAN else key, *scores, str(difference), difference.verdict))
    prompt = (read_json(folders[0] / METRICS).get("contract") or {}).get("template", "")
    stands_on = (
        f"on {max(drawn.pairs):,} {noun} of the {'largest ' if len(drawn.names) > 2 else ''}set; one training "
        "each, so that another seed may turn a verdict round"
    )
    note = undefined_note(differences.values())
    return f"{name}{unit}, prompt {prompt!r}, first minus second, {stands_on}\n\n{as_text(rows)}" + (
        f"\n{note}" * bool(note)
    )


def _load(folder: Path) -> Evaluation:
    evaluation = load_evaluation(folder)
    if evaluation is None:
        raise UserError(f"{folder} has no {METRICS}: run its job again, which makes it anew")
    return evaluation


def remove_runs(folders: list[Path], *, sure: bool) -> None:
    """Delete trainings with all their scores, after asking unless `sure`."""
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        sys.stdout.write(f"{folder}: {byte_size(size)}\n")
    if not sure:
        if not sys.stdin.isatty():
            raise UserError("nothing was removed: add --yes, or yes=true")
        if input("remove these for good? [y/N] ").strip().casefold() not in ("y", "yes"):
            raise UserError("nothing was removed")
    for folder in folders:
        with exclusive_lock(folder):
            shutil.rmtree(folder)
    sys.stdout.write(f"removed {len(folders)}\n")
