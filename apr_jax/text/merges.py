"""Byte-pair merging of many sequences at once, by array operations.

The rule: in each sequence merge the pair of lowest rank, the leftmost of equals, until no pair is
left that may be merged. `reference.py` says it in plain Python; here it is said twice more, once
for short sequences and once for long ones, because each way is hopeless on the other's ground.
"""

import functools
import heapq
import itertools
from collections.abc import Iterator

import numpy as np

from apr_jax.text.chain import GAP, Chain
from apr_jax.text.ragged import spans

NONE = np.iinfo(np.int32).max  # the rank of a pair that is no merge
_SHORT = 128  # ids; longer sequences take the chain
_FEW = 40  # ids; beyond this a heap finds the lowest pair quicker than a list
_CELLS = 1 << 16  # of short sequences merged side by side, so that they stay in the cache

_PLAIN = 512  # of the ids that no merge makes, those that `_CertainPairs` looks at
_BITS = 21  # of ids and of ranks
_EMPTY = np.iinfo(np.int64).min  # no pair's slot, not even that of a GAP
# 2**64 / golden ratio, and 2**64 * (pi - 3): multiplying scatters keys.
_SPREAD, _OTHER_SPREAD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x243F6A8885A308D3)


class Merges:
    """The merges of a vocabulary in order of rank, and the engine that applies them.

    Attributes:
      left, right, result: int32 [M], the ids of each merge's sides and of what they become.
      is_monotonic: whether every merge ranks after all those that make its sides. Then merging
        rank by rank gives what merging the lowest pair first gives; without it long sequences are
        merged one by one.
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

        self._certain = _CertainPairs(self) if self.is_monotonic and len(self) else None

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
        if self._certain is not None:
            merged_ids, merged_lengths = self._certain.merge(ids, lengths)
        else:
            merged_ids, merged_lengths = ids.copy(), lengths.copy()
        lengths = merged_lengths.copy()
        starts = np.cumsum(lengths) - lengths
        is_long = lengths > _SHORT
        if is_long.any():
            merge_long = self._merge_long if self.is_monotonic else self._merge_one_by_one
            merge_long(merged_ids, merged_lengths, starts, np.flatnonzero(is_long))
        for lot in _alike(lengths, np.flatnonzero(~is_long & (lengths > 1))):
            self._merge_short(merged_ids, merged_lengths, starts, lot)
        return merged_ids[spans(starts, merged_lengths)], merged_lengths

    def _merge_long(
        self, ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray, which: np.ndarray
    ) -> None:
        """Merge these sequences in place, rank by rank over all of them."""
        chain = Chain(ids[spans(starts[which], lengths[which])], lengths[which])
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
        ids[spans(starts[which], lengths[which])] = merged

    def _merge_one_by_one(
        self, ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray, which: np.ndarray
    ) -> None:
        """Merge these sequences in place."""
        for number in which.tolist():
            start = int(starts[number])
            merged = self.merge_one(ids[start : start + int(lengths[number])].tolist())
            lengths[number] = len(merged)
            ids[start : start + len(merged)] = merged

    def merge_one(self, ids: list[int]) -> list[int]:
        """What is left of one sequence: the quickest way for a few of them."""
        ids = [*ids]
        return self._merge_from_heap(ids) if len(ids) > _FEW else self._merge_from_list(ids)

    def _merge_from_list(self, ids: list[int]) -> list[int]:
        rank_of = self._ranks.get
        ranks = [rank_of(pair, NONE) for pair in itertools.pairwise(ids)]
        while ranks and (rank := min(ranks)) != NONE:
            at = ranks.index(rank)
            ids[at : at + 2] = [self._results[rank]]
            del ranks[at]
            for left in (at - 1, at):
                if 0 <= left < len(ranks):
                    ranks[left] = rank_of((ids[left], ids[left + 1]), NONE)
        return ids

    def _merge_from_heap(self, ids: list[int]) -> list[int]:
        end = len(ids)  # whose neighbours are itself; its id is in no pair
        ids.append(GAP)
        following = [*range(1, end + 1), end]
        previous = [end, *range(end)]
        ranks = self._ranks
        heap = [
            (ranks[pair], cell)
            for cell, pair in enumerate(itertools.pairwise(ids))
            if pair in ranks
        ]
        heapq.heapify(heap)
        while heap:
            rank, cell = heapq.heappop(heap)
            dead = following[cell]
            if ranks.get((ids[cell], ids[dead])) != rank:
                continue  # one of the two has been merged since
            after = following[cell] = following[dead]
            previous[after] = cell
            ids[cell], ids[dead] = self._results[rank], GAP
            for left, right in ((previous[cell], cell), (cell, after)):
                if (ids[left], ids[right]) in ranks:
                    heapq.heappush(heap, (ranks[ids[left], ids[right]], left))
        return [id_ for id_ in ids if id_ != GAP]

    @functools.cached_property
    def _results(self) -> list[int]:
        return self.result.tolist()

    @functools.cached_property
    def _ranks(self) -> dict[tuple[int, int], int]:
        pairs = zip(self.left.tolist(), self.right.tolist(), strict=True)
        return {pair: rank for rank, pair in enumerate(pairs)}

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
        """Merge these sequences in place: in each round every one merges its lowest pair."""
        grid = _Grid(ids[spans(starts[which], lengths[which])], lengths[which], self._table)
        merged, lengths[which] = grid.merge(self.result)
        ids[spans(starts[which], lengths[which])] = merged


class _CertainPairs:
    """Pairs of ids that nothing merged into, and that merge first whatever stands around them.

    Such a pair ranks before every merge that could take one of its sides away: of its left side
    with a token that ends as what stands before it, and of its right side with a token that begins
    as what stands after it. All of them are merged at once, before anything else. What they become
    ranks later in any further merge, because the merges are monotonic, so nothing else changes.

    Letters in shapes: P ids that no merge makes, and one row more for all others.
    """

    def __init__(self, merges: Merges) -> None:
        self._result = merges.result
        highest = int(max(map(_highest, (merges.left, merges.right, merges.result))))
        is_made = np.zeros(highest + 1, bool)
        is_made[merges.result] = True
        plain = np.flatnonzero(~is_made)[:_PLAIN]
        self._width = width = len(plain) + 1
        self._row = np.full(highest + 2, len(plain))  # the last one is of all ids above
        self._row[plain] = np.arange(len(plain))
        first, last = self._row.copy(), self._row.copy()
        while True:  # from the ids that merges make down to what they begin and end with
            before = first.copy(), last.copy()
            first[merges.result], last[merges.result] = first[merges.left], last[merges.right]
            if (before[0] == first).all() and (before[1] == last).all():
                break
        self._rank_PP, self._before_PP, self._after_PP = np.full((3, width, width), NONE, np.int32)
        self._before_PP[-1] = self._after_PP[:, -1] = -1  # of other ids nothing is certain
        left, right = self._row[merges.left], self._row[merges.right]
        ranks = np.arange(len(merges), dtype=np.int32)
        both = (left < len(plain)) & (right < len(plain))
        self._rank_PP[left[both], right[both]] = ranks[both]
        np.minimum.at(self._before_PP, (last[merges.left], right), ranks)
        np.minimum.at(self._after_PP, (left, first[merges.right]), ranks)

    def merge(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is left of the sequences, and how long each is; both are new arrays."""
        ids, ends = ids.copy(), np.cumsum(lengths)
        if ids.size < 2:
            return ids, lengths.copy()
        row = self._row.take(ids, mode="clip")
        pairs = row[:-1] * self._width + row[1:]
        rank, before, after = (
            table_PP.reshape(-1).take(pairs)
            for table_PP in (self._rank_PP, self._before_PP, self._after_PP)
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
        counts = np.concatenate([[0], np.cumsum(is_left)])
        return ids[is_left], np.diff(counts[ends], prepend=0)


def _alike(lengths: np.ndarray, which: np.ndarray) -> Iterator[np.ndarray]:
    """These sequences in lots of similar length."""
    which = which[np.argsort(lengths[which], kind="stable")]
    sorted_lengths = lengths[which]
    while which.size:
        longest = int(sorted_lengths[-1])
        first = int(np.searchsorted(sorted_lengths, longest // 2, "right"))
        first = max(first, which.size - max(_CELLS // longest, 1))
        yield which[first:]
        which, sorted_lengths = which[:first], sorted_lengths[:first]


class _Grid:
    """Short sequences side by side, each a linked list in a column of its own.

    Letters in shapes: C cells of a sequence and one more that stands before its first and after
    its last, S sequences. `pair_CS` has for each cell that holds an id the rank of its pair and, in
    the low bits, its own number, so that the least of a column says what to merge and where.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray, table: "PairTable") -> None:
        self._table = table
        cells, sequences = int(lengths.max()) + 1, len(lengths)
        number = np.arange(cells, dtype=np.int32)[:, None]
        is_id_CS = number < lengths
        self._ids_CS = np.full((cells, sequences), GAP, np.int32)
        self._ids_CS.T[is_id_CS.T] = ids
        last = np.int32(cells - 1)
        self._next_CS = np.where(number + 1 < lengths, number + 1, last)
        self._previous_CS = np.repeat((number - 1) % np.int32(cells), sequences, axis=1)
        self._pair_CS = np.full((cells, sequences), _NO_PAIR)
        ranks_CS = table.ranks(self._ids_CS[:-1], self._ids_CS[1:])
        self._pair_CS[:-1] = _with_cell(ranks_CS, number[:-1])

    def merge(self, result: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids that are left (int32), one sequence's behind another's, and how many of each."""
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
        is_left_SC = merged_CS.T >= 0
        return merged_CS.T[is_left_SC], is_left_SC.sum(axis=1)

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


# There are fewer than 2**24 - 1 ranks, see `vocabulary.check_id`; of NONE only 24 bits are kept.
_CELL_BITS = np.uint32(8)
_CELL = np.uint32((1 << 8) - 1)
_NO_PAIR = np.uint32(0xFFFF_FF00)


def _with_cell(ranks: np.ndarray, cells: np.ndarray) -> np.ndarray:
    return ranks.view(np.uint32) << _CELL_BITS | cells.view(np.uint32)


class PairTable:
    """From pairs of ids to ranks: a cuckoo hash table, looked up by arrays.

    A pair can only be in one of two slots, so that every look-up takes two steps. A slot holds left
    id, right id and rank, 21 bits each.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray) -> None:
        if max(_highest(left), _highest(right), len(left)) >> _BITS:
            raise ValueError(f"ids or merges beyond {_BITS} bits")
        keys = _pair_keys(left, right)
        self._size = max(3, (3 * len(left)).bit_length())
        while (owners := self._place(keys, self._size)) is None:
            self._size += 1
        self._slots = np.full(len(owners), _EMPTY)
        taken = np.flatnonzero(owners >= 0)
        self._slots[taken] = keys[owners[taken]] << _BITS | owners[taken]

    def ranks(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """int32, shaped as the ids: the rank of each pair, NONE where it is no merge."""
        keys = _pair_keys(left, right)
        first = self._slots.take(_hash(keys, _SPREAD, self._size), mode="clip")
        second = self._slots.take(_hash(keys, _OTHER_SPREAD, self._size), mode="clip")
        is_first = first >> _BITS == keys
        is_second = second >> _BITS == keys
        np.copyto(first, second, where=is_second)
        first &= (1 << _BITS) - 1
        is_second |= is_first
        np.copyto(first, NONE, where=~is_second)
        return first.astype(np.int32)

    @staticmethod
    def _place(keys: np.ndarray, size: int) -> np.ndarray | None:
        """int64 [2**size]: the key that gets each slot, -1 for none; None if it cannot be done."""
        slots = np.stack([_hash(keys, spread, size) for spread in (_SPREAD, _OTHER_SPREAD)])
        owners = np.full(1 << size, -1)
        pending, at = np.arange(len(keys)), np.zeros(len(keys), np.int64)
        for _ in range(200):
            if not pending.size:
                return owners
            wanted = slots[at[pending], pending]
            turned_out = np.unique(owners[wanted])
            owners[wanted] = pending  # of several takers one wins
            lost = pending[owners[wanted] != pending]
            pending = np.concatenate([lost, turned_out[turned_out >= 0]])
            at[pending] ^= 1
        return None


def _hash(keys: np.ndarray, spread: np.uint64, bits: int) -> np.ndarray:
    hashes = keys.view(np.uint64) * spread
    hashes >>= np.uint64(64 - bits)
    return hashes.view(np.int64)


def _pair_keys(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int64: below 2**42 for ids, negative where one of them is no id but GAP."""
    keys = left.astype(np.int64)
    keys <<= _BITS
    keys |= right
    return keys


def _highest(ids: np.ndarray) -> int:
    return int(ids.max()) if len(ids) else 0
