"""What is under outputs/: trainings listed, found by name, compared and removed."""

import shutil
import sys
from pathlib import Path
from typing import Any

from cft.config.compose import all_keys, compose_config, flatten, nearest_names
from cft.config.schema import PLACEHOLDER, EvalSource, Precision, Prompts
from cft.evaluation import pairs
from cft.evaluation.bootstrap import MEAN, Resamples, resample, resample_means, undefined_note
from cft.evaluation.retrieval import FILE_NAME as QUERIES
from cft.evaluation.retrieval import MEASURES
from cft.evaluation.scores import METRICS, Evaluation, load_evaluation
from cft.job.run_folder import RunFolder, evaluation_name
from cft.job.verdicts import MEAN_ROW
from cft.model.contract import FILE_NAME as CONTRACT
from cft.model.contract import PRECISION_OF
from cft.system.digest import to_plain
from cft.system.errors import UserError
from cft.system.files import exclusive_lock, named, read_json
from cft.system.overrides import override, overrides
from cft.system.tables import Row, as_text
from cft.system.text import byte_size
from cft.training import checkpoint

# Short names of settings in filters: those of groups stand for what their choices differ in.
_SHORT = {
    "model": "model.name",
    "data": "data.name",
    "eval": "eval.name",
    "schedule": "schedule.kind",
    "logger": "logger.kind",
    "steps": "train.steps",
    "loss": "loss.hard_negatives",
}
_OF_LOSS = {"hard_neg": "true", "in_batch": "false"}

_PRECISION = "train.precision"

# Settings without influence on a training's result; evaluations are compared apart.
_WITHOUT_INFLUENCE = (
    *("eval.", "logger.", "outputs", "device", "vector_cache_gb"),
    *("train.keep", "train.checkpoint_every", "train.chunk_tokens", "train.gradient_checkpointing"),
)


def trainings(outputs: Path) -> list[RunFolder]:
    """Folders of trainings, finished or not, the newest last."""
    configs = sorted(outputs.glob(f"*/{RunFolder.CONFIG}"), key=lambda path: path.stat().st_mtime)
    return [RunFolder(path.parent) for path in configs]


def merges(outputs: Path) -> list[RunFolder]:
    """Folders of what was merged out of trainings, by name."""
    return [RunFolder(path.parent) for path in sorted(outputs.glob(f"*/{RunFolder.MERGED}"))]


def settings_of(run: RunFolder) -> dict[str, str]:
    """A run's settings by dotted key; none for an untrained model."""
    path = run.file(RunFolder.CONFIG)
    return flatten(read_json(path)) if path.exists() else {}


def _with_precision(settings: dict[str, str], run: RunFolder) -> dict[str, str]:
    """A run's settings, with the precision that its result has in the place of train.precision=auto."""
    contract = run.file(CONTRACT)
    if settings.get(_PRECISION) != Precision.auto.value or not contract.exists():
        return settings
    return settings | {_PRECISION: PRECISION_OF.get(read_json(contract).get("dtype"), Precision.auto.value)}


def list_runs(outputs: Path, filters: list[str]) -> list[Row]:
    """A row a training that all filters hold for; without filters, a row a merge of trainings too.

    Raises:
        UserError: if a filter names no setting.
    """
    wanted = [_parse_filter(entry) for entry in filters]
    table: list[Row] = [
        ("run", "state", "model", "data", "lr", "hard negatives", "seed", "evaluation", "before", "after")
    ]
    for run in [*trainings(outputs), *(merges(outputs) if not wanted else [])]:
        settings = settings_of(run)
        taken = _with_precision(settings, run) if wanted else settings
        if not all(_equal(settings.get(key, ""), value) or _equal(taken.get(key, ""), value) for key, value in wanted):
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
    if run.file(RunFolder.MERGED).exists():
        return f"merged of {len(read_json(run.file(RunFolder.MERGED))['parents'])} runs"
    planned = _planned_steps(run, settings)
    if finished := run.finished():
        return f"{finished.steps} steps"
    if failure := run.failure():
        return f"failed at step {failure.step} of {planned}"
    return f"at step {checkpoint.step_of(run.path)} of {planned}"


def _planned_steps(run: RunFolder, settings: dict[str, str]) -> str:
    """The steps that a training comes to: as many as configured, or as its data have batches for."""
    path = run.file(RunFolder.DATA)
    known = read_json(path) if path.exists() else {}
    return str(known.get("steps", settings.get("train.steps", "?")))


