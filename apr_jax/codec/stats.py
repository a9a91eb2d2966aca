"""Mean, standard deviation and range of a tensor, in float64 and bounded memory."""

import dataclasses

import numpy as np

_ELEMENTS_AT_ONCE = 1 << 22


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
