"""Runs the package's commands in children of one process that has imported everything: a second each, not ten.

It is started by `forked.py` and reads one request a line: what to run, where, and when to end it.
"""

import contextlib
import gc
import io
import json
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path


def prepare() -> None:
    """Import what commands import late; torch may compute nothing here, as threads do not survive a fork."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import scipy.stats  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from cft.config.compose import check_overrides
    from cft.evaluation import bootstrap  # noqa: F401
    from cft.job import figures

    # The first of each of these is slow, and no thread is started by them.
    check_overrides(["model=tiny"])
    figure, axes = figures.plt.subplots(layout="constrained")
    axes.plot([0, 1], label="fonts are looked up")
    axes.legend()
    with tempfile.TemporaryDirectory() as folder:
        figures.save(figure, Path(folder), "first")
    # Collectors in children need not look at all that was imported here.
    gc.collect()
    gc.freeze()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def serve() -> None:
    prepare()
    say("ready")
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run_as_child(request)
        say(json.dumps(watch(child, request)))


def watch(child: int, request: dict) -> dict:
    """Wait for a child; kill it when its time is over."""
    began = time.monotonic()
    signalled = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        lasted = time.monotonic() - began
        if ended:
            for name in ("out", "err"):
                while not os.path.exists(request[name] + ".whole") and time.monotonic() - began < request["timeout"]:
                    time.sleep(0.001)
            return {"status": os.waitstatus_to_exitcode(status), "seconds": lasted}
        if request["signal_after"] is not None and not signalled and lasted > request["signal_after"]:
            os.kill(child, request["signal"])
            signalled = True
        if lasted > request["timeout"]:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)


def pipe_into(path: str) -> int:
    """The writing end of a pipe that another process copies to a file: limits of this process are not the file's."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        with os.fdopen(read, "rb", 0) as source, open(path, "wb", 0) as target:
            while block := source.read(65536):
                target.write(block)
        os.rename(path, path + ".whole")
        os._exit(0)
    os.close(read)
    return write


def run_as_child(request: dict) -> None:
    """Become the command; never returns."""
    status = 70
    try:
        for name in ("out", "err"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(request[name] + ".whole")
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(pipe_into(request[name]), number)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), write_through=True)
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the server's own parent arranged
        if request["file_limit"] is not None:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY))
        if request["watched"]:
            watch_writes(request)
        random.seed(0)
        sys.argv = request["argv"]
        runpy.run_module(request["argv"][0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if request["watched"]:
            with open(request["count"], "w") as stream:
                stream.write(str(events[0]))
        os._exit(status)


events = [0]


def watch_writes(request: dict) -> None:
    """Count what is opened for writing, renamed, made or removed under a folder; end the process at one of these."""

    def heard(event: str, arguments: tuple) -> None:
        if event not in (
            "open",
            "os.rename",
            "os.remove",
            "os.mkdir",
            "os.rmdir",
            "os.truncate",
            "os.chmod",
            "os.link",
        ):
            return
        path = arguments[0]
        if isinstance(path, bytes):
            path = path.decode(errors="replace")
        if not isinstance(path, str) or not os.path.abspath(path).startswith(request["watched"]):
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        events[0] += 1
        if events[0] == request["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)


if __name__ == "__main__":
    serve()
