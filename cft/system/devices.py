"""One GPU for each of several processes on a machine."""

import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from cft.system.files import machine_name

log = logging.getLogger(__name__)

# The claim of this process: the device and its open lock file.
_claimed: dict[str, IO[str]] = {}


def visible_devices() -> list[str]:
    """Names of the GPUs that this process may use, without torch, which would bind itself to them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def work_on_own_device(folder: Path) -> None:
    """Have torch see the GPU alone that this process claims; before torch is imported, as it looks at that once.

    Args:
        folder: as `claim_device` takes it.
    """
    device = claim_device(folder)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def claim_device(folder: Path, *, patience: float = 1.0) -> str | None:
    """Claim a GPU for this process alone, among the processes that claim theirs in the same folder.

    Args:
        folder: of the lock files, which several machines may share; the system releases a claim when its process ends.
        patience: seconds between attempts while all GPUs are claimed.

    Returns:
        The value for CUDA_VISIBLE_DEVICES; None if there are fewer than two GPUs.
    """
    names = visible_devices()
    if len(names) < 2:
        return None
    if _claimed:  # a process of a pool does one job after the other, and torch has looked at its device by then
        return next(iter(_claimed))
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for name in names:
            stream = (folder / f"device-{machine_name()}-{name.replace('/', '_')}.lock").open("w")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.close()
                continue
            _claimed[name] = stream
            log.info("process %d works on GPU %s", os.getpid(), name)
            return name
        time.sleep(patience)
