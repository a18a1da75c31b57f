"""Files that are written whole or not at all, and locks on directories."""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from cft.system.digest import DIGEST_LENGTH, digest, from_plain, to_plain
from cft.system.errors import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")


def user_path(given: str | Path) -> Path:
    """A path as a user gave it, `~` and `~NAME` being home folders, unless a file is called so or nobody is."""
    path = Path(given)
    if os.path.exists(path):
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # what asks for the file then says that there is none
        return path


def cache_folder() -> Path:
    """The cache of all jobs, which can be deleted at any time: $CFT_CACHE, or `cft` in the user's cache folder."""
    named = os.environ.get("CFT_CACHE")
    if named:
        return user_path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cft"
    except RuntimeError as error:
        raise UserError("this user has no home folder: name a folder for the cache by CFT_CACHE") from error


def named(name: str, folders: Sequence[Path], root: Path) -> list[Path]:
    """Of the folders under `root`, that of this name, or else those whose names end so; no name is the end of none.

    A whole name is that of a folder, or a path below `root`: it is never only the end of a longer one.
    """
    parts = Path(name).parts
    if not name.strip() or not parts:
        return []
    whole = [folder for folder in folders if folder.relative_to(root).parts[-len(parts) :] == parts]
    return whole or [folder for folder in folders if str(folder.relative_to(root)).endswith(name)]


# What to say about a file that is one.
LFS_POINTER = "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"

_LFS_BEGINS = b"version https://git-lfs"


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves where a repository was cloned without its large files.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as stream:
        return stream.read(len(_LFS_BEGINS)) == _LFS_BEGINS


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, which replaces `path` in one step at the end of the block.

    A reader, or a process killed at any moment, leaves the old file or the new one, never half of either. Temporary
    files of killed processes are removed.

    Raises:
        OSError: naming `path`, whatever wrote into it.
    """
    with _blamed_on(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=_PART, dir=path.parent)
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


@contextlib.contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `path`, removed afterwards, or next time if the process is killed."""
    with _blamed_on(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        part = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=_PART, dir=path.parent))
        part.chmod(0o755)
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def require_output(
    path: Path, endings: Sequence[str], *, overwrite: bool, beside: Iterable[Path] = (), read: Iterable[Path] = ()
) -> None:
    """Refuse to write a file of another kind, over another one, or into a folder that is not there.

    Args:
        path: the file. endings: of the kinds that can be written. overwrite: whether it may be there. beside: files
            that will be written beside it. read: files that it is made of, which nothing may be written over.

    Raises:
        UserError: naming what is in the way.
    """
    if path.suffix not in endings:
        raise UserError(f"{path}: the output must end in {' or '.join(endings)}")
    sources = [source for source in read if os.path.exists(source)]
    for each in (path, *beside):
        if not each.exists():
            continue
        if any(each.samefile(source) for source in sources):
            raise UserError(f"{each} is read, and would be written over; name another output")
        if not overwrite:
            raise UserError(f"{each} exists; name another output, or set overwrite=true")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")


_PART = ".part"


def _prefix(path: Path) -> str:
    """Prefix of the temporary files of `path`: it names machine and process."""
    return f".{path.name}.{machine_name()}-{os.getpid()}."


