"""An experiment as a file: its question, its cells, the paper's numbers for them, and what is compared with what.

A file in experiments/ says what to run; a file in experiments/scales/ says with which model, data and steps. The
two are put together here into cells, each with the command-line overrides of its job.
"""

import itertools
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cft.system.errors import UserError
from cft.system.shipped import shipped_folder
from cft.system.text import did_you_mean

DEFAULT_OUTPUTS = "outputs"

LAYOUTS = {
    "config": "a row a setting: what the configuration says, beside the paper's value; nothing is run",
    "sets": "a row a test set, a column a cell",
    "overall": "a row a cell: the mean over the test sets",
    "curve": "a row a cell: the mean over the steps of one training",
    "time": "a row a cell: the mean over the minutes of training; cells named WHAT, step N are a line",
}
_KEYS = {"title", "question", "source", "layout", "cells", "paper", "paper_note", "baseline", "comparisons", "rows"}
_CELL_KEYS = {"name", "overrides", "each", "base", "hidden", "scales"}
_SCALE_KEYS = {"about", "overrides", "values", "wants"}


@dataclass(frozen=True)
class Cell:
    """One embedder to be scored.

    name: what tables call it. overrides: of its job, those of the scale included. base: the untrained model is
    scored. hidden: only there to be compared with; no table shows it. paper: the paper's Spearman x 100 by set, under
    "overall" its mean and deviation.
    """

    name: str
    overrides: list[str]
    base: bool = False
    hidden: bool = False
    paper: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One table or figure at one scale.

    comparisons: pairs of cell names; the first is asked whether it differs from the second. rows: of the layout
    "config", a configuration key with its label and the paper's value each.
    """

    name: str
    scale: str
    title: str
    question: str
    source: str
    layout: str
    cells: list[Cell]
    comparisons: list[tuple[str, str]]
    paper_note: str = ""
    about_scale: str = ""
    rows: list[tuple[str, str, str]] = field(default_factory=list)


def folder() -> Path:
    """The package's own experiments."""
    return shipped_folder("experiments")


def available() -> list[str]:
    """Names of the paper's experiments, tables before figures."""
    return sorted((path.stem for path in folder().glob("*.yaml")), key=lambda name: (name.startswith("figure"), name))


def available_beside() -> list[str]:
    """Names of the package's other experiments, as study/recipe."""
    found = (path.relative_to(folder()).with_suffix("") for path in folder().glob("*/*.yaml"))
    return sorted(name.as_posix() for name in found if name.parent.name != "scales")


def scales() -> list[str]:
    """Names of the scales."""
    return sorted(path.stem for path in (folder() / "scales").glob("*.yaml"))


