"""From pairs of ids to ranks, for arrays of pairs."""

from collections.abc import Iterator

import numpy as np

from apr_jax.text.ragged import spans

NONE = np.iinfo(np.int32).max  # the rank of a pair that is no merge
_BITS = 21  # of ids and of ranks
_EMPTY = -1 << 2 * _BITS  # no pair's slot, not even that of a GAP
_SPARE = 6  # slots for each pair, at least
_TRIALS = 500  # of finding places for rows of about the same length


class PairTable:
    """From pairs of ids to ranks: a table in which every pair has one slot of its own.

    The slot of a pair is its right id, mixed with a number that the left id has for this purpose,
    such that no two pairs get the same. So a look-up takes two steps: the number, then the slot. A
    slot holds left id and rank, 21 bits each; if the left id is right then so is the right one.

    Attributes:
      numbers: int64 [ids], the number of each left id.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray) -> None:
        top = max(highest(left), highest(right))
        if max(top, len(left)) >> _BITS:
            raise ValueError(f"ids or merges beyond {_BITS} bits")
        bits = max(top, _SPARE * len(left)).bit_length()
        while (numbers := _place(left, right, top + 1, bits)) is None:
            bits += 1
        self.numbers = numbers
        self._slots = np.full(1 << bits, _EMPTY)
        self._slots[numbers[left] ^ right] = left.astype(np.int64) << _BITS | np.arange(len(left))

    @property
    def slot_ranks(self) -> np.ndarray:
        """int32 [slots]: the rank of the pair that each slot is of, NONE of those without one."""
        ranks = self._slots & (1 << _BITS) - 1
        return np.where(self._slots == _EMPTY, NONE, ranks).astype(np.int32)

    def ranks(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """int32, shaped as the ids: the rank of each pair, NONE where it is no merge."""
        slots = self.numbers.take(left, mode="clip")
        slots ^= right
        held = self._slots.take(slots, mode="clip")
        is_other = held >> _BITS != left
        ranks = held.astype(np.int32)  # which leaves some bits of the left id
        ranks &= (1 << _BITS) - 1
        np.copyto(ranks, NONE, where=is_other)
        return ranks


def _place(left: np.ndarray, right: np.ndarray, size: int, bits: int) -> np.ndarray | None:
    """int64 [size]: a number for each left id; None if that cannot be done.

    Rows, the pairs of one left id, try numbers at random, the longest ones first.
    """
    order = np.argsort(left, kind="stable")
    right = right[order]
    ids, starts, lengths = np.unique(left[order], return_index=True, return_counts=True)
    numbers = np.zeros(size, np.int64)
    is_taken = np.zeros(1 << bits, bool)
    is_taken[[0, -1]] = True  # where pairs with a GAP or with higher ids look
    claims = np.empty(1 << bits, np.int64)
    rng = np.random.default_rng(0)
    for rows in _by_length(lengths):
        for _ in range(_TRIALS):
            tried = rng.integers(0, 1 << bits, len(rows))
            pairs = spans(starts[rows], lengths[rows])
            row = np.repeat(np.arange(len(rows)), lengths[rows])
            slots = tried[row] ^ right[pairs]
            claims[slots] = row  # of several rows with one slot one wins
            is_free = claims[slots] == row
            is_free &= ~is_taken[slots]
            is_placed = np.logical_and.reduceat(is_free, np.cumsum(lengths[rows]) - lengths[rows])
            is_taken[slots[is_placed[row]]] = True
            numbers[ids[rows[is_placed]]] = tried[is_placed]
            rows = rows[~is_placed]
            if not rows.size:
                break
        else:
            return None
    return numbers


def _by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of rows, longest first, in lots of which none is twice as long as another."""
    rows = np.argsort(-lengths, kind="stable")
    while rows.size:
        count = int(np.searchsorted(-2 * lengths[rows], -lengths[rows[0]], "left"))
        yield rows[:count]
        rows = rows[count:]


def highest(ids: np.ndarray) -> int:
    """The highest of the ids, 0 if there are none."""
    return int(ids.max()) if len(ids) else 0
