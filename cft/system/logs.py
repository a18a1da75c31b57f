"""A log file with times and without secrets."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cft.system.errors import GivenUp, UserError
from cft.system.secrets import Masking


class _File(logging.FileHandler):
    """A log that cannot be written ends nothing: its lines are on the terminal too."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record without the traceback that logging would print for every line."""


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Copy what the package reports to a file; an exception that ends the block is its last entry.

    Raises:
        OSError: naming the file, if it cannot be opened.
    """
    try:
        handler = _File(path, encoding="utf-8")
    except OSError as error:
        error.filename = str(path)
        raise
    handler.setFormatter(Masking("%(asctime)s %(message)s"))
    package = logging.getLogger("cft")
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    except GivenUp:
        raise
    except Exception as error:
        # Errors that the user can mend need no traceback; for the rest there may be no second chance to see it.
        mendable = isinstance(error, (UserError, OSError))
        exc_info = None if mendable else (type(error), error, error.__traceback__)
        handler.handle(package.makeRecord("cft", logging.ERROR, "", 0, f"failed: {error}", (), exc_info))
        raise
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        # On a full disk the last of a log has no place either, which must not hide the error that names a file.
        with suppress(OSError):
            handler.close()
