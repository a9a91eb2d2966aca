"""Two checkpoints of any two formats, compared element by element."""

import dataclasses
import os
from typing import Any

import numpy as np

from apr_jax.codec.checkpoint import Checkpoint, open_checkpoint
from apr_jax.codec.compare import same_bits
from apr_jax.progress import Progress

_ELEMENTS_AT_ONCE = 1 << 22


@dataclasses.dataclass(frozen=True)
class TensorDiff:
    """How one tensor differs. `a` and `b` are "TYPE [shape]", None where it is missing.

    Attributes:
      verdict: "equal" bit for bit, "equal values" of two types or with NaNs of other bits,
        "different", "only in a" or "only in b".
      elements: how many differ; two NaNs do not, zeros of two signs do.
      max_absolute, max_relative: the largest differences; relative to the larger magnitude of the
        two. None where shapes differ or a value is not finite.
    """

    name: str
    a: str | None
    b: str | None
    verdict: str
    elements: int = 0
    max_absolute: float | None = 0.0
    max_relative: float | None = 0.0


def diff_checkpoints(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> dict[str, Any]:
    """Compare configuration and tensors.

    Args:
      a, b: `.apr`, HuggingFace folder, safetensors file or GGUF.

    Returns:
      `status` ("equal", "equal values" or "different"), `config` (the fields that differ, each with
      both values) and `tensors` (a `TensorDiff` each, as a dict). A tied head is no tensor.

    Raises:
      AprError, ConfigError: one of the two cannot be read.
    """
    with open_checkpoint(a) as left, open_checkpoint(b) as right:
        ours, theirs = dataclasses.asdict(left.config), dataclasses.asdict(right.config)
        config = {key: [ours[key], theirs[key]] for key in ours if ours[key] != theirs[key]}
        of_a, of_b = set(left.names), set(right.names)
        tensors = []
        with Progress("compare", len(of_a | of_b), "tensors") as progress:
            for name in sorted(of_a | of_b):
                one = left if name in of_a else None
                tensors.append(_tensor(one, right if name in of_b else None, name))
                progress.update()
    verdicts = {tensor.verdict for tensor in tensors}
    status = "different"
    if not config and verdicts <= {"equal", "equal values"}:
        status = "equal values" if "equal values" in verdicts else "equal"
    return {
        "a": os.fspath(a),
        "b": os.fspath(b),
        "status": status,
        "config": config,
        "tensors": [dataclasses.asdict(tensor) for tensor in tensors],
    }


def _tensor(left: Checkpoint | None, right: Checkpoint | None, name: str) -> TensorDiff:
    a, b = (_describe(side, name) for side in (left, right))
    if left is None or right is None:
        return TensorDiff(name, a, b, "only in b" if left is None else "only in a", 0, None, None)
    if left.shape(name) != right.shape(name):
        return TensorDiff(name, a, b, "different", 0, None, None)
    ours, theirs = left.read(name), right.read(name)
    if left.stored(name) == right.stored(name) and same_bits(ours, theirs):
        return TensorDiff(name, a, b, "equal")
    elements, absolute, relative = _differences(ours.reshape(-1), theirs.reshape(-1))
    return TensorDiff(
        name,
        a,
        b,
        "different" if elements else "equal values",
        elements,
        absolute if np.isfinite(absolute) else None,
        relative if np.isfinite(relative) else None,
    )


def _differences(a: np.ndarray, b: np.ndarray) -> tuple[int, float, float]:
    """The number of elements that differ, the largest absolute and the largest relative error."""
    elements, absolute, relative = 0, 0.0, 0.0
    for at in range(0, a.size, _ELEMENTS_AT_ONCE):
        with np.errstate(all="ignore"):
            x, y = a[at : at + _ELEMENTS_AT_ONCE], b[at : at + _ELEMENTS_AT_ONCE]
            unequal = _unequal(x, y)
            if not unequal.any():
                continue
            x, y = x[unequal], y[unequal]
            gap = _gap(x, y)
            scale = np.maximum(np.abs(x.astype(np.float64)), np.abs(y.astype(np.float64)))
            elements += gap.size
            # `maximum` keeps NaN, which comes of a value that is not finite.
            absolute = float(np.maximum(absolute, gap.max()))
            relative = float(np.maximum(relative, np.where(scale == 0, 0, gap / scale).max()))
    return elements, absolute, relative


def _unequal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two flat arrays of any types differ, bool [n]."""
    if _are_integers(a, b):
        return np.not_equal(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    zeros_of_two_signs = (x == 0) & (np.signbit(x) != np.signbit(y))
    unequal = ((x != y) | zeros_of_two_signs) & ~(np.isnan(x) & np.isnan(y))
    for own, wide in ((a, x), (b, y)):
        if own.dtype == np.int64:  # what float64 cannot hold, no float equals
            unequal |= wide.astype(np.int64) != own
    return unequal


def _gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The distances, float64 [n]."""
    if not _are_integers(a, b):
        return np.abs(a.astype(np.float64) - b.astype(np.float64))
    x, y = a.astype(np.int64), b.astype(np.int64)
    distance = np.maximum(x, y) - np.minimum(x, y)  # wraps around to the unsigned distance
    return distance.view(np.uint64).astype(np.float64)


def _are_integers(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype.kind in "iu" and b.dtype.kind in "iu"


def _describe(side: Checkpoint | None, name: str) -> str | None:
    return f"{side.stored(name)} {list(side.shape(name))}" if side else None
