"""Settings as they are typed: whoever pastes one from a message into a shell gets the value that it names."""

import math
import re
import shlex
from collections.abc import Mapping
from enum import Enum
from typing import Any

# What Hydra reads as itself without quotes, and what it would read as something other than a text.
_PLAIN = re.compile(r"[A-Za-z0-9_./:+@%-]+")
_NO_TEXT = re.compile(
    r"null|true|false|[+-]?(nan|inf|\d[\d_]*\.?[\d_]*(e[+-]?[\d_]+)?|\.\d[\d_]*(e[+-]?[\d_]+)?)", re.I
)
# Characters that a shell reads within double quotes.
_READ_IN_QUOTES = re.compile(r'["$`\\!]')


def override(key: str, value: Any) -> str:
    """KEY=VALUE as one word for a shell, in which Hydra finds that value again.

    Args:
        key: a setting, such as `model.eos_token`.
        value: a text, number, bool, choice, None, or a list or mapping of them.
    """
    return shell_word(unquoted(key, value))


def unquoted(key: str, value: Any) -> str:
    """KEY=VALUE as Hydra finds that value again, for code that hands it over without a shell."""
    return f"{key}={_written(value)}"


def overrides(settings: Mapping[str, Any]) -> str:
    """Several of them, with blanks between."""
    return " ".join(override(key, value) for key, value in settings.items())


def shell_word(word: str) -> str:
    """A word in the quotes that a shell needs; double ones where those are easier to read."""
    quoted = shlex.quote(word)
    return f'"{word}"' if "'" in word and not _READ_IN_QUOTES.search(word) else quoted


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) and float(f"{value:g}") == value else repr(value)
    text = str(value)
    if isinstance(value, int) or (_PLAIN.fullmatch(text) and not _NO_TEXT.fullmatch(text)):
        return text
    # Backslashes count only before a quote and before an interpolation, and there each stands for half of one.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{text}'"
