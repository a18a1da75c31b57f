"""Cells of a row to texts and numbers, the same for every file format.

The readers take a row's cells by column, and raise BadRow for a cell that is missing or holds something else.
"""

import math
from collections.abc import Sequence
from typing import Any

from cft.system.text import described


class BadRow(Exception):
    """Why a row cannot be used."""


def text_of(cells: dict[str, Any], column: str, role: str) -> str:
    """The text of a cell, verbatim; `role` says in messages what it is for."""
    label = _label(role, column)
    return _checked_text(_cell(cells, column, label), label)


def id_of(cells: dict[str, Any], column: str, role: str = "id") -> str:
    """The id of a cell, a text or a whole number; `role` says in messages what it is for."""
    label = _label(role, column)
    value = _cell(cells, column, label)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _checked_text(value, label)


def texts_of(cells: dict[str, Any], column: str, role: str) -> list[str]:
    """The texts of a cell that holds a text or a list of texts, at least one."""
    label = _label(role, column)
    value = _cell(cells, column, label)
    if value == []:
        raise BadRow(f"has an empty list as {label}")
    return [_checked_text(text, label) for text in (value if isinstance(value, list) else [value])]


def negatives_of(cells: dict[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """The hard negatives of a row. A cell holds a text or a list of texts, and may be empty behind the first column."""
    texts: list[str] = []
    for column in columns:
        value = cells.get(column)
        blank = value is None or value == [] or (isinstance(value, str) and not value.strip())
        if blank and column != columns[0]:
            continue
        texts += texts_of(cells, column, "negative")
    return tuple(texts)


def number_of(cells: dict[str, Any], column: str, role: str) -> float:
    """The finite number of a cell, which may be written as text."""
    label = _label(role, column)
    value = _cell(cells, column, label)
    try:
        # Python reads true as 1, and "4_4", which is as often a slip for 4.4, as 44.
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"has {described(value)} as {label}, which is not a finite number")
    return number


def _label(role: str, column: str) -> str:
    return f"{role!r}" if role == column else f"{role!r} (column {column!r})"


def _cell(cells: dict[str, Any], column: str, label: str) -> Any:
    if column not in cells:
        raise BadRow(f"has no {label}")
    if cells[column] is None:
        raise BadRow(f"has no {label}: the cell is null")
    return cells[column]


def _checked_text(value: Any, label: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"has {described(value)} as {label}, which is not a text")
    if not value.strip():
        raise BadRow(f"has an empty {label}")
    if "\0" in value:
        raise BadRow(f"has a NUL byte in {label}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"has half a character (an unpaired surrogate) in {label}") from None
    return value