def machine_name() -> str:
    """This machine's name, as a part of a file's name in a folder that several machines share."""
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of processes of this machine that have ended."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{machine_name()}-(\d+)\..*{re.escape(_PART)}")
    for entry in path.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not _lives(int(match[1])):
            log.debug("removing what process %s left: %s", match[1], entry)
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Have errors of the system name the file; Rust writers only quote their number in a message."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except Exception as error:
        quoted = re.search(r"\(os error (\d+)\)", str(error))
        if quoted is None:
            raise
        raise OSError(int(quoted[1]), os.strerror(int(quoted[1])), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; equal values give equal bytes."""
    write_text(path, json.dumps(to_plain(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n")


_CHECKSUM = "checksum"


def sealed(value: Any) -> dict[str, Any]:
    """A record with a checksum, by which `read_json` refuses it if it is changed afterwards."""
    plain = to_plain(value)
    return {**plain, _CHECKSUM: digest(plain)}


def write_record(path: Path, value: Any) -> None:
    """Write a JSON object with a checksum."""
    write_json(path, sealed(value))


class _Record(dict):
    """A JSON object of a file; access to a missing key names the file."""

    def __init__(self, content: Iterable = (), path: Path | None = None) -> None:
        super().__init__(content)
        self._path = path  # None for copies that others make of it

    def __missing__(self, key: str) -> Any:
        if self._path is None:
            raise KeyError(key)
        raise UserError(f"{self._path} lacks {key!r}; remove its folder and run again to make it anew")


class _Changed(UserError):
    """A record that does not have its checksum."""


def _unsealed(entries: dict[str, Any], path: Path) -> _Record:
    """An object of a file, less its checksum, which is a text: a test set or a cell may be called so too."""
    if isinstance(entries.get(_CHECKSUM), str) and entries.pop(_CHECKSUM) != digest(entries):
        raise _Changed(
            f"{path} was changed after cft wrote it, so that it is no record of what was done; put the file back as it "
            "was, or remove its folder and run again to make it anew"
        )
    return _Record(entries, path)


def read_record(path: Path, kind: type[T]) -> T:
    """Read a JSON file into a dataclass.

    Raises:
        UserError: naming the file, if it is missing, not JSON or not such a record.
    """
    try:
        return from_plain(kind, read_json(path))
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"cannot read {path}: {error}; remove its folder and run again to make it anew") from error


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file.

    Args:
        path: the file. kind: what it must hold.

    Raises:
        UserError: naming the file, if it is missing, not JSON or of another kind, or was changed after `write_record`
            wrote it; also on access to a missing key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=lambda entries: _unsealed(entries, path))
    except _Changed:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}; remove its folder and run again to make it anew") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} does not hold what it should; remove its folder and run again to make it anew")
    return content


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file, none of which may hold pickled objects.

    Raises:
        UserError: naming the file, if it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        seal = arrays.pop(_CHECKSUM, None)
        if seal is not None and str(seal) != _arrays_digest(arrays):
            raise ValueError("it was changed after cft wrote it")
        return arrays
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read {path}: {reason}; remove its folder and run again to make it anew") from error


def _arrays_digest(arrays: dict[str, np.ndarray]) -> str:
    state = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return state.hexdigest()[:DIGEST_LENGTH]


def write_arrays(path: Path, arrays: dict[str, np.ndarray], *, compressed: bool = False) -> None:
    """Write an .npz file with a checksum, whole or not at all; equal arrays give equal bytes."""
    arrays = {**arrays, _CHECKSUM: np.array(_arrays_digest(arrays))}
    # In memory first: on a full disk, the archive would try to write its end again when it is deleted.
    archive = io.BytesIO()
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    save(archive, **arrays)
    with atomic_write(path) as part:
        part.write_bytes(archive.getvalue())


def append_line(path: Path, value: Any) -> None:
    """Add one JSON line to a file."""
    with _blamed_on(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(to_plain(value), sort_keys=True) + "\n")


@contextlib.contextmanager
def exclusive_lock(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a directory's lock; the system releases it when the process ends, however it ends.

    Args:
        directory: made if it is missing.
        wait: for the process that holds the lock, instead of giving up.

    Raises:
        UserError: naming the process that holds the lock.
    """
    lock = FileLock(directory / ".lock")
    with _blamed_on(Path(lock.lock_file)):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            process = Path(lock.lock_file).read_text(encoding="utf-8").strip() or "unknown"
            holder = f"process {process} is at work in {directory}"
            if not wait:
                raise UserError(f"{holder}; wait for it, or stop it") from None
            log.info("%s: waiting for it", holder)
            lock.acquire()
    try:
        Path(lock.lock_file).write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()
