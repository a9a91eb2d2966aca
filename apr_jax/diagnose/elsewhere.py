"""Where else in the reference a tensor, or its rows, can be found: what was exchanged."""

import functools

import numpy as np

from apr_jax.codec import Checkpoint
from apr_jax.codec.compare import same_bits
from apr_jax.diagnose.faults import Fault

_Beginning = tuple[tuple[int, ...], bytes]
_BEGINNING = 64  # values by which candidates are told apart before they are compared


class Elsewhere:
    """Looks for tensors that are not what the reference has under their name."""

    def __init__(self, reference: Checkpoint) -> None:
        self._reference = reference

    def find(self, name: str, ours: np.ndarray) -> Fault | None:
        """The fault that explains `ours`, which differs from the reference's `name`, if any.

        Both are in the type that they are stored in; another precision is not looked through.
        """
        for other in self._names.get(_beginning(ours), []):
            if same_bits(ours, self._reference.read(other)):
                return Fault("MISPLACED", name, f"is the reference's {other}, bit for bit")
        return _permuted(name, ours, self._reference.read(name))

    @functools.cached_property
    def _names(self) -> dict[_Beginning, list[str]]:
        found: dict[_Beginning, list[str]] = {}
        for name in self._reference.names:
            found.setdefault(_beginning(self._reference.read(name)), []).append(name)
        return found


def _beginning(array: np.ndarray) -> _Beginning:
    return array.shape, array.reshape(-1)[:_BEGINNING].tobytes()


def _permuted(name: str, ours: np.ndarray, reference: np.ndarray) -> Fault | None:
    """Whole rows of a matrix in another order."""
    if ours.ndim != 2 or ours.dtype != reference.dtype or not ours.size:
        return None
    if not np.array_equal(np.sort(ours[:, 0]), np.sort(reference[:, 0])):  # soon told for most
        return None
    rows, wanted = _rows(ours), _rows(reference)
    if not np.array_equal(np.sort(rows), np.sort(wanted)):
        return None
    moved = np.flatnonzero(rows != wanted)
    source = int(np.flatnonzero(wanted == rows[moved[0]])[0])
    return Fault(
        "PERMUTED",
        name,
        f"{len(moved):,} of {len(rows):,} rows are rows of the reference in another order, the "
        f"first {moved[0]}, which is its row {source}",
    )


def _rows(matrix: np.ndarray) -> np.ndarray:
    """Each row's bytes as one element, which can be sorted and compared."""
    matrix = np.ascontiguousarray(matrix)
    return matrix.view(np.dtype((np.void, matrix.strides[0]))).reshape(-1)
