"""The first merges of all sequences at once: those that nothing around them can come before."""

from typing import TYPE_CHECKING

import numpy as np

from apr_jax.text.pair_table import NONE

if TYPE_CHECKING:
    from apr_jax.text.merges import Merges

_PLAIN = 512  # of the ids that no merge makes, those that are looked at


class CertainPairs:
    """Pairs of ids that nothing merged into, and that merge first whatever stands around them.

    Such a pair ranks before every merge that could take one of its sides away: of its left side
    with a token that ends as what stands before it, and of its right side with a token that begins
    as what stands after it. All of them are merged at once, before anything else. What they become
    ranks later in any further merge, because the merges are monotonic, so nothing else changes.

    Letters in shapes: P ids that no merge makes, and one row more for all others.

    Attributes:
      row: int64 [ids + 1], the row of each id; the last is of all ids above.
      rank_PP: int32, the rank of each pair, NONE of those that are no merge.
      before_PP: int32, the least rank of merges that take the right id of a pair away, as their
        right side, with a left side that ends in the left id; NONE where there are none.
      after_PP: int32, the least rank of merges that take the left id away, as their left side,
        with a right side that begins with the right id.
    """

    def __init__(self, merges: "Merges") -> None:
        self._result = merges.result
        plain = np.flatnonzero(merges.made_at < 0)[:_PLAIN]
        self._width = width = len(plain) + 1
        self.row = row = np.full(len(merges.made_at) + 1, len(plain))
        row[plain] = np.arange(len(plain))
        self.rank_PP, self.before_PP, self.after_PP = np.full((3, width, width), NONE, np.int32)
        self.before_PP[-1] = self.after_PP[:, -1] = -1  # of other ids nothing is certain
        left, right = row[merges.left], row[merges.right]
        ranks = np.arange(len(merges), dtype=np.int32)
        both = (left < len(plain)) & (right < len(plain))
        self.rank_PP[left[both], right[both]] = ranks[both]
        np.minimum.at(self.before_PP, (row[merges.last[merges.left]], right), ranks)
        np.minimum.at(self.after_PP, (left, row[merges.first[merges.right]]), ranks)

    def merge(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is left of the sequences, and how long each is; both are new arrays."""
        ids, ends = ids.copy(), np.cumsum(lengths)
        if ids.size < 2:
            return ids, lengths.copy()
        row = self.row.take(ids, mode="clip")
        pairs = row[:-1] * self._width + row[1:]
        rank, before, after = (
            table_PP.reshape(-1).take(pairs)
            for table_PP in (self.rank_PP, self.before_PP, self.after_PP)
        )
        across = ends[(ends > 0) & (ends < ids.size)] - 1  # pairs of two sequences are none
        for values in (rank, before, after):
            values[across] = NONE
        is_certain = rank != NONE
        is_certain[1:] &= rank[1:] < before[:-1]
        is_certain[:-1] &= rank[:-1] < after[1:]
        at = np.flatnonzero(is_certain)
        ids[at] = self._result.take(rank.take(at))
        is_left = np.ones(ids.size, bool)
        is_left[at + 1] = False
        merged = np.diff(np.searchsorted(at, ends), prepend=0)
        return ids.take(np.flatnonzero(is_left)), lengths - merged
