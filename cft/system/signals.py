"""Signals that end a job (SIGINT, SIGTERM): a training ends after its step and a checkpoint."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# The signal that arrived during a training, and how many trainings are in progress in this process.
_received: list[int] = []
_trainings = 0


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end. A KeyboardInterrupt, so that `except Exception` does not swallow it."""

    def __init__(self, number: int) -> None:
        """Keep the number of the signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that shells give to a process that this signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


def exit_status(error: KeyboardInterrupt) -> int:
    """The exit status of a command that was interrupted."""
    return error.status if isinstance(error, Interrupted) else Interrupted(signal.SIGINT).status


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Have both signals raise `Interrupted`: at once, or at the end of a step within `deferred_to_step_end`.

    A signal that was ignored when the command began stays ignored: shells arrange that for jobs in the background.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _arrive)
    _received.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _arrive(number: int, frame: FrameType | None) -> None:
    if not _trainings or _received:
        raise Interrupted(number)
    _received.append(number)
    sys.stderr.write(f"\ncft: {signal.Signals(number).name}: ending after this step and a checkpoint; again: at once\n")


@contextlib.contextmanager
def deferred_to_step_end() -> Iterator[Callable[[], int]]:
    """Let a training end its step first; it is given a function that returns the signal received, 0 for none."""
    global _trainings
    _trainings += 1
    try:
        yield lambda: _received[0] if _received else 0
    finally:
        _trainings -= 1
