"""Comparing arrays and checkpoints bit for bit."""

import functools
import hashlib
import math
from collections.abc import Buffer, Mapping

import numpy as np

from apr_jax.codec import threads
from apr_jax.codec.checkpoint import Checkpoint
from apr_jax.codec.errors import VerificationFailed
from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.errors import short
from apr_jax.progress import Progress

_ELEMENTS_AT_ONCE = 1 << 16
_BYTES_AT_ONCE = 1 << 20  # what comparing makes of them stays in the cache
_BYTES_OF_A_TASK = 1 << 24


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of `array` in row-major order, uint8; a view where it lies so already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal in type, shape and every bit: the payloads of NaNs and the signs of zeros count."""
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and same_bytes(as_bytes(left), as_bytes(right))
    )


def same_bytes(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two flat uint8 arrays are equal, compared on all cores."""
    if left.size != right.size:
        return False
    pieces = range(0, left.size, _BYTES_OF_A_TASK)
    return all(threads.pool().map(functools.partial(_same_piece, left, right), pieces))


def _same_piece(left: np.ndarray, right: np.ndarray, start: int) -> bool:
    stop = min(start + _BYTES_OF_A_TASK, left.size)
    parts = (slice(at, min(at + _BYTES_AT_ONCE, stop)) for at in range(start, stop, _BYTES_AT_ONCE))
    return all(np.array_equal(left[part], right[part]) for part in parts)


def digest(data: Buffer) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def same_values(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal in shape, and in every bit once the narrower type is cast to a wider that holds it."""
    for narrow, wide in ((left, right), (right, left)):
        if np.can_cast(narrow.dtype, wide.dtype):
            with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
                return same_bits(narrow.astype(wide.dtype, copy=False), wide)
    return False


def relative_error(original: np.ndarray, values: np.ndarray) -> float:
    """The Frobenius norm of the difference over that of `original`, in float64; 0 for zeros.

    Elements that are not finite, in the one or the other, do not count.
    """
    original, values = original.reshape(-1), values.reshape(-1)
    # Squares of all narrower types are within the range of float64.
    unit = _peak(original) if original.dtype == np.float64 else 1.0
    difference = total = 0.0
    for at in range(0, original.size, _ELEMENTS_AT_ONCE):
        part = original[at : at + _ELEMENTS_AT_ONCE].astype(np.float64) / unit
        total += _sum_of_squares(part)
        with np.errstate(invalid="ignore"):
            part -= values[at : at + _ELEMENTS_AT_ONCE].astype(np.float64) / unit
        difference += _sum_of_squares(part)
    return math.sqrt(difference / total) if total else 0.0


def _peak(flat: np.ndarray) -> float:
    """The largest finite magnitude; 1 where there is none but zero."""
    starts = range(0, flat.size, _ELEMENTS_AT_ONCE)
    parts = (np.abs(flat[at : at + _ELEMENTS_AT_ONCE]) for at in starts)
    peak = max((part.max(where=np.isfinite(part), initial=0.0) for part in parts), default=0.0)
    return float(peak) or 1.0


def verify_copy(
    original: Checkpoint,
    copy: Checkpoint,
    *,
    config: Qwen2Config | None = None,
    hashes: Mapping[str, str] | None = None,
) -> None:
    """Check that `copy` holds the model of `original`: its configuration and every bit.

    Tensors stored in one type must have the same bytes, others the same values.

    Args:
      original: what was copied.
      copy: what was written.
      config: what the configuration of `copy` must be; that of `original` when None.
      hashes: the SHA-256 of the stored bytes of those tensors that `copy` has in a type of its own;
        they are compared by it.

    Raises:
      VerificationFailed: names the first tensor that differs.
    """
    wanted = config or original.config
    if copy.config != wanted:
        raise VerificationFailed(copy.path, f"reads back as {copy.config}, was written as {wanted}")
    if copy.names != original.names:
        different = sorted(set(copy.names) ^ set(original.names))
        raise VerificationFailed(
            copy.path, f"holds other tensors: {short(', '.join(different[:5]))}"
        )

    hashes = hashes or {}

    def same(name: str) -> bool:
        if original.shape(name) != copy.shape(name):
            return False
        if name in hashes:
            return digest(copy.raw(name)) == hashes[name]
        return _same(original, copy, name)

    with Progress("verify", len(copy.names), "tensors") as progress:
        for name in copy.names:
            if not same(name):
                raise VerificationFailed(
                    copy.path, f"differs from {original.path}; write it again", tensor=name
                )
            progress.update()


def _sum_of_squares(part: np.ndarray) -> float:
    part = np.where(np.isfinite(part), part, 0.0)
    return float(np.einsum("e,e->", part, part))  # BLAS's threads cost more than they save here


def _same(original: Checkpoint, copy: Checkpoint, name: str) -> bool:
    if original.stored(name) == copy.stored(name) and not original.is_cast:
        return same_bytes(
            np.frombuffer(original.raw(name), np.uint8), np.frombuffer(copy.raw(name), np.uint8)
        )
    return same_values(original.read(name), copy.read(name))
