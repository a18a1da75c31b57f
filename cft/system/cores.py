"""How many cores a process may keep busy.

torch starts a thread for every core that it may run on. Where a control group (a container, a batch job) grants the
time of fewer, the system stops all threads when that is used up, each time in the middle of an operation.
"""

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from cft.system import control_groups

log = logging.getLogger(__name__)


def granted_cores(root: Path = Path("/")) -> int:
    """Cores whose time this process may have: those it may run on, those of control groups, those of Slurm.

    Args:
        root: where `proc` and `sys` are.
    """
    return max(1, min([_visible(), *_of_control_groups(root), *_of_slurm()]))


def use_granted_cores() -> None:
    """Have torch start no more threads than there are cores to run them; who set OMP_NUM_THREADS has chosen."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = granted_cores()
    if cores < torch.get_num_threads():
        log.info("%d threads: control groups or Slurm grant so many cores of %d", cores, _visible())
        torch.set_num_threads(cores)


def _visible() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _of_control_groups(root: Path) -> Iterator[int]:
    """The whole cores that every control group's time for a period comes to, a part of one counted as one."""
    for folder, version in control_groups.folders("cpu", root):
        try:
            if version == 2:
                time, period = (folder / "cpu.max").read_text().split()
            else:
                time, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            granted = int(time) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such file; `max` where there is no limit
            continue
        if granted > 0:  # version 1 writes -1 where there is no limit
            yield math.ceil(granted)


def _of_slurm() -> Iterator[int]:
    """What a Slurm job was granted: a cluster may not hold jobs to it by control groups."""
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if granted.isdigit():
        yield int(granted)
