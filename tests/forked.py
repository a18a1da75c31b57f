"""The package's commands as processes of their own, started in a second by a server that has imported everything."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ended:
    """A command that came to its end. status: its exit status, or minus the signal that killed it.

    events: how often it opened, renamed or removed something under the watched folder; None if it was killed.
    """

    status: int
    out: str
    err: str
    seconds: float
    events: int | None


class Commands:
    """Runs commands one after the other."""

    def __init__(self, process: subprocess.Popen, scratch: Path) -> None:
        self._process = process
        self._scratch = scratch
        self._lock = Lock()

    def run(
        self,
        *argv: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        watched: Path | None = None,
        kill_at: int | None = None,
        signal_after: float | None = None,
        sent: int = signal.SIGKILL,
        file_limit: int | None = None,
        timeout: float = 120,
    ) -> Ended:
        """Run `python -m ARGV`.

        Args:
            argv: the module and its arguments.
            watched: a folder whose changes are counted. kill_at: the change, from 1, at which it is killed.
            signal_after: seconds after which it is sent the signal `sent`.
            file_limit: bytes that no file may go above, as on a full disk.
        """
        count = self._scratch / "count"
        count.unlink(missing_ok=True)
        request = {
            "argv": list(argv),
            "cwd": str(cwd or ROOT),
            "env": env or {},
            "out": str(self._scratch / "out"),
            "err": str(self._scratch / "err"),
            "count": str(count),
            "watched": str(watched.absolute()) if watched else "",
            "kill_at": kill_at,
            "signal_after": signal_after,
            "signal": int(sent),
            "file_limit": file_limit,
            "timeout": timeout,
        }
        with self._lock:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        out, err = ((self._scratch / f"{name}.whole").read_text(errors="replace") for name in ("out", "err"))
        return Ended(answer["status"], out, err, answer["seconds"], int(count.read_text()) if count.exists() else None)


@contextmanager
def server() -> Iterator[Commands]:
    """Start the server, and stop it."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT), str(Path(__file__).parent)]),
            "MPLBACKEND": "agg",
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
