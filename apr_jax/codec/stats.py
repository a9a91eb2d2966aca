"""Mean, standard deviation and range of a tensor, in float64 and bounded memory; NaNs counted."""

import dataclasses
import functools
from typing import Any

import ml_dtypes
import numpy as np

from apr_jax.codec import threads

_ELEMENTS_AT_ONCE = 1 << 22
_WORDS_AT_ONCE, _WORDS_OF_A_TASK = 1 << 20, 1 << 22

_EXPONENTS: dict[np.dtype[Any], np.unsignedinteger] = {
    np.dtype(np.float16): np.uint16(0x7C00),
    np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80),
    np.dtype(np.float32): np.uint32(0x7F800000),
    np.dtype(np.float64): np.uint64(0x7FF0000000000000),
}
"""The bits that are all set in infinities and NaNs, and in no number."""


@dataclasses.dataclass(frozen=True)
class TensorStats:
    """Statistics of the finite elements; None where there are none. `std` is of the population."""

    elements: int
    not_finite: int
    mean: float | None
    std: float | None
    min: float | None
    max: float | None


@np.errstate(over="ignore", invalid="ignore")
def tensor_stats(array: np.ndarray) -> TensorStats:
    """The statistics of a numeric array of any shape; what overflows float64 is None too."""
    flat = array.reshape(-1)
    count, mean, squares = 0, 0.0, 0.0
    low, high = np.inf, -np.inf
    for at in range(0, flat.size, _ELEMENTS_AT_ONCE):
        part = flat[at : at + _ELEMENTS_AT_ONCE].astype(np.float64)
        part = part[np.isfinite(part)]
        if not part.size:
            continue
        # Chan's update: sums of squares around each part's own mean do not cancel.
        centre = np.mean(part)
        shift, total = centre - mean, count + part.size
        squares += np.square(part - centre).sum() + shift * shift * count * part.size / total
        mean += shift * part.size / total
        count, low, high = total, min(low, part.min()), max(high, part.max())
    std = np.sqrt(squares / count) if count else np.nan
    return TensorStats(
        elements=flat.size,
        not_finite=flat.size - count,
        mean=_number(mean if count else np.nan),
        std=_number(std),
        min=_number(low),
        max=_number(high),
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def count_not_finite(array: np.ndarray) -> int:
    """How many elements of a float array are infinite or NaN, by their bits, on all cores."""
    exponent = _EXPONENTS[array.dtype]
    words = np.ascontiguousarray(array).reshape(-1).view(exponent.dtype)
    starts = range(0, words.size, _WORDS_OF_A_TASK)
    return sum(threads.pool().map(functools.partial(_count, words, exponent), starts))


def _count(words: np.ndarray, exponent: np.unsignedinteger, start: int) -> int:
    words = words[start : start + _WORDS_OF_A_TASK]
    count = 0
    for at in range(0, words.size, _WORDS_AT_ONCE):
        exponents = words[at : at + _WORDS_AT_ONCE] & exponent
        if exponents.max() == exponent:  # hardly ever, and quicker to ask than to count
            count += int(np.count_nonzero(exponents == exponent))
    return count
