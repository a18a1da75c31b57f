"""Vectors in fewer bytes: halves, bytes, and single bits, as sentence-transformers makes them.

float16           2 bytes a number
int8, uint8       1 byte: which of 255 equal steps between the least and the largest number of its column it is in
binary, ubinary   1 bit: whether it is above 0; eight to a byte, signed or not
"""

from typing import Any, Literal, get_args

import numpy as np

from cft.system.errors import UserError
from cft.system.text import described, did_you_mean

Dtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
DTYPES = get_args(Dtype)
IN_BYTES = ("int8", "uint8")
IN_BITS = ("binary", "ubinary")
_STEPS = 255


def require_dtype(dtype: Any) -> None:
    """Refuse what is no kind of vector.

    Raises:
        UserError: naming it and the nearest kind.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        guess = did_you_mean(dtype, DTYPES) if isinstance(dtype, str) else ""
        raise UserError(f"dtype={dtype!r}: must be {', '.join(DTYPES)}{guess}")


def ranges_of(vectors: np.ndarray) -> np.ndarray:
    """Least and largest number (2, D) of each column of vectors (n, D), by which int8 and uint8 are told apart."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)


def quantize(vectors: np.ndarray, dtype: Dtype, ranges: np.ndarray | None = None) -> np.ndarray:
    """Vectors (n, D) in another kind of number.

    Args:
        vectors: float32.
        dtype: see the module.
        ranges: (2, D) least and largest numbers of the columns, for int8 and uint8; None takes those of `vectors`.
            What is compared must be made with the same ranges; numbers beyond them become the first or last step.

    Returns:
        (n, D), of single bits (n, ceil(D / 8)).

    Raises:
        UserError: if the kind is unknown, vectors are no (n, D) floats, ranges do not fit, or they are to be taken
            from fewer than two vectors.

    Example:
        >>> import numpy as np
        >>> quantize(np.array([[0.6, -0.8], [-1.0, 0.0]], dtype=np.float32), "uint8").tolist()
        [[255, 0], [0, 255]]
    """
    require_dtype(dtype)
    try:
        vectors = np.asarray(vectors)
    except ValueError as error:
        raise UserError(f"vectors must be (n, D) floats ({error})") from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise UserError(f"vectors must be (n, D) floats, not {vectors.dtype} of shape {vectors.shape}")
    odd = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(odd):
        raise UserError(f"vectors hold NaN or infinity, first in row {odd[0] + 1} of {len(vectors)}")
    if dtype in ("float32", "float16"):
        return vectors.astype(dtype, copy=False)
    if dtype in IN_BITS:
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if dtype == "ubinary" else (bits - 128).astype(np.int8)
    steps = _steps(vectors, ranges)
    return steps.astype(np.uint8) if dtype == "uint8" else (steps - 128).astype(np.int8)


def _steps(vectors: np.ndarray, ranges: np.ndarray | None) -> np.ndarray:
    """(n, D) float32, whole numbers from 0 to 255."""
    if not len(vectors):
        return vectors.astype(np.float32)
    if ranges is None:
        if len(vectors) < 2:
            raise UserError("int8 and uint8 need ranges, or two vectors or more to take them from")
        ranges = ranges_of(vectors)
    start, step = _scale(ranges, vectors.shape[1])
    return np.clip(np.floor((vectors - start) / step), 0, _STEPS)


def _scale(ranges: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a column begins and how large its steps are, (D,) each."""
    try:
        ranges = np.asarray(ranges, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"ranges must be (2, {width}) finite numbers, not {described(ranges)}") from error
    if ranges.shape != (2, width) or not np.isfinite(ranges).all() or (ranges[0] > ranges[1]).any():
        raise UserError(f"ranges must be (2, {width}) finite numbers, first the least of each column, then the largest")
    step = (ranges[1] - ranges[0]) / _STEPS
    return ranges[0], np.where(step == 0, 1, step).astype(np.float32)


def restore(
    vectors: np.ndarray, dtype: Dtype, ranges: np.ndarray | None = None, *, width: int | None = None
) -> np.ndarray:
    """What is left of vectors: (n, D) float32, the middle of each step, or -1 and 1 for single bits.

    Args:
        vectors: from `quantize`. dtype, ranges: as there. width: D, of single bits.
    """
    if dtype in ("float32", "float16"):
        return vectors.astype(np.float32)
    if dtype in IN_BITS:
        bits = vectors if dtype == "ubinary" else (vectors.astype(np.int16) + 128).astype(np.uint8)
        return np.unpackbits(bits, axis=-1, count=width).astype(np.float32) * 2 - 1
    assert ranges is not None, "bytes mean nothing without their ranges"
    start, step = _scale(ranges, vectors.shape[1])
    steps = vectors.astype(np.float32) + (128 if dtype == "int8" else 0)
    return start + (steps + 0.5) * step
