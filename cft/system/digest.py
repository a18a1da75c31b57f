"""Names by content: plain data, its canonical form, and SHA-256 of data and files."""

import hashlib
import json
import logging
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


DIGEST_LENGTH = 12


def to_plain(value: Any) -> Any:
    """Turn dataclasses, enums, tuples and paths into what JSON can hold, recursively."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return value


def digest(value: Any) -> str:
    """Short name of a value's content: equal values give equal names, whatever the order of their keys."""
    return hashlib.sha256(canonical(to_plain(value)).encode()).hexdigest()[:DIGEST_LENGTH]


def canonical(value: Any) -> str:
    """What JSON can hold as JSON, always in the same way."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def sha256_of_file(path: Path) -> str:
    """Content of a file as 64 hexadecimal digits."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()
