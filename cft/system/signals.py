"""Signals that end a job (SIGINT, SIGTERM): a training ends after its step and a checkpoint.

A signal belongs to the training that it arrived in, and is never lost: the training acts on it after a step or, if
there is no step left to look, at its end; a training that fails first ends the command all the same. Everywhere else
a signal is acted on at once.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


class Deferral:
    """A training in progress; called, it returns the signal that arrived during it, 0 for none."""

    received = 0

    def __call__(self) -> int:
        """The signal's number."""
        return self.received


# The trainings in progress in this process, the innermost last.
_deferrals: list[Deferral] = []


def exit_status(error: KeyboardInterrupt) -> int:
    """The exit status of a command that was interrupted."""
    return error.status if isinstance(error, Interrupted) else Interrupted(signal.SIGINT).status


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Have both signals raise `Interrupted`: at once, or at the end of a step within `deferred_to_step_end`.

    A signal that was ignored when the command began stays ignored: shells arrange that for jobs in the background.

    Raises:
        Interrupted: also in place of an error that arose while something cleaned up after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _arrive)
    try:
        yield
    except Exception as error:
        # A signal may arrive in the middle of a library's function, whose cleaning up then fails and hides it: tqdm
        # gives back a lock that it has not taken yet.
        hidden = _signal_behind(error)
        if hidden:
            raise hidden from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_behind(error: BaseException) -> Interrupted | None:
    """The signal during whose handling an error arose, if any."""
    seen: list[BaseException] = []
    while error not in seen:
        if isinstance(error, Interrupted):
            return error
        seen.append(error)
        error = error.__context__ or error
    return None


def _arrive(number: int, frame: FrameType | None) -> None:
    if not _deferrals or _deferrals[-1].received:
        raise Interrupted(number)
    _deferrals[-1].received = number
    sys.stderr.write(f"\ncft: {signal.Signals(number).name}: ending after this step and a checkpoint; again: at once\n")


@contextlib.contextmanager
def deferred_to_step_end() -> Iterator[Deferral]:
    """Let a training end its step first; it is given what to ask for the signal received, and may raise by itself.

    Raises:
        Interrupted: at the end of the block, for a signal that nobody has acted on; if the block failed, from its
            error.
    """
    deferral = Deferral()
    _deferrals.append(deferral)
    try:
        yield deferral
    except Exception as error:
        if deferral.received:
            raise Interrupted(deferral.received) from error
        raise
    finally:
        _deferrals.remove(deferral)
    if deferral.received:
        raise Interrupted(deferral.received)


def run_child(command: Sequence[str]) -> int:
    """Run a command that handles signals itself, and wait until it has ended; returns its status.

    A signal to this process is passed on, and the child may then end its step; a second one ends it at once.
    """
    with subprocess.Popen(command) as child:
        try:
            return child.wait()
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            if number != signal.SIGINT or not _in_foreground():
                child.send_signal(number)
            try:
                child.wait()
            except KeyboardInterrupt:
                child.kill()
            raise


def _in_foreground() -> bool:
    """Whether a terminal's Ctrl-C goes to this process, and so to its children too."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # no terminal, or no standard input at all
        return False
