"""The package's commands as processes of their own, started in a second by a server that has imported everything."""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[1]

# Of the environment, what the server has in its own way, as libraries look at it when they are imported; the rest is
# as it is when a command is started.
FIXED = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "PYTHONPATH", "MPLBACKEND", "HF_HOME")


@dataclass(frozen=True)
class Ended:
    """A command that came to its end. status: its exit status, or minus the signal that killed it.

    events: how often it opened, renamed or removed something under the watched folder; None if it was killed.
    """

    status: int
    out: str
    err: str
    raw: bytes
    seconds: float
    events: int | None


class Commands:
    """Runs commands in children of the server."""

    def __init__(self, process: subprocess.Popen, scratch: Path) -> None:
        self._process = process
        self._scratch = scratch
        self._lock = Lock()
        self._started = itertools.count()

    def run(self, *argv: str, timeout: float = 300, stdin: str | None = None, **how) -> Ended:
        """Run `python -m ARGV`, or the script ARGV, to its end.

        Args:
            argv: the module, or the path of a script, and its arguments.
            timeout: seconds after which it is killed.
            stdin: what it reads; nothing, if None.
            how: as for `start`.
        """
        return self.start(*argv, stdin=stdin, **how).wait(timeout)

    def start(
        self,
        *argv: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        stdin: str | None = None,
        watched: Path | None = None,
        kill_at: int | None = None,
        signal_after: float | None = None,
        sent: int = signal.SIGKILL,
        file_limit: int | None = None,
        disk: tuple[Path, str] | None = None,
        new_session: bool = False,
        drawn_in_full: bool = False,
    ) -> "Started":
        """Start a command beside others.

        Args:
            watched: a folder whose changes are counted. kill_at: the change, from 1, at which it is killed.
            signal_after: seconds after which it is sent the signal `sent`.
            file_limit: bytes that no file may go above, as on a full disk.
            disk: a folder that is a small disk of its own for this command, and what `mount -o` is told of it.
            new_session: whether it leads a process group of its own.
            drawn_in_full: whether its pictures are those that users get; they take a third of a tiny job's time, and
                without it `pictures.draw_small` draws.
        """
        folder = self._scratch / str(next(self._started))
        folder.mkdir()
        if stdin is not None:
            (folder / "in").write_text(stdin)
        request = {
            "do": "start",
            "argv": list(argv),
            "cwd": str(cwd or ROOT),
            "env": {key: value for key, value in os.environ.items() if key not in FIXED} | (env or {}),
            "folder": str(folder),
            "watched": str(watched.absolute()) if watched else "",
            "kill_at": kill_at,
            "file_limit": file_limit,
            "disk": [str(disk[0]), disk[1]] if disk else None,
            "new_session": new_session,
            "drawn_in_full": drawn_in_full,
        }
        return Started(self, self.ask(request), folder, signal_after, sent)

    def ask(self, request: dict) -> int | None:
        """The server's answer to one request."""
        with self._lock:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


class Started:
    """A command at work, as `subprocess.Popen` shows one."""

    def __init__(
        self, commands: Commands, pid: int, folder: Path, signal_after: float | None = None, sent: int = 0
    ) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._commands = commands
        self._folder = folder
        self._began = time.monotonic()
        self._signal_after = signal_after
        self._sent = sent

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that killed it; None while it is at work."""
        if self.returncode is None:
            self.returncode = self._commands.ask({"do": "poll", "pid": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is still at work."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it is still at work."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 300) -> Ended:
        """Wait until it has ended; kill it after some seconds."""
        killed = False
        while self.poll() is None:
            lasted = time.monotonic() - self._began
            if self._signal_after is not None and lasted > self._signal_after:
                self.send_signal(self._sent)
                self._signal_after = None
            if lasted > timeout and not killed:
                self.kill()
                killed = True
            time.sleep(0.005)
        seconds = time.monotonic() - self._began
        out, err = (self._written(name) for name in ("out", "err"))
        count = self._folder / "count"
        events = int(count.read_text()) if count.exists() else None
        return Ended(self.returncode, _text(out), _text(err), out, seconds, events)

    def _written(self, name: str) -> bytes:
        """What it wrote, when the copying process has all of it."""
        deadline = time.monotonic() + 10
        while not (self._folder / f"{name}.whole").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        return (self._folder / f"{name}.whole").read_bytes()


def _text(written: bytes) -> str:
    return written.decode(errors="replace")


@contextmanager
def server() -> Iterator[Commands]:
    """Start the server, and stop it."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT), str(Path(__file__).parent)]),
            "MPLBACKEND": "agg",
            "HF_HOME": str(Path(scratch) / "hub"),  # empty, whatever this machine has been used for
        }
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield Commands(process, Path(scratch))
        finally:
            process.kill()
            process.wait()
