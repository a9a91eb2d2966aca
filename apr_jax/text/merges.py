"""Byte-pair merging of many sequences at once, by array operations.

The rule: in each sequence merge the pair of lowest rank, the leftmost of equals, until no pair is
left that may be merged. `reference.py` says it in plain Python; here it is said twice more, once
for short sequences and once for long ones, because each way is hopeless on the other's ground.
"""

import functools
import heapq
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from apr_jax.text.certain_pairs import CertainPairs
from apr_jax.text.chain import GAP, Chain
from apr_jax.text.grid import Grid
from apr_jax.text.one_by_one import OneByOne
from apr_jax.text.pair_table import NONE, PairTable, highest
from apr_jax.text.ragged import spans

_SHORT = 128  # ids; longer sequences take the chain
_FLAT = 1 << 16  # ids that are looked at together for pairs that are certain to merge first
_CELLS = 1 << 16  # of short sequences merged side by side, so that they stay in the cache


class Merges:
    """The merges of a vocabulary in order of rank, and the engine that applies them.

    Attributes:
      left, right, result: int32 [M], the ids of each merge's sides and of what they become.
      is_monotonic: whether every merge ranks after all those that make its sides. Then merging
        rank by rank gives what merging the lowest pair first gives; without it long sequences are
        merged one by one.
      made_at: int64 [ids], the rank of the last merge that makes each id, -1 where none does.
      first, last: int32 [ids], of the ids that no merge makes, those which each id begins and ends
        with; the ids themselves where merges are not monotonic.
      table: the ranks of pairs.
      certain: the pairs that are certain to merge first, None where merges are not monotonic or
        there are none.
    """

    def __init__(
        self, left: np.ndarray, right: np.ndarray, result: np.ndarray, *, size: int = 0
    ) -> None:
        """With `size` above the highest id of all sequences, unless a merge has a higher one."""
        self.left, self.right, self.result = (
            np.ascontiguousarray(ids, np.int32) for ids in (left, right, result)
        )
        self.table = PairTable(self.left, self.right)
        size = max(size, *(highest(ids) + 1 for ids in (left, right, result)))
        self.made_at = np.full(size, -1)
        ranks = np.arange(len(self.left))
        np.maximum.at(self.made_at, self.result, ranks)
        self.is_monotonic = bool(
            ((self.made_at[self.left] < ranks) & (self.made_at[self.right] < ranks)).all()
        )
        self.first, self.last = (self._outermost(sides) for sides in (self.left, self.right))
        self.certain = CertainPairs(self) if self.is_monotonic and len(self) else None

    def _outermost(self, sides: np.ndarray) -> np.ndarray:
        side = np.arange(len(self.made_at), dtype=np.int32)
        if self.is_monotonic:
            side[self.result] = sides
            while not np.array_equal(further := side[side], side):
                side = further
        return side

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
        ids, lengths = self._merge_certain(ids, lengths)
        merged_lengths = lengths.copy()
        starts = np.cumsum(lengths) - lengths
        is_long = lengths > _SHORT
        if is_long.any():
            merge_long = self._merge_long if self.is_monotonic else self._merge_one_by_one
            merge_long(ids, merged_lengths, starts, np.flatnonzero(is_long))
        for lot in _alike(lengths, np.flatnonzero(~is_long & (lengths > 1))):
            grid = Grid(ids, starts[lot], lengths[lot], self.table)
            merged_lengths[lot] = grid.merge(ids, self.result)
        return ids.take(np.flatnonzero(ids != GAP)), merged_lengths

    def _merge_certain(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of both, in which pairs that are certain to merge first are merged."""
        if self.certain is None:
            return ids.copy(), lengths.copy()
        ends = np.cumsum(lengths)
        parts = [(ids[:0], lengths[:0])]
        first, start = 0, 0
        while first < len(lengths):  # a few at a time, which stay in the cache
            last = max(first + 1, int(np.searchsorted(ends, start + _FLAT)))
            end = int(ends[last - 1])
            parts.append(self.certain.merge(ids[start:end], lengths[first:last]))
            first, start = last, end
        merged_ids, merged_lengths = zip(*parts, strict=True)
        return np.concatenate(merged_ids), np.concatenate(merged_lengths)

    def _merge_long(
        self, ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray, which: np.ndarray
    ) -> None:
        """Merge these sequences in place, rank by rank over all of them; GAP for what is gone."""
        places = spans(starts[which], lengths[which])
        chain = Chain(ids[places], lengths[which])
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
        ids[places] = GAP
        ids[spans(starts[which], lengths[which])] = merged

    def _merge_one_by_one(
        self, ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray, which: np.ndarray
    ) -> None:
        """Merge these sequences in place, with GAP for what is gone."""
        for number in which.tolist():
            start, end = int(starts[number]), int(starts[number] + lengths[number])
            merged = self.merge_one(ids[start:end].tolist())
            lengths[number] = len(merged)
            ids[start:end] = GAP
            ids[start : start + len(merged)] = merged

    def merge_one(self, ids: list[int]) -> list[int]:
        """What is left of one sequence, as a new list: the quickest way for a few of them."""
        return self._one_by_one.merge(ids)

    def apply_few(self, ids: np.ndarray, lengths: np.ndarray) -> Iterator[list[int]]:
        """What is left of each of the sequences: as `apply`, and quicker for up to hundreds."""
        if self.certain is not None:
            ids, lengths = self.certain.merge(ids, lengths)
        ranks = self.table.ranks(ids[:-1], ids[1:]).tolist()
        rest, ends = ids.tolist(), np.cumsum(lengths).tolist()
        for start, end in pairwise([0, *ends]):
            yield self._one_by_one.merge(rest[start:end], ranks[start : max(end - 1, start)])

    @functools.cached_property
    def _one_by_one(self) -> OneByOne:
        return OneByOne(self.left, self.right, self.result, len(self.made_at))

    def _wait(
        self,
        chain: Chain,
        positions: np.ndarray,
        waiting: dict[int, list[np.ndarray]],
        order: list[int],
    ) -> None:
        """File these positions under the ranks of their pairs; `order` is a heap of the ranks."""
        ranks = self.table.ranks(*chain.pairs(positions))
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


def _alike(lengths: np.ndarray, which: np.ndarray) -> Iterator[np.ndarray]:
    """These sequences in lots of similar length."""
    # Short numbers are what NumPy sorts by radix.
    which = which[np.argsort(lengths[which].astype(np.uint16), kind="stable")]
    sorted_lengths = lengths[which]
    while which.size:
        longest = int(sorted_lengths[-1])
        first = int(np.searchsorted(sorted_lengths, longest // 2, "right"))
        first = max(first, which.size - max(_CELLS // longest, 1))
        yield which[first:]
        which, sorted_lengths = which[:first], sorted_lengths[:first]
