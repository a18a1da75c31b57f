"""Parts of messages: near matches, byte sizes, shortened texts."""

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable
from typing import Any


def nearest(word: str, words: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The word most similar to `word`; None if no similarity reaches `cutoff` (0 to 1)."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)), None)


def did_you_mean(
    word: str,
    words: Iterable[str],
    *,
    sentence: bool = False,
    show: Callable[[str], str] = str,
    cutoff: float = 0.6,
) -> str:
    """The end of an error message: the word that may have been meant, or nothing.

    Args:
        word: the unknown word.
        words: the known words.
        sentence: whether it is a sentence of its own.
        show: formats the word.
        cutoff: least similarity, 0 to 1.
    """
    match = nearest(word, words, cutoff=cutoff)
    if match is None:
        return ""
    return f"{' Did' if sentence else '; did'} you mean {show(match)}?"


def byte_size(count: float, decimals: int = 1) -> str:
    """A number of bytes for people: in GiB from one GiB on, in MiB below."""
    size, unit = (count / 2**30, "GiB") if count >= 2**30 else (count / 2**20, "MiB")
    return f"{size:.{decimals}f} {unit}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things: 1 text, 2,000 texts."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def shorten(text: str, length: int) -> str:
    """At most `length` characters of a text, the last of them an ellipsis if something is cut."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shorten_words(message: str) -> str:
    """A message with very long words cut: it may quote anything that a user typed."""
    return re.sub(r"\S{200,}", lambda word: f"{word[0][:100]}... ({len(word[0])} characters)", message)


def described(value: Any) -> str:
    """A value and its type, shortened, for messages."""
    return "null" if value is None else f"{shorten(_REPR.repr(value), _VALUE_LENGTH)} ({type(value).__name__})"


_VALUE_LENGTH = 60

# A value's nested lists and objects are shown two levels deep: messages stay readable, and quick to make.
_REPR = reprlib.Repr()
_REPR.maxlevel = 2


def printable(text: str) -> str:
    """A text that can neither upset a terminal nor break a line: other characters as Python writes them."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
