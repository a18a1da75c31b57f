"""Files that are either whole or absent, directories named by what they hold, and who is at work in one."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from cft.errors import UserError

log = logging.getLogger(__name__)

DIGEST_LENGTH = 12


def cache_folder() -> Path:
    """Where what can be made again is kept for all jobs: $CFT_CACHE, or `cft` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CFT_CACHE") or Path(home) / "cft")


def plain(value: Any) -> Any:
    """Turn dataclasses, enums, tuples and paths into what JSON can hold, recursively."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return value


def digest(value: Any) -> str:
    """Short name of a value's content: equal values give equal names, whatever the order of their keys."""
    return hashlib.sha256(canonical(plain(value)).encode()).hexdigest()[:DIGEST_LENGTH]


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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes the place of `path` in one step.

    A reader, or a process killed at any moment, sees the old file or the new one, never half of either.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.chmod(0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; equal values give equal bytes."""
    write_text(path, json.dumps(plain(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: naming the file, if it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; remove its folder and run again to make it anew") from error


def append_line(path: Path, value: Any) -> None:
    """Add one JSON line to a file."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(plain(value), sort_keys=True) + "\n")


@contextlib.contextmanager
def held(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the one process at work in a directory; the system lets go when the process ends, however it ends.

    Args:
        directory: made if it is missing.
        wait: for the process that is at work there, instead of giving up.

    Raises:
        UserError: if another process is at work there, naming it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".lock"
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = f"process {stream.read().strip() or 'unknown'} is at work in {directory}"
            if not wait:
                raise UserError(f"{holder}; wait for it, or stop it") from None
            log.info("%s: waiting for it", holder)
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
