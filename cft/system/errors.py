"""The one exception for mistakes that a user can mend, and which of the system's errors are of that kind."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

# Advice on errors of the operating system; any other number is a defect of cft.
_ADVICE = {
    errno.ENOSPC: "make room, or name another disk by outputs= (CFT_CACHE for what is cached)",
    errno.EDQUOT: "make room, or name another disk by outputs= (CFT_CACHE for what is cached)",
    errno.EFBIG: "the disk or a limit (ulimit -f) takes no file of this size; name another by outputs=",
    errno.ENOENT: "something removed it while it was needed; the same command makes it anew, or says what is missing",
    errno.EROFS: "name a folder that can be written by outputs= (CFT_CACHE for what is cached)",
    errno.EACCES: "name a folder that you may write by outputs= (CFT_CACHE for what is cached), or change its rights",
    errno.EPERM: "name a folder that you may write by outputs= (CFT_CACHE for what is cached), or change its rights",
    errno.ENOTDIR: "a file stands where a folder is needed; name another folder, or move the file away",
    errno.EISDIR: "a folder stands where a file is needed; name another, or move it away",
    errno.EEXIST: "a file stands where a folder is needed; name another folder, or move the file away",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EIO: "the disk does not answer as it should; see to it, then run the same command again",
    errno.ESTALE: "the network's file system has lost it; run the same command again",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOLCK: "this file system has no locks, by which jobs keep out of each other's way; name another by outputs=",
    errno.EOPNOTSUPP: "this file system lacks what is needed, such as locks; name another by outputs=",
    errno.ENOMEM: "the machine is out of memory",
}


class UserError(ValueError):
    """A mistake in the input, the configuration or the surroundings, worded for the person who can mend it.

    The message names the file, row, config key or value at fault and says what to do. The command line prints
    it without a traceback and exits with status 2.
    """


class GivenUp(Exception):
    """Ends work that its caller wants no more of, and that could go on later: nothing has failed."""


@contextmanager
def renaming_keys(group: str) -> Iterator[None]:
    """In errors raised within, name the keys of `model` as those of another group that has the same keys."""
    try:
        yield
    except UserError as error:
        keys = re.sub(r"(?<![\w.@])model\.(?=\w+=)", f"{group}.", str(error))
        raise UserError(re.sub(r"(?<![\w.@])model=(?=\w)", f"model@{group}=", keys)) from error


def first_line(error: BaseException) -> str:
    """What another library's error says, without what it adds below; its kind if it says nothing.

    A line that ends in a colon only announces the next one, and both are given.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    count = next((number for number, line in enumerate(lines, start=1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:count]) or type(error).__name__


def explain_os_error(error: OSError) -> UserError | None:
    """An error of the operating system in words for the user; None if it is not one that the user can mend."""
    advice = _ADVICE.get(error.errno or 0)
    if advice is None:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return UserError(f"{where}{error.strerror or 'the system refuses'}; {advice}")
