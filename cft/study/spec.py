"""An experiment as a file: its question, its cells, the paper's numbers for them, and what is compared with what.

A file in experiments/ says what to run; a file in experiments/scales/ says with which model, data and steps. The
two are put together here into cells, each with the command-line overrides of its job.
"""

import itertools
import re
import string
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cft.study.form import read
from cft.system.errors import UserError
from cft.system.shipped import shipped_folder
from cft.system.text import did_you_mean

LAYOUTS = {
    "config": "a row a setting: what the configuration says, beside the paper's value; nothing is run",
    "sets": "a row a test set, a column a cell",
    "overall": "a row a cell: the mean over the test sets",
    "curve": "a row a cell: the mean over the steps of one training",
    "time": "a row a cell: the mean over the minutes of training; cells named WHAT, step N are a line",
}
_KEYS = {"title", "question", "source", "layout", "cells", "paper", "paper_note", "baseline", "comparisons", "rows"}
_SCALE_KEYS = {"like", "about", "overrides", "values", "wants"}

# Settings that change nothing of what comes out, with those that are under them.
_NOT_OF_RESULTS = {"outputs", "logger", "device", "hydra", "vector_cache_gb"}


@dataclass(frozen=True)
class Cell:
    """One embedder to be scored."""

    name: str  # what tables call it
    overrides: list[str]  # of its job, those of the scale included
    base: bool = False  # whether the untrained model is scored
    hidden: bool = False  # whether it is there only to be compared with, and no table shows it
    paper: dict[str, Any] = field(default_factory=dict)  # Spearman x 100 by set; "overall": [mean, deviation]


@dataclass(frozen=True)
class Experiment:
    """One table or figure at one scale."""

    name: str
    scale: str
    title: str
    question: str
    source: str  # of the paper's numbers
    layout: str  # of LAYOUTS
    cells: list[Cell]
    comparisons: list[tuple[str, str]]  # names of cells; does the first differ from the second?
    paper_note: str = ""
    about_scale: str = ""
    rows: list[tuple[str, str, str]] = field(default_factory=list)  # of "config": key, label and the paper's value


def folder() -> Path:
    """The package's own experiments."""
    return shipped_folder("experiments")


def available() -> list[str]:
    """Names of the paper's experiments, tables before figures."""
    return sorted((path.stem for path in folder().glob("*.yaml")), key=lambda name: (name.startswith("figure"), name))


def available_beside() -> list[str]:
    """Names of the package's other experiments, as study/recipe."""
    names = (path.relative_to(folder()).with_suffix("") for path in folder().glob("*/*.yaml"))
    return sorted(name.as_posix() for name in names if name.parent.name != "scales")


def scales() -> list[str]:
    """Names of the scales."""
    return sorted(path.stem for path in (folder() / "scales").glob("*.yaml"))


