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
import subprocess
import sys
import tempfile
from pathlib import Path

from forked import FIXED


def prepare() -> None:
    """Import what commands import late; torch may compute nothing here, as threads do not survive a fork."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import scipy.stats  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import conversion_mapping

    from cft.config.compose import check_overrides
    from cft.evaluation import bootstrap  # noqa: F401
    from cft.job import doctor, figures, runner  # noqa: F401

    # The first of each of these is slow, and no thread is started by them.
    check_overrides(["model=tiny"])
    conversion_mapping.get_checkpoint_conversion_mapping("llama")
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
    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            child = os.fork()
            if child == 0:
                run_as_child(request)
            say(json.dumps(child))
        else:
            say(json.dumps(poll(request["pid"], ended)))


def poll(child: int, ended: dict[int, int]) -> int | None:
    """A child's exit status, None while it is at work."""
    if child not in ended:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            ended[child] = os.waitstatus_to_exitcode(status)
    return ended.get(child)


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


def pipe_out_of(path: str) -> int:
    """The reading end of a pipe that another process writes a file's content to."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        with open(path, "rb") as source, contextlib.suppress(BrokenPipeError):
            os.write(write, source.read())
        os._exit(0)
    os.close(write)
    return read


def run_as_child(request: dict) -> None:
    """Become the command; never returns."""
    status = 70
    folder = request["folder"]
    try:
        asked = f"{folder}/in"
        os.dup2(pipe_out_of(asked) if os.path.exists(asked) else os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(pipe_into(f"{folder}/{name}"), number)
        sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb"))
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), write_through=True)
        if request["new_session"]:
            os.setsid()
        for name in os.environ.keys() - request["env"].keys() - set(FIXED):
            del os.environ[name]
        os.environ.update(request["env"])
        if request["disk"]:
            mount_disk(*request["disk"])
        os.chdir(request["cwd"])
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the server's own parent arranged
        if request["file_limit"] is not None:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY))
        if not request["drawn_in_full"]:
            draw_small_pictures()
        if request["watched"]:
            watch_writes(request)
        random.seed(0)
        sys.argv = request["argv"]
        if request["argv"][0].endswith(".py"):
            sys.path.insert(0, os.path.dirname(request["argv"][0]))
            runpy.run_path(request["argv"][0], run_name="__main__")
        else:
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
            with open(f"{folder}/count", "w") as stream:
                stream.write(str(events[0]))
        os._exit(status)


def draw_small_pictures() -> None:
    from pictures import draw_small

    from cft.job import figures

    figures.save = draw_small


def mount_disk(folder: str, options: str) -> None:
    """Put a file system in memory on a folder, which this process and its children alone see."""
    import ctypes

    new_namespace, recursive, private = 0x20000, 0x4000, 0x40000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, recursive | private, None):
        raise OSError(ctypes.get_errno(), "no mounts of one's own")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)


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