def _parse_filter(entry: str) -> tuple[str, str]:
    key, equals, value = entry.partition("=")
    value = _OF_LOSS.get(value, value) if key == "loss" else value
    key = _SHORT.get(key, key)
    keys = all_keys()
    if not equals or key not in keys:
        raise UserError(f"{entry}: a filter is KEY=VALUE with a key of the configuration{nearest_names(key, keys)}")
    parts = [known for known in keys if known.startswith(f"{key}.")]
    if parts and value != "null":  # only a group that may be missing is itself a value
        raise UserError(f"{entry}: {key} is a group of settings; filter by one of them, such as {parts[0]}=VALUE")
    return key, value


def _equal(left: str, right: str) -> bool:
    """Whether a setting, as `flatten` writes it, has a value, as `cft.run` takes it; numbers by their value."""
    if len(right) > 1 and right[0] == right[-1] and right[0] in "'\"":
        right = right[1:-1]
    if right.startswith("[") and right.endswith("]"):
        sides = [[word.strip() for word in side.split(",")] for side in (left, right[1:-1])]
        return len(sides[0]) == len(sides[1]) and all(map(_equal, *sides))
    try:
        return float(left) == float(right)
    except ValueError:
        return left.casefold() == right.casefold()


def find_run(outputs: Path, name: str) -> Path:
    """A run's folder by its path, its name, or the end of its name.

    Raises:
        UserError: if there is none, or several.
    """
    if not name.strip():
        raise UserError(f"{name!r} names no run: give its folder, or the end of its name under {outputs}")
    candidates = [run.path for run in [*trainings(outputs), *merges(outputs)]]
    candidates += [*sorted(outputs.glob("base-*")), *sorted(outputs.glob("adapter-*"))]
    given = Path(name)
    if given.is_dir() and given.resolve() in {folder.resolve() for folder in candidates}:
        return given
    matches = named(name, candidates, outputs)
    if len(matches) == 1:
        return matches[0]
    if given.is_dir() and given.resolve().parent != outputs.resolve():
        raise UserError(f"{name} is not under {outputs}: add {override('outputs', str(given.parent))}")
    names = ", ".join(folder.name for folder in matches or candidates) or "none"
    raise UserError(f"{name}: {'several runs end so' if matches else 'no such run'} under {outputs}; there: {names}")


def compare_runs(left: Path, right: Path) -> str:
    """Settings that differ, and the scores of every evaluation that both runs have, with verdicts."""
    settings = [_with_precision(settings_of(run), run) for run in map(RunFolder, (left, right))]
    rows: list[Row] = [("setting", left.name, right.name)]
    for key in sorted({*settings[0], *settings[1]}):
        values = [each.get(key, "—") for each in settings]
        if values[0] != values[1] and not key.startswith(_WITHOUT_INFLUENCE):
            rows.append((key, *values))
    parts = [as_text(rows) if len(rows) > 1 else "the settings are the same"]
    shared = _shared(left, right)
    parts += [_compare_evaluation(*folders, (left.name, right.name)) for folders in shared]
    if not shared:
        parts.append(_how_to_share(left, right))
    return "\n\n".join(parts)


def _shared(left: Path, right: Path) -> list[tuple[Path, Path]]:
    """Evaluations of two runs on the same data: under the same prompt, or else as each run will be used."""
    by_name = [{path.name: path for path in _evaluations(run)} for run in (left, right)]
    found = [(by_name[0][name], by_name[1][name]) for name in sorted(set(by_name[0]) & set(by_name[1]))]
    known = {_data_of(folder) for folder, _ in found}
    by_data: list[dict[str, list[Path]]] = [{}, {}]
    for side, folders in zip(by_data, by_name, strict=True):
        for folder in folders.values():
            side.setdefault(_data_of(folder), []).append(folder)
    common = sorted(set(by_data[0]) & set(by_data[1]) - known)
    return found + [(_as_used(by_data[0][data], left), _as_used(by_data[1][data], right)) for data in common]


def _data_of(folder: Path) -> str:
    """What an evaluation was made on, by content; records of older versions have only the folder's name."""
    return read_json(folder / METRICS).get("data") or folder.name


def _prompts_of(record: dict) -> Prompts:
    return Prompts(record.get("template", PLACEHOLDER), record.get("query_template"), record.get("document_template"))


def _as_used(folders: list[Path], run: Path) -> Path:
    """Of a run's evaluations on the same data, that under the prompt which it was saved with; else the newest."""
    folders = sorted(folders, key=lambda folder: (folder / METRICS).stat().st_mtime)
    saved = _prompts_of(read_json(run / CONTRACT)) if (run / CONTRACT).exists() else None
    fitting = [folder for folder in folders if _prompts_of(read_json(folder / METRICS).get("contract") or {}) == saved]
    return (fitting or folders)[-1]