def load(name: str, scale: str, overrides: list[str] | None = None, *, check_inputs: bool = True) -> Experiment:
    """Read an experiment and lay it out at a scale.

    Args:
        name: one of `known()` or `further()`, or the path of a user's own file.
        scale: one of `scales()`, or the path of a user's own file.
        overrides: for all jobs, after everything the files say.
        check_inputs: refuse if a file that the scale wants is not among the overrides.

    Raises:
        UserError: naming the file and what is wrong in it.
    """
    path, scale_path = (
        _find(name, folder(), [*available(), *available_beside()], "experiment"),
        _find(scale, folder() / "scales", scales(), "scale"),
    )
    told, laid = _read(path, _KEYS), _read(scale_path, _SCALE_KEYS)
    values = {str(key): value for key, value in (laid.get("values") or {}).items()}
    if check_inputs:
        _require_inputs(laid, scale_path, overrides or [], told)
    layout = told.get("layout", "overall")
    if layout not in LAYOUTS:
        raise UserError(f"{path}: layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    for key in ("title", "question"):
        if not told.get(key):
            raise UserError(f"{path}: {key} is missing")

    fill = _Fill(path, values)
    common = [fill(entry) for entry in laid.get("overrides") or []]
    paper = {fill(str(key)): value for key, value in (told.get("paper") or {}).items()}
    cells: list[Cell] = []
    for entry in told.get("cells") or []:
        cells += _cells(entry, fill, common, overrides or [], paper, scale_path.stem)
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: two cells are called {twice[0]!r}; names must differ")
    if not cells and layout != "config":
        raise UserError(f"{path}: no cells at scale {scale_path.stem}")
    return Experiment(
        name=path.stem,
        scale=scale_path.stem,
        title=fill(told["title"]),
        question=fill(told["question"]),
        source=fill(told.get("source", "")),
        layout=layout,
        cells=cells,
        comparisons=_comparisons(told, fill, names, path),
        paper_note=fill(told.get("paper_note", "")),
        about_scale=laid.get("about", ""),
        rows=[(str(key), str(label), str(value)) for key, label, value in told.get("rows") or []],
    )


def common_overrides(scale: str, overrides: list[str]) -> list[str]:
    """Overrides of a scale for its ablations' model, a placeholder for every file that it wants and was not given.

    Raises:
        UserError: if the scale is unknown or cannot be read.
    """
    path = _find(scale, folder() / "scales", scales(), "scale")
    laid = _read(path, _SCALE_KEYS)
    fill = _Fill(path, laid.get("values") or {})
    wanted = [f"{key}=FILE" for key in laid.get("wants") or {}]
    return _last_wins([*wanted, *map(fill, laid.get("overrides") or []), *overrides])


def outputs_of(overrides: list[str]) -> Path:
    """The folder that `outputs=` names."""
    given = [entry.split("=", 1)[1] for entry in overrides if entry.startswith("outputs=")]
    return Path(given[-1] if given else DEFAULT_OUTPUTS)


@dataclass(frozen=True)
class _Fill:
    """Puts values in the place of $names."""

    path: Path
    values: dict[str, Any]

    def __call__(self, text: str) -> str:
        try:
            return " ".join(string.Template(str(text)).substitute(self.values).split("\n")).strip()
        except (KeyError, ValueError) as error:
            raise UserError(f"{self.path}: {text!r} asks for a value {error} that the scale does not give") from error

    def with_values(self, values: dict[str, Any]) -> "_Fill":
        return _Fill(self.path, {**self.values, **values})


def _cells(
    entry: dict, fill: _Fill, common: list[str], last: list[str], paper: dict[str, Any], scale: str
) -> list[Cell]:
    """One entry of a file: a cell, or one for every combination of what `each` lists."""
    unknown = sorted(set(entry) - _CELL_KEYS)
    if unknown or not entry.get("name"):
        fault = f"knows no key {unknown[0]!r}" if unknown else "has no name"
        raise UserError(f"{fill.path}: the cell {entry.get('name', entry)!r} {fault}; keys: {', '.join(_CELL_KEYS)}")
    if scale not in entry.get("scales", [scale]):
        return []
    each = {name: _listed(values, fill) for name, values in (entry.get("each") or {}).items()}
    base = bool(entry.get("base", False))
    cells = []
    for combination in itertools.product(*each.values()):
        filled = fill.with_values(dict(zip(each, combination, strict=True)))
        own = [filled(override) for override in entry.get("overrides") or []]
        untrained = ["train.steps=0", "train.keep=[]"] if base else []
        name = filled(entry["name"])
        cells.append(
            Cell(
                name=name,
                overrides=_last_wins([*common, *own, *last, *untrained]),
                base=base,
                hidden=bool(entry.get("hidden", False)),
                paper=paper.get(name, {}),
            )
        )
    return cells


def _listed(values: Any, fill: _Fill) -> list[Any]:
    """The values of one name under `each`: a list, or the scale's list by its $name."""
    if isinstance(values, str) and values.startswith("$"):
        values = fill.values.get(values[1:])
    if not isinstance(values, list):
        raise UserError(f"{fill.path}: each: {values!r} is not a list, nor the $name of a list that the scale gives")
    return values


def _last_wins(overrides: list[str]) -> list[str]:
    """Overrides with every key once, at its last value; Hydra refuses a group that is chosen twice."""
    return list({override.split("=", 1)[0]: override for override in overrides}.values())


def _comparisons(told: dict, fill: _Fill, names: list[str], path: Path) -> list[tuple[str, str]]:
    """What is compared: the pairs listed whose cells exist at this scale, and every shown cell with the baseline."""
    found = [(fill(one), fill(other)) for one, other in told.get("comparisons") or []]
    if told.get("baseline"):
        baseline = fill(told["baseline"])
        if baseline not in names:
            raise UserError(f"{path}: baseline {baseline!r} is not a cell; cells: {', '.join(names)}")
        found += [(name, baseline) for name in names if name != baseline]
    return [(one, other) for one, other in found if one in names and other in names]


def _require_inputs(laid: dict, path: Path, overrides: list[str], told: dict) -> None:
    """A scale that trains on files says which keys must be given."""
    given = {override.split("=", 1)[0] for override in overrides}
    missing = {key: why for key, why in (laid.get("wants") or {}).items() if key not in given}
    if missing and told.get("layout") != "config":
        lines = [f"  {key}=...  {why}" for key, why in missing.items()]
        raise UserError("\n".join([f"scale {path.stem} needs to be told:", *lines]))


def _find(name: str, home: Path, names: list[str], what: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{what} {name}: no such file")
        return Path(name)
    if name not in names:
        raise UserError(
            f"{what} {name}: unknown; choose among {', '.join(names)}, or name a .yaml file of your own"
            f"{did_you_mean(name, names)}"
        )
    return home / f"{name}.yaml"


def _read(path: Path, keys: set[str]) -> dict:
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a YAML file that can be read: {error}") from error
    if not isinstance(told, dict):
        raise UserError(f"{path}: must be keys and values, of {', '.join(sorted(keys))}")
    unknown = sorted(set(told) - keys)
    if unknown:
        raise UserError(f"{path}: knows no key {unknown[0]!r}; keys: {', '.join(sorted(keys))}")
    return told
