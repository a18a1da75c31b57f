"""How the C library keeps large blocks of memory on a CPU.

Before version 2.38, GNU's C library leaves holes behind large aligned blocks, as torch's tensors are, wherever small
ones stand between them. A training then takes more memory with every few steps, up to several times what its tensors
need, and longer to find a block in it.

Source: its bug 14581, https://sourceware.org/bugzilla/show_bug.cgi?id=14581.
"""

import ctypes
import os

_MENDED = (2, 38)
_MMAP_THRESHOLD = -3  # of mallopt, in malloc.h: blocks from so many bytes on are mapped one by one
_LARGE = 4 << 20
# By which a user has chosen; the last one loads other allocators.
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def map_large_blocks() -> bool:
    """Have large blocks mapped one by one and given back when they are free; returns whether that was done.

    It is not where the C library is mended or another one, nor where the environment has chosen.
    """
    if not _leaves_holes() or any(os.environ.get(name) for name in _CHOSEN):
        return False
    return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE))


def _leaves_holes() -> bool:
    """Whether this is a version of GNU's C library that does."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return name == "glibc" and tuple(map(int, version.split(".")[:2])) < _MENDED
    except (AttributeError, ValueError):  # Windows; another C library
        return False
