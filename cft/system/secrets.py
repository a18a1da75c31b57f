"""Passwords and keys, kept out of whatever is printed, logged or sent."""

import logging
import os
import re

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
KINDS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an API key": r"(?i)(api[_-]?key|secret|password)[\"' ]*[:=][\"' ]*[A-Za-z0-9_\-]{16,}",
}
_MASK = "[secret]"

# A shorter value is no secret, and might be part of any word.
_SHORTEST = 8


def values() -> dict[str, str]:
    """Keys in the environment, by variable."""
    return {name: os.environ[name] for name in VARIABLES if len(os.environ.get(name, "")) >= _SHORTEST}


def found_in(text: str) -> list[str]:
    """Kinds of secrets in a text."""
    kinds = [what for what, pattern in KINDS.items() if re.search(pattern, text)]
    return kinds + [f"the value of {name}" for name, value in values().items() if value in text]


def masked(text: str) -> str:
    """A text with its secrets masked: libraries quote the key that a server refused."""
    for value in values().values():
        text = text.replace(value, _MASK)
    for pattern in KINDS.values():
        text = re.sub(pattern, _MASK, text)
    return text


class Masking(logging.Formatter):
    """Formats messages and tracebacks with their secrets masked."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        return masked(super().format(record))
