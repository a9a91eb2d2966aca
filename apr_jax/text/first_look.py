"""A first look at words, compiled by XLA: it tells the values of nearly all of them.

For each word one row of a table is looked at, and keys, rows and comparisons never leave the
registers, which takes a third of the time of the same in NumPy. Words that another one has driven
out of its row, words that are not known and long ones are left to `word_table`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from apr_jax.text.on_cpu import apart, cpu
from apr_jax.text.word_table import ABSENT, EMPTY, MIX, SHORT, Text, aligned

_ROW_BITS = 20
_CHUNK = 1 << 14  # words in one call
# The second number of rows whose first is EMPTY, which is no word's row. A word's second number can
# be 0 too, beside another first: its row is then taken for free, and lost to it.
_NO_WORD = np.uint64(0)


class FirstLook:
    """A table of words of up to sixteen bytes with their values, of which it holds what fits.

    It works in the process that made it alone: XLA's threads are not in a forked child.
    """

    def __init__(self, divider: int) -> None:
        """A divider's value is `divider`. Raises UserError where JAX has no CPU."""
        self._device = cpu()
        # First eight bytes, next eight, value; a fourth number, so that no row is in two lines.
        self._rows = aligned(4 << _ROW_BITS).reshape(-1, 4)
        self.clear()
        with apart(self._device):
            self._constants = jax.device_put((MIX[:2], np.int32(divider)), self._device)

    def clear(self) -> None:
        """Hold no words."""
        self._rows[:] = EMPTY, _NO_WORD, 0, 0

    def add(self, first: np.ndarray, second: np.ndarray, values: np.ndarray) -> None:
        """Hold these words too, where their rows are free. Of those that share one the last stays.

        Args:
          first: uint64, the words' first eight bytes, filled up with 0xFF.
          second: uint64, their next eight bytes likewise.
          values: int32.
        """
        columns = [first, second, values.view(np.uint32)]
        rows = _row(first, second, MIX[:2]).astype(np.int64)
        held = self._rows.reshape(-1)
        for turn in range(2):
            at = (rows ^ turn) << 2
            free = np.flatnonzero(held.take(at + 1) == _NO_WORD)
            for number, column in enumerate(columns):  # faster than rows of three
                held[at.take(free) + number] = column.take(free)
            is_out = (held.take(at) != columns[0]) | (held.take(at + 1) != columns[1])
            out = np.flatnonzero(is_out)
            rows = rows.take(out)
            columns = [column.take(out) for column in columns]

    def find(self, text: Text, bounds: np.ndarray) -> np.ndarray:
        """int32: the values of words, each from one of `bounds` to the next; ABSENT for some."""
        count = len(bounds) - 1
        padded = np.empty(-(-count // _CHUNK) * _CHUNK + 1, np.uint32)
        padded[: len(bounds)], padded[len(bounds) :] = bounds, bounds[-1]
        with apart(self._device):
            # Aligned arrays are not copied, nor changed before the results are here.
            found = [
                _find(text.eights, padded[start : start + _CHUNK + 1], self._rows, *self._constants)
                for start in range(0, count, _CHUNK)
            ]
            values = np.concatenate([np.asarray(part) for part in found])[:count]
        return values


@jax.jit
def _find(eights: Any, bounds: Any, rows: Any, mix: Any, divider: Any) -> Any:
    """The values of words with these bounds in a text of eight bytes a number."""
    first, second, lengths = _keys(eights, bounds)
    at = lax.optimization_barrier(_row(first, second, mix))  # or it is computed for each use
    values = jnp.where(first == EMPTY, divider, np.int32(ABSENT))
    for row in (at, at ^ 1):
        is_word = (_take(rows, (row, 0)) == first) & (_take(rows, (row, 1)) == second)
        values = jnp.where(is_word, _take(rows, (row, 2)).astype(jnp.int32), values)
    return jnp.where(lengths <= SHORT, values, np.int32(ABSENT))


def _row(first: Any, second: Any, mix: Any) -> Any:
    return ((first * mix[0] + ~second * mix[1]) >> np.uint64(64 - _ROW_BITS)).astype(np.uint32)


def _keys(eights: Any, bounds: Any) -> tuple[Any, Any, Any]:
    """The first and the second eight bytes of words, filled up with 0xFF, and their lengths."""
    starts = bounds[:-1]
    lengths = bounds[1:] - starts
    shift = ((starts & 7) << 3).astype(jnp.uint64)
    at = starts >> 3
    low, middle, high = _take(eights, at), _take(eights, at + 1), _take(eights, at + 2)
    first, second = _between(low, middle, shift), _between(middle, high, shift)
    return first | _filling(lengths), second | _filling(jnp.maximum(lengths, 8) - 8), lengths


def _between(low: Any, high: Any, shift: Any) -> Any:
    """Eight bytes out of sixteen. A shift by 64 gives 0."""
    return lax.shift_right_logical(low, shift) | lax.shift_left(high, np.uint64(64) - shift)


def _filling(lengths: Any) -> Any:
    return lax.shift_left(jnp.full(lengths.shape, EMPTY), lengths.astype(jnp.uint64) << 3)


def _take(array: Any, at: Any) -> Any:
    return array.at[at].get(mode="promise_in_bounds")
