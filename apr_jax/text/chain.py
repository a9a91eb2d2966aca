"""Many sequences of ids as one doubly linked list in arrays, so that merging touches few cells."""

import numpy as np

GAP = -1  # stands before, between and after the sequences
_DEAD = -2  # was the right side of a merge


class Chain:
    """Sequences of ids in which pairs of neighbours are replaced by one id.

    Attributes:
      ids: int32, the id at each position; GAP between sequences, negative where none is left.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Link `ids`, the sequences one behind another, of these lengths."""
        gaps = np.concatenate([[0], np.cumsum(lengths + 1)])
        size = int(gaps[-1]) + 1
        if size >= 2**31:
            raise ValueError(f"{size} positions do not fit 31 bits: give fewer sequences at a time")
        self.ids = np.full(size, GAP, np.int32)
        is_id = np.ones(size, bool)
        is_id[gaps] = False
        self.ids[is_id] = ids
        self._gaps = gaps
        # The last position's neighbour is itself: a gap, which is in no pair.
        self._next = np.minimum(np.arange(1, size + 1, dtype=np.int32), np.int32(size - 1))
        self._previous = np.maximum(np.arange(-1, size - 1, dtype=np.int32), np.int32(0))

    def pairs(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids at these positions and at those that follow them; GAP where a sequence ends."""
        return self.ids[positions], self.ids[self._next[positions]]

    def occurrences(self, candidates: np.ndarray, left: int, right: int) -> np.ndarray:
        """Which of these positions hold the pair, leftmost first where it overlaps itself."""
        lefts, rights = self.pairs(candidates)
        found = candidates[(lefts == left) & (rights == right)]
        if left != right or found.size < 2:
            return found
        found = np.sort(found)  # in a run such as aaaa every other occurrence counts
        index = np.arange(found.size)
        starts_run = np.ones(found.size, bool)
        starts_run[1:] = self._next[found[:-1]] != found[1:]
        run_start = np.maximum.accumulate(np.where(starts_run, index, 0))
        return found[(index - run_start) % 2 == 0]

    def merge(self, positions: np.ndarray, new: int) -> np.ndarray:
        """Replace the pairs at `positions`, as `occurrences` gives them, by the id `new`.

        Returns:
          The positions whose pair has changed by it, each once.
        """
        dead = self._next[positions]
        after = self._next[dead]
        self.ids[positions] = new
        self.ids[dead] = _DEAD
        self._next[positions] = after
        self._previous[after] = positions
        return unique(np.concatenate([positions, self._previous[positions]]))

    def sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids that are left (int32), and how many each sequence has (int64)."""
        is_id = self.ids >= 0
        counts = np.add.reduceat(is_id, self._gaps, dtype=np.int64)[:-1]
        return self.ids[is_id], counts


def unique(values: np.ndarray) -> np.ndarray:
    """The distinct values in ascending order; np.unique without its overhead on small arrays."""
    values = np.sort(values)
    keep = np.ones(values.size, bool)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]
