"""The form of the files that experiments and scales are: read whole, and refused where a key holds what it cannot."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from cft.system.errors import UserError
from cft.system.text import described

_CELL_KEYS = {"name", "overrides", "each", "base", "hidden", "scales"}

# What a key must hold, wherever it stands; one that is empty is as if it were not there.
_KINDS: dict[str, tuple[type, str]] = {
    "layout": (str, "a word"),
    "cells": (list, "a list of cells"),
    "comparisons": (list, "a list of pairs of names, as in [[one, other]]"),
    "rows": (list, "a list of [key, label, the paper's value]"),
    "paper": (dict, "cells by name, with what the paper reports for each"),
    "overrides": (list, "a list of settings, each KEY=VALUE"),
    "each": (dict, "names with lists of values"),
    "scales": (list, "a list of scales"),
    "base": (bool, "true or false"),
    "hidden": (bool, "true or false"),
    "values": (dict, "names with values"),
    "wants": (dict, "settings, with why each is wanted"),
}


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: the second would silently take the place of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in known and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} stands there twice")
            known.add(str(key.value))
        return super().construct_mapping(node, deep)


def read(path: Path, keys: set[str]) -> dict:
    """Read an experiment or a scale.

    Raises:
        UserError: naming the file and the key that is unknown, stands twice or holds what it cannot.
    """
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a YAML file that can be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be keys and values, of {', '.join(sorted(keys))}")
    unknown = sorted(map(str, set(content) - keys))
    if unknown:
        raise UserError(f"{path}: knows no key {unknown[0]!r}; keys: {', '.join(sorted(keys))}")
    _require_kinds(content, str(path))
    for cell in content.get("cells") or []:
        _require_cell(cell, path)
    for key, size in (("comparisons", 2), ("rows", 3)):
        for row in content.get(key) or []:
            if not isinstance(row, list) or len(row) != size:
                raise UserError(f"{path}: {key}: {described(row)} is not one row of {_KINDS[key][1]}")
    for name, reported in (content.get("paper") or {}).items():
        _require_reported(reported, f"{path}: paper: {name}")
    return content


def _require_kinds(content: dict, where: str) -> None:
    for key, (kind, words) in _KINDS.items():
        if content.get(key) is not None and not isinstance(content[key], kind):
            raise UserError(f"{where}: {key}: {described(content[key])} is not {words}")


def _require_cell(cell: Any, path: Path) -> None:
    if not isinstance(cell, dict):
        raise UserError(f"{path}: the cell {described(cell)} is not a name with overrides, as in {{name: a}}")
    unknown = sorted(map(str, set(cell) - _CELL_KEYS))
    if unknown or not cell.get("name"):
        fault = f"knows no key {unknown[0]!r}" if unknown else "has no name"
        raise UserError(f"{path}: the cell {cell.get('name', cell)!r} {fault}; keys: {', '.join(sorted(_CELL_KEYS))}")
    _require_kinds(cell, f"{path}: the cell {cell['name']!r}")


def _require_reported(reported: Any, where: str) -> None:
    """Refuse what is no score by set, nor [mean, deviation]."""
    if not isinstance(reported, dict):
        raise UserError(f"{where}: {described(reported)} is not scores by set, as in {{overall: [81.56, 4.83]}}")
    for name, value in reported.items():
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        odd = any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in numbers)
        if odd or value == []:
            raise UserError(f"{where}: {name}: {described(value)} is neither a score nor [mean, deviation]")
