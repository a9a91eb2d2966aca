"""Byte-pair merging of one sequence: the quickest way for a few of them."""

import heapq
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from apr_jax.text.chain import GAP
from apr_jax.text.pair_table import NONE

_FEW = 40  # ids; beyond this a heap finds the lowest pair quicker than a list


class OneByOne:
    """Merges as dictionaries: one for each left side, as a large one would miss the cache more."""

    def __init__(self, left: np.ndarray, right: np.ndarray, result: np.ndarray, size: int) -> None:
        """For ids below `size`."""
        ranks: dict[int, dict[int, int]] = {}
        for rank, (left_id, right_id) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
            if (row := ranks.get(left_id)) is None:
                row = ranks[left_id] = {}
            row[right_id] = rank
        self._results = result.tolist()
        # By left side, from the right side and NONE to the rank; the last one is for GAP.
        self._rank_after: list[Callable[[int, int], int]]
        self._rank_after = [dict[int, int]().get] * (size + 1)
        for left_id, row in ranks.items():
            self._rank_after[left_id] = row.get

    def merge(self, ids: list[int], ranks: list[int] | None = None) -> list[int]:
        """What is left of the sequence, as a new list.

        Args:
          ids: the sequence.
          ranks: those of its pairs, NONE for pairs that are no merge, where they are known.
        """
        if len(ids) > _FEW:
            return self._merge_from_heap([*ids, GAP])
        if ranks is None:
            rank_after = self._rank_after
            ranks = [rank_after[left](right, NONE) for left, right in pairwise(ids)]
        return self._merge_from_list([*ids, GAP], [*ranks, NONE])

    def _merge_from_list(self, ids: list[int], ranks: list[int]) -> list[int]:
        """Of ids with a GAP behind, which at -1 stands before the first one too, and its rank."""
        rank_after, results = self._rank_after, self._results
        while (rank := min(ranks)) != NONE:
            at = ranks.index(rank)
            ids[at] = new = results[rank]
            del ids[at + 1], ranks[at + 1]
            ranks[at] = rank_after[new](ids[at + 1], NONE)
            ranks[at - 1] = rank_after[ids[at - 1]](new, NONE)
        del ids[-1]
        return ids

    def _merge_from_heap(self, ids: list[int]) -> list[int]:
        end = len(ids) - 1  # whose neighbours are itself
        following = [*range(1, end + 1), end]
        previous = [end, *range(end)]
        rank_after = self._rank_after
        heap = [
            (rank, cell)
            for cell, (left, right) in enumerate(pairwise(ids))
            if (rank := rank_after[left](right, NONE)) != NONE
        ]
        heapq.heapify(heap)
        while heap:
            rank, cell = heapq.heappop(heap)
            dead = following[cell]
            if rank_after[ids[cell]](ids[dead], NONE) != rank:
                continue  # one of the two has been merged since
            after = following[cell] = following[dead]
            previous[after] = cell
            ids[cell], ids[dead] = self._results[rank], GAP
            for left, right in ((previous[cell], cell), (cell, after)):
                if (new := rank_after[ids[left]](ids[right], NONE)) != NONE:
                    heapq.heappush(heap, (new, left))
        return [id_ for id_ in ids if id_ != GAP]
