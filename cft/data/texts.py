"""Texts that a caller hands over: every public function takes them through this one door.

Whatever is no list of texts is refused by its type, and whatever is no text by its place in what was given, as the
rows of a file are.
"""

import io
import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

from cft.system.errors import UserError
from cft.system.text import described

_NO_LETTERS = re.compile(r"[\W_]+")


def normalized(text: str) -> str:
    """By which near-duplicates are equal: without case, blanks and punctuation, unless there is nothing else."""
    return _NO_LETTERS.sub("", text.casefold()) or text


def checked_texts(given: Any, name: str = "texts") -> list[str]:
    """The texts of any iterable that has an order, each of them checked.

    Args:
        given: a list, tuple, generator, column or one-dimensional array of texts; a generator is used up.
        name: what messages call it.

    Raises:
        UserError: if it is something else, or a text is none, blank, or holds a NUL byte or half a character; naming
            its number, counted from 1 in what was given.
    """
    _check_kind(given, name)
    texts = list(given)
    for number, text in enumerate(texts, start=1):
        problem = problem_of(text)
        if problem:
            raise UserError(f"text {number} of {len(texts)} {problem}")
    return texts


def problem_of(text: Any) -> str:
    """Why a value cannot be embedded, as the end of a sentence; empty if it can."""
    if not isinstance(text, str):
        return f"is no text but {'None' if text is None else described(text)}"
    if not text.strip():
        return "is empty: there is nothing to embed"
    if "\0" in text:
        return f"holds a NUL byte: {described(text)}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"holds half a character (an unpaired surrogate): {described(text)}"
    return ""


def _check_kind(given: Any, name: str) -> None:
    kind = type(given).__name__
    if isinstance(given, (str, bytes)):
        raise UserError(f"{name} must be a list of texts, not one {kind}: put the one text into a list")
    if isinstance(given, io.IOBase):
        raise UserError(
            f"{name} must be a list of texts, not an open file, whose lines end in line breaks: give "
            '[line.rstrip("\\n") for line in file], or use `python -m cft.encode`'
        )
    if isinstance(given, (Mapping, Set)):
        raise UserError(f"{name} must be a list of texts, not a {kind}, which has no order of texts")
    if getattr(given, "ndim", 1) != 1:
        raise UserError(f"{name} must be a list of texts, not a {kind} of {given.ndim} dimensions: give one column")
    if not isinstance(given, Iterable):
        raise UserError(f"{name} must be a list of texts, not {'None' if given is None else described(given)}")
