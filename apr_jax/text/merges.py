"""Byte-pair merging of many sequences at once, by array operations.

The rule: in each sequence merge the pair of lowest rank, the leftmost of equals, until no pair is
left that may be merged. `reference.py` says it in plain Python; here it is said twice more, once
for short sequences and once for long ones, because each way is hopeless on the other's ground.
"""

import heapq

import numpy as np

from apr_jax.text.chain import Chain

NONE = np.iinfo(np.int32).max  # the rank of a pair that is no merge
_SHORT = 24  # ids; longer sequences take the chain
_ROWS = 8192  # short sequences in one matrix, so that it stays in the cache

_EMPTY = np.int64(-1)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: multiplying scatters keys


class Merges:
    """The merges of a vocabulary in order of rank, and the engine that applies them.

    Attributes:
      left, right, result: int32 [M], the ids of each merge's sides and of what they become.
      is_monotonic: whether every merge ranks after all those that make its sides. Then merging
        rank by rank gives what merging the lowest pair first gives; without it `apply` refuses.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, result: np.ndarray) -> None:
        self.left, self.right, self.result = (
            np.ascontiguousarray(ids, np.int32) for ids in (left, right, result)
        )
        self._table = PairTable(self.left, self.right)
        made_at = np.full(int(max(map(_highest, (left, right, result)))) + 1, -1)
        np.maximum.at(made_at, self.result, np.arange(len(self.result)))
        ranks = np.arange(len(self.left))
        self.is_monotonic = bool(
            ((made_at[self.left] < ranks) & (made_at[self.right] < ranks)).all()
        )

    def __len__(self) -> int:
        return len(self.left)

    def apply(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Merge sequences that lie one behind another.

        Args:
          ids: int32 [N], the ids of all sequences.
          lengths: int64 [S], how many of them each sequence has.

        Returns:
          The merged ids (int32) and lengths (int64), in the same order.
        """
        if not self.is_monotonic:
            raise ValueError("a merge ranks before one that makes its side")
        starts = np.cumsum(lengths) - lengths
        merged_ids = ids.copy()
        merged_lengths = lengths.copy()
        is_long = lengths > _SHORT
        if is_long.any():
            self._merge_long(merged_ids, merged_lengths, starts, np.flatnonzero(is_long))
        short = np.flatnonzero(~is_long & (lengths > 1))
        short = short[np.argsort(lengths[short], kind="stable")]
        for lot in np.array_split(short, -(-len(short) // _ROWS)) if short.size else ():
            self._merge_short(merged_ids, merged_lengths, starts, lot)
        return merged_ids[_spans(starts, merged_lengths)], merged_lengths

    def _merge_long(
        self, ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray, which: np.ndarray
    ) -> None:
        """Merge these sequences in place, rank by rank over all of them."""
        chain = Chain(ids[_spans(starts[which], lengths[which])], lengths[which])
        waiting: dict[int, list[np.ndarray]] = {}
        order: list[int] = []
        self._wait(chain, np.arange(len(chain.ids), dtype=np.int32), waiting, order)
        while order:
            rank = heapq.heappop(order)
            candidates = np.concatenate(waiting.pop(rank))
            positions = chain.occurrences(candidates, self.left[rank], self.right[rank])
            if positions.size:
                self._wait(chain, chain.merge(positions, self.result[rank]), waiting, order)
        merged, lengths[which] = chain.sequences()
        ids[_spans(starts[which], lengths[which])] = merged

    def _wait(
        self,
        chain: Chain,
        positions: np.ndarray,
        waiting: dict[int, list[np.ndarray]],
        order: list[int],
    ) -> None:
        """File these positions under the ranks of their pairs; `order` is a heap of the ranks."""
        ranks = self._table.ranks(*chain.pairs(positions))
        is_merge = ranks != NONE
        ranks, positions = ranks[is_merge], positions[is_merge]
        if not ranks.size:
            return
        if len(self) <= 0xFFFF:
            ranks = ranks.astype(np.uint16)  # which NumPy sorts by radix
        by_rank = np.argsort(ranks, kind="stable")
        ranks, positions = ranks[by_rank], positions[by_rank]
        bounds = [0, *(np.flatnonzero(ranks[1:] != ranks[:-1]) + 1).tolist(), len(ranks)]
        for rank, start, stop in zip(ranks[bounds[:-1]].tolist(), bounds, bounds[1:], strict=False):
            if rank not in waiting:
                waiting[rank] = []
                heapq.heappush(order, rank)
            waiting[rank].append(positions[start:stop])

    def _merge_short(
        self, ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray, which: np.ndarray
    ) -> None:
        """Merge these sequences in place: in each round every one merges its lowest pair.

        Letters in shapes: W sequences, A those that still change, C columns.
        """
        columns = np.arange(int(lengths[which].max()) + 1)  # the last one stays without ids
        is_id_WC = columns < lengths[which, None]
        ids_WC = np.full(is_id_WC.shape, -1, np.int32)
        ids_WC[is_id_WC] = ids[_spans(starts[which], lengths[which])]
        active, ids_AC = np.arange(len(which)), ids_WC.copy()
        while active.size:
            ranks_AC = self._table.ranks(ids_AC[:, :-1], ids_AC[:, 1:])
            column = np.argmin(ranks_AC, axis=1)  # the leftmost of equals
            rank = np.take_along_axis(ranks_AC, column[:, None], axis=1)[:, 0]
            goes_on = rank != NONE
            if not goes_on.all():
                done, width = active[~goes_on], ids_AC.shape[1]
                ids_WC[done, :width] = ids_AC[~goes_on]
                ids_WC[done, width:] = -1
                active, ids_AC = active[goes_on], ids_AC[goes_on]
                column, rank = column[goes_on], rank[goes_on]
            ids_AC[np.arange(len(active)), column] = self.result[rank]
            # All rows have become shorter by one: close the gap, and drop the last column.
            kept = columns[: ids_AC.shape[1] - 1]
            source_AC = kept + (kept > column[:, None])
            ids_AC = np.take_along_axis(ids_AC, source_AC, axis=1)
        lengths[which] = (ids_WC >= 0).sum(axis=1)
        ids[_spans(starts[which], lengths[which])] = ids_WC[ids_WC >= 0]


class PairTable:
    """From pairs of ids to ranks: a hash table with open addressing, looked up by arrays."""

    def __init__(self, left: np.ndarray, right: np.ndarray) -> None:
        bits = max(3, (4 * len(left)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._mask = (1 << bits) - 1
        self._keys = np.full(1 << bits, _EMPTY)
        self._ranks = np.full(1 << bits, NONE, np.int32)
        keys = _pair_keys(left, right)
        slots = self._slots(keys)
        pending = np.arange(len(keys))
        while pending.size:
            free = self._keys[slots[pending]] == _EMPTY
            takers = pending[free]
            self._keys[slots[takers]] = keys[takers]  # of several takers one wins
            lost = self._keys[slots[pending]] != keys[pending]
            winners = pending[~lost]
            self._ranks[slots[winners]] = winners
            pending = pending[lost]
            slots[pending] = (slots[pending] + 1) & self._mask

    def ranks(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """int32, shaped as the ids: the rank of each pair, NONE where it is no merge."""
        keys = _pair_keys(left, right)
        slots = self._slots(keys)
        found = self._keys[slots]
        ranks = np.where(found == keys, self._ranks[slots], np.int32(NONE))
        pending = np.nonzero((found != keys) & (found != _EMPTY))
        while pending[0].size:
            slots[pending] = (slots[pending] + 1) & self._mask
            found = self._keys[slots[pending]]
            hit = found == keys[pending]
            ranks[tuple(axis[hit] for axis in pending)] = self._ranks[slots[pending]][hit]
            on = ~hit & (found != _EMPTY)
            pending = tuple(axis[on] for axis in pending)
        return ranks

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        return ((keys.view(np.uint64) * _SPREAD) >> self._shift).astype(np.int64)


def _pair_keys(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left.astype(np.int64) << 32) | right.astype(np.int64) & 0xFFFFFFFF


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: the positions of the ranges [start, start + length), one range behind another."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(
        starts - ends + lengths, lengths
    )


def _highest(ids: np.ndarray) -> int:
    return int(ids.max()) if len(ids) else 0
