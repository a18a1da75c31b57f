"""The terminal: messages of all commands, and their exit statuses."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from cft.system import secrets, signals
from cft.system.errors import UserError, explain_os_error, first_line

DEFECT_STATUS = 1
USER_ERROR_STATUS = 2
CLOSED_STATUS = 141  # 128 + SIGPIPE: the reader of the output has closed it

DEBUG_FLAG = "--debug"
_DEBUG = "CFT_DEBUG"  # an environment variable, which processes of a launcher inherit


class _Console(logging.Handler):
    """Writes messages above a progress bar, not into it."""

    def __init__(self, *, on_stderr: bool = False) -> None:
        super().__init__()
        self._on_stderr = on_stderr

    def emit(self, record: logging.LogRecord) -> None:
        # A closed terminal must not end a training, whose log.txt has all messages too.
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(self.format(record), file=sys.stderr if self._on_stderr else sys.stdout)


def set_up_console(*, on_stderr: bool = False) -> None:
    """Print the package's messages, without disturbing progress bars; take --debug out of the command line.

    Args:
        on_stderr: where they go; to stdout otherwise.
    """
    if DEBUG_FLAG in sys.argv[1:]:
        sys.argv.remove(DEBUG_FLAG)
        os.environ[_DEBUG] = "1"
    handler = _Console(on_stderr=on_stderr)
    handler.setFormatter(secrets.Masking("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Of several processes that train one model, the main one reports.
    logging.getLogger("cft").setLevel(logging.INFO if _rank() == 0 else logging.WARNING)
    # PEFT imports it in every command, and it warns of a missing kernel that is not used.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def report_error(error: Exception) -> int:
    """Print an error: its message if the user can mend it, the place in the code if it is a defect.

    Returns:
        The exit status.
    """
    if os.environ.get(_DEBUG):
        _print_error("".join(traceback.format_exception(error)))
    explained = (explain_os_error(error) or error) if isinstance(error, OSError) else error
    if isinstance(explained, UserError):
        _print_error(f"cft{f' (process {_rank()})' if _rank() else ''}: {explained}\n")
        return USER_ERROR_STATUS
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {Path(frame[0].filename).name}:{frame[0].lineno}" if frame else ""
    _print_error(
        f"cft: unexpected {type(error).__name__}{place}: {first_line(error)[:300]}\n"
        "This is a defect of cft or of a library below, no mistake of yours. "
        f"{DEBUG_FLAG} shows the traceback; a run's log.txt has it too.\n"
    )
    return DEFECT_STATUS


def _print_error(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # see _Console
        sys.stderr.write(secrets.masked(text))


def _rank() -> int:
    """Rank of this process, as torchrun sets it."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def exit_statuses(interrupted: str) -> Iterator[None]:
    """End the command with the exit status of its error or signal; `interrupted` is advice after a signal."""
    try:
        with signals.handle_signals():
            yield
    except KeyboardInterrupt as error:
        if isinstance(error.__cause__, Exception):  # what failed before the signal was acted on
            report_error(error.__cause__)
        _print_error(f"\ncft: interrupted; {interrupted}\n")
        sys.exit(signals.exit_status(error))
    except BrokenPipeError:
        # Python would complain once more when it closes its output at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_STATUS)
    except Exception as error:
        sys.exit(report_error(error))