def _how_to_share(left: Path, right: Path) -> str:
    """What to do where two runs have no evaluation in common: the command that makes one."""
    for judged, other in ((left, right), (right, left)):
        settings = [RunFolder(run).file(RunFolder.CONFIG) for run in (judged, other)]
        if not all(path.exists() for path in settings):
            continue
        of_judged, of_other = map(read_json, settings)
        evaluation = of_judged.get("eval", {})
        if evaluation.get("source") in (None, EvalSource.rows.value, EvalSource.none.value):
            continue
        wanted = of_other | {"eval": evaluation, "outputs": str(other.parent)}
        return (
            f"no evaluation that both have; this one scores {other.name} as {judged.name} was scored:\n\n"
            f"    python -m cft.run {overrides(_differing(wanted))}"
        )
    return (
        "no evaluation that both have: score them on the same data, as by eval=retrieval eval.folder=FOLDER (queries, "
        "documents and judgements) or eval=sts"
    )


def _differing(settings: dict[str, Any], usual: dict[str, Any] | None = None, prefix: str = "") -> dict[str, Any]:
    """Settings, by dotted key, that are not what they are without being given; of a second model, all."""
    usual = to_plain(compose_config([])) if usual is None else usual
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(usual.get(key), dict):
            found |= _differing(value, usual[key], f"{prefix}{key}.")
        elif value != usual.get(key) and not isinstance(value, dict):
            found[f"{prefix}{key}"] = value
    return found


def _evaluations(folder: Path) -> list[Path]:
    scored = folder.glob(f"{RunFolder.EVALUATIONS}/*/{pairs.FILE_NAME}")
    return [path.parent for path in scored if (path.parent / METRICS).exists()]


def _compare_evaluation(left: Path, right: Path, names: tuple[str, str]) -> str:
    """One evaluation's tables: both scores, the first minus the second as in studies, and the verdict."""
    folders, others = (left, right), []
    if (left / QUERIES).exists():
        sides = [_load(folder) for folder in folders]
        drawn = resample_means([side.by_query for side in sides])
        rest = [
            {f"{key}, {name}": each.measures[name] for key, each in side.retrieval.items() for name in MEASURES[1:]}
            for side in sides
        ]
        others = [_table(resample_means(rest), names, "queries", mean=False)]
        noun, unit = "queries", ", nDCG@10"
    else:
        data = pairs.read(left)
        drawn = resample([[_load(folder).cosines] for folder in folders], data.scores, data.identity)
        noun, unit = "different pairs", ""
    prompts = [_prompts_of(read_json(folder / METRICS).get("contract") or {}) for folder in folders]
    under = f"prompt {prompts[0]}" if prompts[0] == prompts[1] else f"prompts {prompts[0]} and {prompts[1]}"
    stands_on = (
        f"on {max(drawn.pairs):,} {noun} of the {'largest ' if len(drawn.names) > 2 else ''}set; one training "
        "each, so that another seed may turn a verdict round"
    )
    note = undefined_note(drawn.differences([(0, 1)])[0].values())
    text = f"{left.name}{unit}, {under}, first minus second, {stands_on}\n\n{_table(drawn, names, noun.split()[-1])}"
    return "\n\n".join([f"{text}\n{note}" if note else text, *others])


def _table(drawn: Resamples, names: tuple[str, str], things: str, *, mean: bool = True) -> str:
    """Both scores, their difference and its verdict, a row a set; all differences are corrected together."""
    (differences,) = drawn.differences([(0, 1)])
    rows: list[Row] = [("set", *names, "first − second", "the first is")]
    for key in drawn.shown if mean else drawn.names[:-1]:
        difference = differences[key]
        scores = [f"{drawn.interval(place, key).value:.2f}" for place in (0, 1)]
        rows.append((MEAN_ROW if key == MEAN else key, *scores, str(difference), difference.verdict_on(things)))
    return as_text(rows)


def _load(folder: Path) -> Evaluation:
    evaluation = load_evaluation(folder)
    if evaluation is None:
        raise UserError(f"{folder} has no {METRICS}: run its job again, which makes it anew")
    return evaluation


def remove_runs(folders: list[Path], *, sure: bool) -> None:
    """Delete trainings with all their scores, after asking unless `sure`; one that is named twice counts once."""
    folders = list({folder.resolve(): folder for folder in folders}.values())
    for folder in folders:
        if folder.is_symlink():
            raise UserError(f"{folder} is a link to {folder.readlink()}: name that folder; nothing was removed")
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
