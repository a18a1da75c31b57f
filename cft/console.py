"""What all commands have in common: messages on the terminal and the meaning of an exit status."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from tqdm import tqdm

from cft.errors import UserError

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it


class _Console(logging.Handler):
    """Writes messages above a progress bar, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def set_up_console() -> None:
    """Print the package's messages, without disturbing progress bars."""
    handler = _Console()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Of several processes that train one model, the first one speaks.
    logging.getLogger("cft").setLevel(logging.INFO if _rank() == 0 else logging.WARNING)
    # Where it is installed, PEFT imports it in every command, and it regrets a kernel that nobody asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def report_error(error: UserError) -> None:
    """Print an error that the user can mend."""
    sys.stderr.write(f"cft{f' (process {_rank()})' if _rank() else ''}: {error}\n")


def _rank() -> int:
    """This process's number, as torchrun gives it."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def exit_statuses(interrupted: str) -> Iterator[None]:
    """End the command with the status that an error or Ctrl-C has; `interrupted` says what to do after the latter."""
    try:
        yield
    except UserError as error:
        report_error(error)
        sys.exit(USER_ERROR_STATUS)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ncft: interrupted; {interrupted}\n")
        sys.exit(INTERRUPTED_STATUS)
