"""What all commands have in common: messages on the terminal and the meaning of an exit status."""

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
CLOSED_STATUS = 141  # 128 + SIGPIPE: whoever read the output has stopped reading

DEBUG_FLAG = "--debug"
_DEBUG = "CFT_DEBUG"  # an environment variable, so that processes which a launcher starts know it too


class _Console(logging.Handler):
    """Writes messages above a progress bar, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        # A terminal that was closed is no reason to end a training: its log.txt has all of this too.
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(self.format(record), file=sys.stdout)


def set_up_console() -> None:
    """Print the package's messages, without disturbing progress bars; take --debug out of the command line."""
    if DEBUG_FLAG in sys.argv[1:]:
        sys.argv.remove(DEBUG_FLAG)
        os.environ[_DEBUG] = "1"
    handler = _Console()
    handler.setFormatter(secrets.Masking("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Of several processes that train one model, the first one speaks.
    logging.getLogger("cft").setLevel(logging.INFO if _rank() == 0 else logging.WARNING)
    # Where it is installed, PEFT imports it in every command, and it regrets a kernel that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def report_error(error: Exception) -> int:
    """Print what went wrong: a message for what the user can mend, and for a defect where it is.

    Returns:
        The exit status that it has.
    """
    if os.environ.get(_DEBUG):
        _say("".join(traceback.format_exception(error)))
    told = (explain_os_error(error) or error) if isinstance(error, OSError) else error
    if isinstance(told, UserError):
        _say(f"cft{f' (process {_rank()})' if _rank() else ''}: {told}\n")
        return USER_ERROR_STATUS
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {Path(frame[0].filename).name}:{frame[0].lineno}" if frame else ""
    _say(
        f"cft: unexpected {type(error).__name__}{place}: {first_line(error)[:300]}\n"
        "This is a defect of cft or of a library below, no mistake of yours. "
        f"{DEBUG_FLAG} shows the traceback; a run's log.txt has it too.\n"
    )
    return DEFECT_STATUS


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # see _Console
        sys.stderr.write(secrets.masked(text))


def _rank() -> int:
    """This process's number, as torchrun gives it."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def exit_statuses(interrupted: str) -> Iterator[None]:
    """End the command with the status that an error or a signal has; `interrupted` says what to do after the latter."""
    try:
        with signals.handle_signals():
            yield
    except KeyboardInterrupt as error:
        _say(f"\ncft: interrupted; {interrupted}\n")
        sys.exit(signals.exit_status(error))
    except BrokenPipeError:
        # Python would complain once more when it closes its output at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_STATUS)
    except Exception as error:
        sys.exit(report_error(error))
