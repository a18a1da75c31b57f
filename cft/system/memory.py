"""Memory that this process may still take, and the errors that say there is none left.

Free memory is the least of what the machine has, what a control group around the process (a container, a batch job)
leaves, what Slurm granted, and what `ulimit -v` leaves.
"""

import gc
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from cft.system import control_groups

Result = TypeVar("Result")

# What allocators say that raise no error of their own kind: torch's on a CPU, C++'s, cuBLAS's, NCCL's, a driver's.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "status_alloc_failed")

# A limit of this size or more is none: version 1 of control groups writes nearly 2^63 for "unlimited".
_UNLIMITED = 1 << 60

# By the version of control groups: the files of limits, of usage, and what memory.stat calls cached files.
_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


class OutOfMemory:
    """Ends its block where memory runs out in it, and knows then that it did: `with OutOfMemory() as ended: ...`.

    Call `free` before the next attempt, outside of any `except`: while an error is handled, its traceback keeps all
    that the failed work had computed.
    """

    def __init__(self) -> None:
        self.happened = False

    def __enter__(self) -> "OutOfMemory":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.happened = error is not None and is_out_of_memory(error)
        return self.happened

    def __bool__(self) -> bool:
        return self.happened

    @staticmethod
    def free() -> None:
        """Give memory that is in use no more back to the device."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def unless_out_of_memory(work: Callable[[], Result]) -> Result | None:
    """What `work` returns; None if it ran out of memory, and then what it held is free again."""
    with OutOfMemory() as ended:
        return work()
    ended.free()  # type: ignore[unreachable]
    return None


def available_bytes(device: torch.device) -> int:
    """Free bytes of a GPU, with those that torch keeps for this process; on a CPU, those that it may still take."""
    if device.type == "cuda":
        # The driver counts as taken what torch keeps of tensors that are gone, as after a job before this one.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return available_host_bytes()


def available_host_bytes(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process may still take.

    Args:
        root: where `proc` and `sys` are.
    """
    free = [psutil.virtual_memory().available, *_left_by_control_groups(root), *_left_by_slurm(), *_left_by_ulimit()]
    return max(min(free), 0)


def kills_by_memory(root: Path = Path("/")) -> int | None:
    """How many processes this machine has killed for want of memory since it started; None if it does not say."""
    try:
        lines = (root / "proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _left_by_control_groups(root: Path) -> Iterator[int]:
    """What every control group around this process leaves, the group itself and all that it lies in."""
    for folder, version in control_groups.folders("memory", root):
        limits, usage, inactive = _FILES[version]
        used = _number(folder / usage)
        for name in limits:
            limit = _number(folder / name)
            if limit is not None and limit < _UNLIMITED and used is not None:
                # The kernel takes cached files back before it kills.
                yield limit - max(used - _statistic(folder / "memory.stat", inactive), 0)


def _left_by_slurm() -> Iterator[int]:
    """What a Slurm job leaves by its own settings: a cluster may not hold jobs to them by control groups."""
    megabytes = None
    if os.environ.get("SLURM_MEM_PER_NODE", "").isdigit():
        megabytes = int(os.environ["SLURM_MEM_PER_NODE"])
    elif os.environ.get("SLURM_MEM_PER_CPU", "").isdigit():
        processors = os.environ.get("SLURM_CPUS_ON_NODE", "")
        megabytes = int(os.environ["SLURM_MEM_PER_CPU"]) * (int(processors) if processors.isdigit() else 1)
    if megabytes:  # 0 means the whole machine
        yield megabytes * 2**20 - psutil.Process().memory_info().rss


def _left_by_ulimit() -> Iterator[int]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield limit - psutil.Process().memory_info().vms


def _number(path: Path) -> int | None:
    """The number in a file; None if there is none, as in `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int:
    """The number behind a name in a file of statistics; 0 if it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split(" ")[0] == name), 0)