def load(name: str, scale: str, overrides: list[str] | None = None, *, check_inputs: bool = True) -> Experiment:
    """Read an experiment and lay it out at a scale.

    Args:
        name: one of `available()` or `available_beside()`, or the path of a user's own file.
        scale: one of `scales()`, or the path of a user's own file.
        overrides: for all jobs, after everything the files say.
        check_inputs: refuse if a file that the scale wants is not among the overrides.

    Raises:
        UserError: naming the file and what is wrong in it.
    """
    path = find(name)
    scale_path = _find(scale, folder() / "scales", scales(), "scale")
    content, at_scale = read(path, _KEYS), _read_scale(scale_path)
    if check_inputs and content.get("layout") != "config":
        _require_inputs(at_scale, scale_path, overrides or [])
    layout = content.get("layout", "overall")
    if layout not in LAYOUTS:
        raise UserError(f"{path}: layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    for key in ("title", "question"):
        if not content.get(key):
            raise UserError(f"{path}: {key} is missing")

    fill = _Fill(path, {str(key): _as_word(value) for key, value in (at_scale.get("values") or {}).items()})
    common = [fill(entry) for entry in at_scale.get("overrides") or []]
    cells: list[Cell] = []
    for entry in content.get("cells") or []:
        if entry.get("scales") is None or scale_path.stem in entry["scales"]:
            cells += _cells(entry, fill, common, overrides or [])
    paper = {fill(str(key)): value or {} for key, value in (content.get("paper") or {}).items()}
    _require_cells(paper, "paper", content, fill)
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: two cells are called {twice[0]!r}; names must differ")
    if not cells and layout != "config":
        raise UserError(f"{path}: no cells at scale {scale_path.stem}")
    return Experiment(
        name=path.stem,
        scale=scale_path.stem,
        title=fill(content["title"]),
        question=fill(content["question"]),
        source=fill(content.get("source", "")),
        layout=layout,
        cells=[replace(cell, paper=paper.get(cell.name, {})) for cell in cells],
        comparisons=_comparisons(content, fill, names),
        paper_note=fill(content.get("paper_note", "")),
        about_scale=_about(at_scale, overrides or []),
        rows=[(str(key), str(label), str(value)) for key, label, value in content.get("rows") or []],
    )


def _about(at_scale: dict, overrides: list[str]) -> str:
    """What the scale says of itself, and what was given that it does not know of."""
    files = at_scale.get("wants") or {}
    keys = {entry: entry.split("=", 1)[0] for entry in _last_wins(overrides)}
    given = [entry for entry, key in keys.items() if key not in files and key.split(".")[0] not in _NOT_OF_RESULTS]
    about = str(at_scale.get("about", ""))
    return f"{about}; but with {' '.join(given)}" if about and given else about


def common_overrides(scale: str, overrides: list[str]) -> list[str]:
    """Overrides of a scale for its ablations' model, a placeholder for every file that it wants and was not given.

    Raises:
        UserError: if the scale is unknown or cannot be read.
    """
    path = _find(scale, folder() / "scales", scales(), "scale")
    at_scale = _read_scale(path)
    fill = _Fill(path, {str(key): _as_word(value) for key, value in (at_scale.get("values") or {}).items()})
    wanted = [f"{key}=FILE" for key in at_scale.get("wants") or {}]
    return _last_wins([*wanted, *map(fill, at_scale.get("overrides") or []), *overrides])


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


def _cells(entry: dict, fill: _Fill, common: list[str], last: list[str]) -> list[Cell]:
    """One entry of a file: a cell, or one for every combination of what `each` lists."""
    each = {name: _listed(values, fill) for name, values in (entry.get("each") or {}).items()}
    base, hidden = bool(entry.get("base", False)), bool(entry.get("hidden", False))
    untrained = ["train.steps=0", "train.keep=[]"] if base else []
    cells = []
    for combination in itertools.product(*each.values()):
        filled = replace(fill, values=fill.values | dict(zip(each, map(_as_word, combination), strict=True)))
        own = [filled(override) for override in entry.get("overrides") or []]
        cells.append(Cell(filled(entry["name"]), _last_wins([*common, *own, *last, *untrained]), base, hidden))
    return cells


def _as_word(value: Any) -> Any:
    """A value as Hydra reads it."""
    return "null" if value is None else value


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


def _comparisons(content: dict, fill: _Fill, names: list[str]) -> list[tuple[str, str]]:
    """The pairs listed, and every cell with the baseline, each once, as far as the cells exist at this scale."""
    compared = [(fill(left), fill(right)) for left, right in content.get("comparisons") or []]
    _require_cells(itertools.chain(*compared), "comparisons", content, fill)
    if content.get("baseline"):
        baseline = fill(content["baseline"])
        if baseline not in names:
            raise UserError(f"{fill.path}: baseline {baseline!r} is not a cell; cells: {', '.join(names)}")
        compared += [(name, baseline) for name in names if name != baseline]
    return [(left, right) for left, right in dict.fromkeys(compared) if left in names and right in names]


def _require_cells(named: Iterable[str], key: str, content: dict, fill: _Fill) -> None:
    """Refuse the name of a cell that is there at no scale: what it was named for would be left out without a word."""
    cells = {str(cell["name"]): cell.get("each") or {} for cell in content.get("cells") or []}
    forms = []
    for name, each in cells.items():
        # What a $name stands for in a combination, or at another scale, may be anything.
        values = defaultdict(lambda: "\0", fill.values | dict.fromkeys(each, "\0"))
        forms.append(re.escape(replace(fill, values=values)(name)).replace(re.escape("\0"), ".+"))
    for name in named:
        if not any(re.fullmatch(form, name) for form in forms):
            hint = did_you_mean(name, cells)
            raise UserError(f"{fill.path}: {key}: {name!r} is not a cell; cells: {', '.join(cells)}{hint}")


def _require_inputs(at_scale: dict, path: Path, overrides: list[str]) -> None:
    """Refuse a scale that trains on files which nobody named."""
    given = {override.split("=", 1)[0] for override in overrides}
    lines = [f"  {key}=...  {why}" for key, why in (at_scale.get("wants") or {}).items() if key not in given]
    if lines:
        raise UserError("\n".join([f"scale {path.stem} needs to be told:", *lines]))


def find(name: str) -> Path:
    """The file of an experiment.

    Raises:
        UserError: if there is none of this name.
    """
    return _find(name, folder(), [*available(), *available_beside()], "experiment")


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


def _read_scale(path: Path) -> dict:
    """A scale's content, on top of that of the scale that it is like."""
    content = read(path, _SCALE_KEYS)
    if "like" not in content:
        return content
    place = _find(str(content["like"]), folder() / "scales", scales(), "scale")
    base = read(place, _SCALE_KEYS - {"like"})  # one step alone, so that no two are like each other
    overrides = [*(base.get("overrides") or []), *(content.get("overrides") or [])]
    merged = {key: {**(base.get(key) or {}), **(content.get(key) or {})} for key in ("values", "wants")}
    return {**base, **content, **merged, "overrides": overrides}
