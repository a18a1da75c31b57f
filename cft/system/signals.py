"""Requests to end, by Ctrl-C (SIGINT) or by a scheduler (SIGTERM): heeded between two steps, after a checkpoint."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# What arrived while a training was at work, and how many trainings wait for it; of this process.
_asked: list[int] = []
_waiting = 0


class Interrupted(KeyboardInterrupt):
    """Somebody asked this process to end. Whoever lets Ctrl-C pass lets this pass."""

    def __init__(self, number: int) -> None:
        """Remember what asked.

        Args:
            number: of the signal.
        """
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
    """Have both signals raise `Interrupted`, at once or, within `between_steps`, when the training is ready.

    A signal that was ignored when the command began stays ignored: shells arrange that for jobs in the background.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _arrive)
    _asked.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _arrive(number: int, frame: FrameType | None) -> None:
    if not _waiting or _asked:
        raise Interrupted(number)
    _asked.append(number)
    sys.stderr.write(f"\ncft: {signal.Signals(number).name}: ending after this step and a checkpoint; again: at once\n")


@contextlib.contextmanager
def deferred_to_step_end() -> Iterator[Callable[[], int]]:
    """Let a training come to the end of its step first; it asks the function it is given for the signal, 0 for none."""
    global _waiting
    _waiting += 1
    try:
        yield lambda: _asked[0] if _asked else 0
    finally:
        _waiting -= 1
