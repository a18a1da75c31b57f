"""Runs stages, each in a process of its own, and keeps what they found as JSON.

A process of its own frees the GPU's memory, and survives in the others what ends it: a kill, a fault of the driver.
It is a fork of one that has imported everything and has not looked at CUDA, which a fork would not survive.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cft.system.files import read_json, write_json
from gpu.kit import Kit, Note

_GRACE = 15.0  # seconds from asking a stage to end to ending it
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"


@dataclass(frozen=True)
class Stage:
    """One stage. seconds: that it may take. uses: what of the kit its result depends on."""

    name: str
    run: Callable[[Kit, Note], dict[str, Any]]
    seconds: float
    uses: tuple[str, ...] = ()


def kept(kit: Kit, stage: Stage, *, again: bool) -> str | None:
    """The status of a record that stands, as it was made with the same settings; None if there is none."""
    path = kit.out / f"{stage.name}.json"
    record = read_json(path) if path.exists() else {}
    status = record.get("status")
    if record.get("settings") != kit.settings(stage.uses) or status in (None, RUNNING):
        return None
    return None if again and status != DONE else status


def carry_out(kit: Kit, stage: Stage, seconds: float) -> dict[str, Any]:
    """Run a stage in a process of its own for so many seconds at most; returns its record, which is a file then."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _as_child(kit, stage)
    began = time.monotonic()
    status = None
    try:
        while status is None and time.monotonic() - began < seconds:
            status = _ended(process)
    finally:
        if status is None:  # its time is up, or this process is to end
            _end(process)
    return _finished(kit, stage, status, time.monotonic() - began)


def _ended(process: int, pause: float = 0.05) -> int | None:
    found, status = os.waitpid(process, os.WNOHANG)
    if found:
        return os.waitstatus_to_exitcode(status)
    time.sleep(pause)
    return None


def _end(process: int) -> None:
    """Ask a stage and what it started to end, then end them."""
    for which, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, which)
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if _ended(process) is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process, signal.SIGKILL)
                return


def _finished(kit: Kit, stage: Stage, status: int | None, seconds: float) -> dict[str, Any]:
    """The record that a stage left, with its end if it could not write that itself."""
    path = kit.out / f"{stage.name}.json"
    record = read_json(path) if path.exists() else _record(kit, stage)
    if record["status"] == RUNNING:
        why = f"stopped after {seconds:.0f} s" if status is None else f"its process ended with status {status}"
        record |= {"status": STOPPED if status is None else FAILED, "error": why, "seconds": seconds}
        write_json(path, record)
    return record


def _record(kit: Kit, stage: Stage) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "status": RUNNING,
        "tiny": kit.tiny,
        "settings": kit.settings(stage.uses),
        "result": {},
        "seconds": None,
        "device": None,
        "torch": None,
    }


def _as_child(kit: Kit, stage: Stage) -> None:
    """Run a stage, write its record and end this process."""
    status, parent = 1, os.getppid()
    try:
        os.setsid()
        _end_with(parent)
        for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(which, signal.SIG_DFL)
        log = os.open(kit.out / f"{stage.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _run(kit, stage)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_with(parent: int) -> None:
    """Have this process killed when the kit is: two at work would spoil each other's times."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before
        os._exit(1)


def _run(kit: Kit, stage: Stage) -> None:
    path, began = kit.out / f"{stage.name}.json", time.monotonic()
    record = _record(kit, stage)
    # one that is stopped now must not be taken for the one before
    write_json(path, record)
    try:
        record |= machine(kit)
        write_json(path, record)

        def note(found: dict[str, Any]) -> None:
            write_json(path, record | {"result": found})

        record |= {"result": stage.run(kit, note), "status": DONE}
    except BaseException as error:
        traceback.print_exc()
        found = read_json(path)["result"]  # what was noted
        record |= {"status": FAILED, "result": found, "error": f"{type(error).__name__}: {error}"[:2000]}
        record["traceback"] = traceback.format_exc()[-4000:]
    write_json(path, record | {"seconds": time.monotonic() - began})


def machine(kit: Kit) -> dict[str, Any]:
    """The device and the versions; looks at CUDA."""
    import torch

    from cft.system.environment import describe_environment

    found = describe_environment(kit.device)
    facts: dict[str, Any] = {"torch": torch.__version__, "packages": found["packages"], "git": found["git"]}
    facts["python"] = found["python"]
    if kit.device.type == "cuda":
        properties = torch.cuda.get_device_properties(kit.device)
        facts |= {
            "device": found["device"],
            "cuda": torch.version.cuda,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability(kit.device)),
            "has_bf16": torch.cuda.is_bf16_supported(),
        }
    else:
        facts |= {"device": f"CPU ({found['device']})", "threads": found["threads"]}
    return facts


def sees_a_gpu() -> bool:
    """Whether torch sees a CUDA device, found out by a process that ends afterwards."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            import torch

            status = 0 if torch.cuda.is_available() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def run_all(kit: Kit, stages: list[Stage], *, again: bool, last_needs: float) -> None:
    """Carry out the stages whose records are missing, within the budget.

    Args:
        kit: how the kit was called. stages: in their order. again: also those that failed or were stopped.
        last_needs: seconds that are kept for the last stage.
    """
    began = time.monotonic()
    for stage in stages:
        status = kept(kit, stage, again=again)
        if status is not None:
            print(f"{stage.name}: {status} before")
            continue
        left = kit.budget - (time.monotonic() - began)
        seconds = min(stage.seconds, left - (last_needs if stage is not stages[-1] else 0.0))
        if seconds < 5:
            print(f"{stage.name}: not begun, as {left:.0f} s are left; the same command goes on with it")
            continue
        record = carry_out(replace(kit, left=seconds), stage, seconds)
        why = f": {record['error'].splitlines()[0][:200]}" if record.get("error") else ""
        print(f"{stage.name}: {record['status']} after {record['seconds']:.1f} s{why}", flush=True)
