"""Many short sequences of ids side by side, of which each merges its lowest pair in each round."""

import numpy as np

from apr_jax.text.chain import GAP
from apr_jax.text.pair_table import PairTable

# There are fewer than 2**24 - 1 ranks, see `vocabulary.check_id`; of NONE only 24 bits are kept.
_CELL_BITS = np.uint32(8)
_CELL = np.uint32((1 << 8) - 1)
_NO_PAIR = np.uint32(0xFFFF_FF00)


class Grid:
    """Short sequences side by side, each a linked list in a column of its own.

    Letters in shapes: C cells of a sequence and one more that stands before its first and after
    its last, S sequences. `pair_CS` has for each cell that holds an id the rank of its pair and, in
    the low bits, its own number, so that the least of a column says what to merge and where.
    """

    def __init__(
        self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, table: PairTable
    ) -> None:
        """With the sequences that lie at these places of `ids`."""
        self._table = table
        cells, sequences = int(lengths.max()) + 1, len(lengths)
        number = np.arange(cells, dtype=np.int32)[:, None]
        # To take where is quicker than to index by a mask.
        self._cells = np.flatnonzero(number < lengths)
        self._places = (starts + number).take(self._cells)
        self._ids_CS = np.full((cells, sequences), GAP, np.int32)
        self._ids_CS.reshape(-1)[self._cells] = ids.take(self._places)
        self._next_CS = np.where(number + 1 < lengths, number + 1, np.int32(cells - 1))
        self._previous_CS = np.empty((cells, sequences), np.int32)
        self._previous_CS[:] = (number - 1) % np.int32(cells)
        self._pair_CS = np.full((cells, sequences), _NO_PAIR)
        ranks_CS = table.ranks(self._ids_CS[:-1], self._ids_CS[1:])
        self._pair_CS[:-1] = _with_cell(ranks_CS, number[:-1])

    def merge(self, ids: np.ndarray, result: np.ndarray) -> np.ndarray:
        """Merge the sequences in `ids`, with GAP for what is gone.

        Returns:
          int64 [S], how many ids are left of each.
        """
        merged_CS, sequences = self._ids_CS, np.arange(self._ids_CS.shape[1])
        while True:
            best = self._pair_CS.min(axis=0)
            on = np.flatnonzero(best < _NO_PAIR)
            if 2 * on.size < best.size:  # leave behind those that are done
                if merged_CS is not self._ids_CS:
                    merged_CS[:, sequences] = self._ids_CS
                if not on.size:
                    break
                self._keep(on)
                sequences, best, on = sequences[on], best[on], np.arange(on.size)
            self._step(best[on], on, result)
        ids[self._places] = merged_CS.take(self._cells)
        return (merged_CS >= 0).sum(axis=0)

    def _step(self, best: np.ndarray, column: np.ndarray, result: np.ndarray) -> None:
        """Merge the pair `best` in each of these columns."""
        width = self._pair_CS.shape[1]
        ids, following, previous, pairs = (
            grid_CS.reshape(-1)
            for grid_CS in (self._ids_CS, self._next_CS, self._previous_CS, self._pair_CS)
        )
        cell = (best & _CELL).view(np.int32)
        here = cell * width + column
        dead = following.take(here) * width + column
        after_cell = following.take(dead)
        after = after_cell * width + column
        before_cell = previous.take(here)
        before = before_cell * width + column
        new = result.take(best >> _CELL_BITS)
        ids[here], ids[dead] = new, GAP
        following[here], previous[after] = after_cell, cell
        pairs[dead] = _NO_PAIR
        pairs[before] = _with_cell(self._table.ranks(ids.take(before), new), before_cell)
        pairs[here] = _with_cell(self._table.ranks(new, ids.take(after)), cell)

    def _keep(self, columns: np.ndarray) -> None:
        self._ids_CS, self._next_CS, self._previous_CS, self._pair_CS = (
            np.ascontiguousarray(grid_CS[:, columns])
            for grid_CS in (self._ids_CS, self._next_CS, self._previous_CS, self._pair_CS)
        )


def _with_cell(ranks: np.ndarray, cells: np.ndarray) -> np.ndarray:
    return ranks.view(np.uint32) << _CELL_BITS | cells.view(np.uint32)
