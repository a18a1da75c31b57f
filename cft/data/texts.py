"""Texts that a caller hands over: every public function takes them through this one door.

Whatever is no list of texts is refused by its type, and whatever is no text by its place in what was given, as the
rows of a file are.
"""

import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Set
from typing import Any

from cft.system.errors import UserError
from cft.system.text import described

# Punctuation that makes another text: within a number, before it and behind it (1.5, 1/2, 10:30, -5, 5%), and C#.
_MEANT = re.compile(r"(?<=\d)[.,/:](?=\d)|(?<!\w)[-\u2212](?=\d)|(?<=\d)%|(?<=[^\W\d_])#(?!\w)")

_MAY_BE_MEANT = re.compile(r"[\d#]")

# Kinds of characters that make no other text: punctuation, blanks, controls, and quotes such as a lone ` or ^.
_NO_LETTERS = ("P", "Z", "Cc", "Cf", "Sk")


# Those that are ASCII.
_ASCII = re.compile(
    "[" + "".join(re.escape(c) for c in map(chr, range(128)) if unicodedata.category(c).startswith(_NO_LETTERS)) + "]+"
)


class _WithoutPunctuation(dict[int, str | None]):
    """For `str.translate`; a character is looked up in Unicode's tables when it is first met."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        self[code] = None if unicodedata.category(character).startswith(_NO_LETTERS) else character
        return self[code]


_TABLE = _WithoutPunctuation()


def normalized(text: str) -> str:
    """By which near-duplicates are equal: without case, blanks and punctuation, unless there is nothing else.

    What makes another text stays: symbols (C++, x < y, emoji), marks on letters, signs of numbers. Letters and marks
    that Unicode writes in two ways are one.
    """
    folded = text.casefold()
    if folded.isascii() and not _MAY_BE_MEANT.search(folded):  # most texts, three times as fast
        return _ASCII.sub("", folded) or text
    folded = unicodedata.normalize("NFC", folded)
    kept, end = [], 0
    for sign in _MEANT.finditer(folded):
        kept += [folded[end : sign.start()].translate(_TABLE), sign[0].replace("\u2212", "-")]
        end = sign.end()
    return "".join([*kept, folded[end:].translate(_TABLE)]) or text


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
