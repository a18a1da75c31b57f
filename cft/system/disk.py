"""Whether the disk will hold what a job writes, asked before the hours are spent and not after."""

import os
import shutil
import tempfile
from pathlib import Path

from cft.system.errors import UserError
from cft.system.text import byte_size

# Scores, pictures, logs and the history, and what else writes to the same disk in the meantime.
_MARGIN = 64 << 20
_MOMENTS = 2


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, or whose disk is as good as full.

    Raises:
        OSError: naming the folder; `errors.of_system` words it.
        UserError: if there is hardly any room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"\0")
    except OSError as error:
        error.filename = os.fspath(folder)  # the file's own name means nothing to anybody
        raise
    require_free(folder, _MARGIN, "results of a job")


def require_room(folder: Path, weights: int, kept: int) -> None:
    """Refuse to begin a training whose weights and checkpoints the disk will not hold.

    Args:
        folder: of the training. weights: bytes of those to be trained. kept: how many steps' weights are kept beside
            the last one's.

    Raises:
        UserError: naming the folder, what is needed and what is free.
    """
    # A checkpoint is written beside the one before; the result is written before the last one goes.
    needed = 2 * weights * (1 + _MOMENTS) + weights * (1 + kept)
    require_free(folder, needed + _MARGIN, "checkpoints and weights of this training")


def require_free(folder: Path, needed: int, what: str) -> None:
    """Refuse a disk with less room than is needed.

    Args:
        folder: on it. needed: bytes. what: takes them, for the message.

    Raises:
        UserError: saying what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{os.fspath(folder)}: the {what} take up to {byte_size(needed, 0)}, and {byte_size(free, 0)} are free "
            "there; make room, or name another disk"
        )
