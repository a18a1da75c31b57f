"""Words of messages: near matches, sizes, and texts cut to what anybody reads."""

import difflib
import re
from collections.abc import Callable, Iterable


def nearest(word: str, words: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The word that is most like another one; None if none is like it by `cutoff` (0 to 1) or more."""
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
        word: what was given. words: what there is. sentence: whether the message before it has ended. show: how the
            word is written. cutoff: least likeness, 0 to 1.
    """
    found = nearest(word, words, cutoff=cutoff)
    if found is None:
        return ""
    return f"{' Did' if sentence else '; did'} you mean {show(found)}?"


def byte_size(count: float, decimals: int = 1) -> str:
    """A number of bytes for people: in GiB from one GiB on, in MiB below."""
    size, unit = (count / 2**30, "GiB") if count >= 2**30 else (count / 2**20, "MiB")
    return f"{size:.{decimals}f} {unit}"


def shorten(text: str, length: int) -> str:
    """At most `length` characters of a text, the last of them an ellipsis if something is cut."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shorten_words(message: str) -> str:
    """A message in which no word is longer than anybody reads: what a user typed may be anything."""
    return re.sub(r"\S{200,}", lambda word: f"{word[0][:100]}... ({len(word[0])} characters)", message)
