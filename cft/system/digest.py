"""Names by content: plain data, its canonical form, and SHA-256 of data and files."""

import hashlib
import json
import typing
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from cft.system.errors import UserError

DIGEST_LENGTH = 12


def to_plain(value: Any) -> Any:
    """Dataclasses, enums, tuples and paths as JSON data, recursively."""
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
    """Plain data as JSON in its canonical form."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def from_plain(kind: Any, value: Any) -> Any:
    """A dataclass out of plain data: the inverse of `to_plain`.

    Args:
        kind: the type, such as Config. Its `GONE` names keys that only records of earlier versions have.
        value: dicts, lists and plain values. A missing key has its default: it is newer than the record.

    Raises:
        UserError: if a key or a choice is unknown: the record is of another version of cft.
    """
    if value is not None:  # of an optional type, the type
        (kind,) = [each for each in typing.get_args(kind) if is_dataclass(each)] or [kind]
    if is_dataclass(kind):
        types = typing.get_type_hints(kind)
        known = {entry.name for entry in fields(kind)}
        gone: frozenset[str] = getattr(kind, "GONE", frozenset())
        unknown = sorted(set(value) - known - gone) if isinstance(value, dict) else [repr(value)]
        if unknown:
            raise _of_another_version(", ".join(unknown))
        kept = {name: from_plain(types[name], entry) for name, entry in value.items() if name in known}
        return typing.cast(Any, kind)(**kept)
    if isinstance(kind, type) and issubclass(kind, Enum):
        if value not in {member.value for member in kind}:
            raise _of_another_version(repr(value))
        return kind(value)
    return value


def _of_another_version(what: str) -> UserError:
    return UserError(f"a record of other settings than this version of cft has: {what}")
