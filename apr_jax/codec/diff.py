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
      verdict: "equal" bit for bit, "equal values" of two types, "different", "only in a" or
        "only in b".
      elements: how many differ; two NaNs do not.
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
        names = sorted({*left.names, *right.names})
        tensors = []
        with Progress("compare", len(names), "tensors") as progress:
            for name in names:
                tensors.append(_tensor(left, right, name))
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


def _tensor(left: Checkpoint, right: Checkpoint, name: str) -> TensorDiff:
    a, b = (_describe(side, name) for side in (left, right))
    if a is None or b is None:
        return TensorDiff(name, a, b, "only in a" if b is None else "only in b", 0, None, None)
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
            x = a[at : at + _ELEMENTS_AT_ONCE].astype(np.float64)
            y = b[at : at + _ELEMENTS_AT_ONCE].astype(np.float64)
            unequal = (x != y) & ~(np.isnan(x) & np.isnan(y))
            if not unequal.any():
                continue
            gap = np.abs(x - y)[unequal]
            scale = np.maximum(np.abs(x), np.abs(y))[unequal]
            elements += int(np.count_nonzero(unequal))
            # `maximum` keeps NaN, which comes of a value that is not finite.
            absolute = float(np.maximum(absolute, gap.max()))
            relative = float(np.maximum(relative, (gap / scale).max()))
    return elements, absolute, relative


def _describe(side: Checkpoint, name: str) -> str | None:
    return f"{side.stored(name)} {list(side.shape(name))}" if name in side.names else None
