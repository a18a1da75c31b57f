"""Free disk space, checked before a job starts."""

import os
import shutil
import tempfile
from pathlib import Path

from cft.system.errors import UserError
from cft.system.text import byte_size

# For scores, pictures, logs and the history, and for other processes that write to the same disk.
_MARGIN = 64 << 20
_MOMENTS = 2


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, or whose disk is nearly full.

    Raises:
        OSError: naming the folder.
        UserError: if the disk is nearly full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"\0")
    except OSError as error:
        error.filename = os.fspath(folder)  # the temporary file's own name is of no use
        raise
    require_free(folder, _MARGIN, "results of a job")


def require_room(folder: Path, weights: int, kept: int) -> None:
    """Refuse to begin a training whose weights and checkpoints the disk will not hold.

    Args:
        folder: of the training.
        weights: bytes of the trained weights.
        kept: number of earlier steps whose weights are kept.

    Raises:
        UserError: naming the folder, what is needed and what is free.
    """
    # A checkpoint replaces the last one once it is written; the result is written before the last checkpoint goes.
    needed = 2 * weights * (1 + _MOMENTS) + weights * (1 + kept)
    require_free(folder, needed + _MARGIN, "checkpoints and weights of this training")


def require_free(folder: Path, needed: int, what: str) -> None:
    """Refuse a disk with less free space than needed.

    Args:
        folder: on the disk.
        needed: bytes.
        what: needs them, for the message.

    Raises:
        UserError: saying what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{os.fspath(folder)}: the {what} take up to {byte_size(needed, 0)}, and {byte_size(free, 0)} are free "
            "there; make room, or name another disk"
        )
