"""Merging many words at once, compiled by XLA: what `Merges.apply` does, in less time.

First one pass over all words merges the pairs that are certain to merge first. Then words of
similar length lie side by side, and each merges its lowest pair in a turn, until words are done or
short enough to lie among shorter ones. Barriers divide the work into loops that compute nothing
twice.
"""

import functools
import itertools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from apr_jax.text.certain_pairs import CertainPairs
from apr_jax.text.chain import GAP
from apr_jax.text.merges import Merges
from apr_jax.text.on_cpu import apart, cpu
from apr_jax.text.pair_table import NONE
from apr_jax.text.ragged import spans
from apr_jax.text.word_table import aligned

_LEAST = 1024  # words; fewer are merged sooner by NumPy
_MOST = 1 << 20  # ids of all words; with more they are left to NumPy
_CHUNK = 1 << 15  # ids in one call that merges certain pairs
_NEAR = 2  # ids on either side that decide what becomes of one
_ROOM = _MOST + _CHUNK + 2 * _NEAR
# Words of no more ids than this, and how many of them lie side by side, so that they stay in the
# cache. Longer words are left to NumPy. Each kind takes 0.3 s to compile.
_SIDES = {128: 64, 36: 512, 12: 2048}
_CELL_BITS = 7
_CELL = (1 << _CELL_BITS) - 1
_NO_RANK = np.int32(1 << 23)  # of pairs that are no merge; PairTable has fewer ranks
_NO_PAIR = np.int32(_NO_RANK << _CELL_BITS)
_LAST = np.int32(1 << 30)  # is added to the last id of each word
_BITS = 21  # of each of the three numbers of a pair that may be certain; PairTable has no more
_NO_NUMBER = (1 << _BITS) - 1
_Ragged = tuple[np.ndarray, np.ndarray]


class CompiledMerges:
    """The merges of a vocabulary, for many words at once.

    In other processes than the one that made it, such as forked children, `Merges` does the work:
    XLA's threads are not in a forked child. So it does for few words.
    """

    def __init__(self, merges: Merges) -> None:
        """Compiles all that is needed. Raises UserError where JAX has no CPU."""
        self._merges = merges
        self._process = os.getpid()
        self._device = cpu()
        with apart(self._device):
            self._tables = jax.device_put(_tables(merges), self._device)
            self._certain = merges.certain and jax.device_put(
                _certain_tables(merges.certain), self._device
            )
        room, number = _int32(_ROOM), _int32()
        if self._certain is not None:
            self._merge_chunk = _compiled(_merge_certain, room, number, self._certain, self._tables)
        self._merge_sides = {
            width: _compiled(
                _merge_alike, room, _int32(side), _int32(side), number, self._tables, width=width
            )
            for width, side in _SIDES.items()
        }

    def apply(self, ids: np.ndarray, lengths: np.ndarray) -> _Ragged:
        """As `Merges.apply`, with ids below 2**24."""
        is_fit = len(lengths) >= _LEAST and len(ids) <= _MOST
        if not is_fit or os.getpid() != self._process:
            return self._merges.apply(ids, lengths)
        filled = np.flatnonzero(lengths)
        merged, merged_lengths = self._merge(ids, lengths.take(filled))
        all_lengths = np.zeros(len(lengths), np.int64)
        all_lengths[filled] = merged_lengths
        return merged, all_lengths

    def _merge(self, ids: np.ndarray, lengths: np.ndarray) -> _Ragged:
        """As `apply`, for words that are not empty."""
        room = aligned(_ROOM // 2).view(np.int32)
        if self._certain is not None:
            ids, lengths = self._merge_certain(ids, lengths, room)
        room[: len(ids)] = ids
        words = _Words(room, lengths)
        self._merge_long(words)
        for width, shorter in itertools.pairwise([*_SIDES, 1]):
            self._merge_alike(width, shorter, words)
        return room.take(spans(words.starts, words.lengths)), words.lengths

    def _merge_certain(self, ids: np.ndarray, lengths: np.ndarray, room: np.ndarray) -> _Ragged:
        """What is left when pairs that are certain to merge first are merged."""
        size = len(ids)
        room[:_NEAR] = room[_NEAR + size : 2 * _NEAR + size + _CHUNK] = _LAST
        room[_NEAR : _NEAR + size] = ids
        room[_NEAR - 1 + np.cumsum(lengths)] += _LAST
        with apart(self._device):
            # Aligned arrays are not copied, nor changed before the results are here.
            parts = [
                self._merge_chunk(room, np.int32(start), self._certain, self._tables)
                for start in range(0, size, _CHUNK)
            ]
            merged = np.concatenate([np.asarray(part) for part in parts])[:size]
        merged = merged.take(np.flatnonzero(merged != GAP))
        last = np.flatnonzero(merged >= _LAST)
        merged[last] -= _LAST
        return merged, np.diff(last, prepend=-1)

    def _merge_long(self, words: "_Words") -> None:
        which = np.flatnonzero(words.lengths > max(_SIDES))
        if which.size:
            ids = words.ids.take(spans(words.starts[which], words.lengths[which]))
            words.put(which, *self._merges.apply(ids, words.lengths[which]))

    def _merge_alike(self, width: int, shorter: int, words: "_Words") -> None:
        """Merge words of up to `width` ids until they are done or have no more than `shorter`."""
        which = words.left(shorter, width)
        if not which.size:
            return
        count, side = len(which), _SIDES[width]
        starts, lengths = np.zeros((2, -(-count // side) * side), np.int32)
        starts[:count], lengths[:count] = words.starts.take(which), words.lengths.take(which)
        parts = []
        with apart(self._device):
            for first in range(0, count, side):
                lot = slice(first, first + side)
                turns = min(int(lengths[lot].max()) - 1, width - shorter)
                parts.append(
                    self._merge_sides[width](
                        words.ids, starts[lot], lengths[lot], np.int32(turns), self._tables
                    )
                )
            ids_CS = np.concatenate([np.asarray(ids_CS) for ids_CS, _ in parts], axis=1)
            best = np.concatenate([np.asarray(best) for _, best in parts])
        words.put_side_by_side(which, ids_CS)
        words.is_done[which] = best[:count] >= _NO_PAIR


class _Words:
    """Words while they are merged: each has its place in `ids`, of which it needs less and less."""

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        self.ids, self.lengths = ids, lengths
        self.starts = np.cumsum(lengths) - lengths
        self.is_done = np.zeros(len(lengths), bool)

    def left(self, above: int, most: int) -> np.ndarray:
        """Those of more than `above` ids, up to `most`, that are not done: shortest first."""
        is_it = (self.lengths > above) & (self.lengths <= most) & ~self.is_done
        which = np.flatnonzero(is_it)
        # Short numbers are what NumPy sorts by radix.
        return which[np.argsort(self.lengths[which].astype(np.uint16), kind="stable")]

    def put(self, which: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Let these words have these ids, no more than they had."""
        self.ids[spans(self.starts[which], lengths)] = ids
        self.lengths[which] = lengths

    def put_side_by_side(self, which: np.ndarray, ids_CS: np.ndarray) -> None:
        """As `put`, of C cells that end in GAPs; columns behind the last word hold nothing else."""
        is_id = ids_CS != GAP
        at = np.flatnonzero(is_id)
        cell = at // ids_CS.shape[1]
        word = at - cell * ids_CS.shape[1]
        self.ids[self.starts[which].take(word) + cell] = ids_CS.reshape(-1).take(at)
        self.lengths[which] = is_id.view(np.uint8).sum(axis=0, dtype=np.uint8)[: len(which)]


def _int32(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, np.int32)


def _tables(merges: Merges) -> tuple[np.ndarray, ...]:
    """For each left id its number, for each slot a rank; for each rank left id and result."""
    table = merges.table
    ranks = np.where(table.slot_ranks == NONE, len(merges), table.slot_ranks).astype(np.int32)
    left = np.append(merges.left, np.int32(GAP - 1))  # which is no id: of slots without a pair
    return table.numbers.astype(np.int32), ranks, left, np.append(merges.result, np.int32(GAP))


def _certain_tables(certain: CertainPairs) -> tuple[np.ndarray, np.ndarray]:
    """For each id its row; for each pair of rows rank, and the least ranks before and after it."""
    rank, before, after = (
        np.clip(table_PP, 0, _NO_NUMBER).astype(np.int64)
        for table_PP in (certain.rank_PP, certain.before_PP, certain.after_PP)
    )
    return certain.row.astype(np.int32), rank | before << _BITS | after << 2 * _BITS


def _compiled(function: Any, *arguments: Any, **static: Any) -> Any:
    """The function for arguments like these, compiled whatever the caller does with JAX."""
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        return function.lower(*arguments, **static).compile()


@jax.jit
def _merge_certain(room: Any, start: Any, certain: Any, tables: Any) -> Any:
    """The ids of one chunk with certain pairs merged; GAP for what is gone."""
    ids = lax.optimization_barrier(lax.dynamic_slice(room, (start,), (_CHUNK + 2 * _NEAR,)))
    is_last = ids >= _LAST
    rows, pairs_PP = certain
    row = _take(rows, jnp.minimum(jnp.where(is_last, ids - _LAST, ids), len(rows) - 1))
    row = lax.optimization_barrier(row)
    pair = _take(pairs_PP.reshape(-1), row[:-1] * np.int32(len(pairs_PP)) + row[1:])
    pair = lax.optimization_barrier(jnp.where(is_last[:-1], (1 << 3 * _BITS) - 1, pair))
    rank, before, after = (pair >> at * _BITS & _NO_NUMBER for at in range(3))
    # A pair that is none has the highest rank, which is before nothing.
    merges = (rank[1:-1] < before[:-2]) & (rank[1:-1] < after[2:])
    merges, rank = lax.optimization_barrier((merges, rank[1:-1].astype(jnp.int32)))
    new = _take(tables[-1], jnp.where(merges, rank, 0)) + jnp.where(is_last[2:-1], _LAST, 0)
    kept = jnp.where(merges[:-1], GAP, ids[_NEAR:-_NEAR])
    return jnp.where(merges[1:], new[1:], kept)


@functools.partial(jax.jit, static_argnames="width")
def _merge_alike(room: Any, starts: Any, lengths: Any, turns: Any, tables: Any, width: int) -> Any:
    """What so many turns leave of words of at most `width` ids, and the least key of each.

    Letters in shapes: C cells of a word, of which those behind its end are GAPs; S words side by
    side. `key_CS` has for each cell the rank of the pair that begins in it and, in the low bits,
    the cell's number, so that the least of a column says what to merge and where. A turn that finds
    no pair changes nothing, and one more than was asked for does no harm.
    """
    cell_CS = lax.broadcasted_iota(jnp.int32, (width, len(starts)), 0)
    ids_CS = jnp.where(cell_CS < lengths, _take(room, starts + cell_CS), GAP)
    ids_CS = lax.optimization_barrier(ids_CS)
    key_CS = _ranks(ids_CS, _shifted(ids_CS, GAP), tables) << _CELL_BITS | cell_CS

    def turn(state: Any) -> Any:
        number, ids_CS, key_CS, best = state
        for _ in range(2):  # after one alone both arrays would be copied
            ids_CS, key_CS = _merge_best(ids_CS, key_CS, best, tables)
            best = _least(key_CS)
        return number + 2, ids_CS, key_CS, best

    state = (np.int32(0), ids_CS, key_CS, _least(key_CS))
    _, ids_CS, _, best = lax.while_loop(lambda state: state[0] < turns, turn, state)
    return ids_CS, best


def _merge_best(ids_CS: Any, key_CS: Any, best: Any, tables: Any) -> tuple[Any, Any]:
    """Merge the pair `best` of each column, where it is one, and close the gap."""
    cells, words = ids_CS.shape
    cell_CS, word = lax.broadcasted_iota(jnp.int32, (cells, words), 0), lax.iota(jnp.int32, words)
    is_pair = best < _NO_PAIR
    cell = jnp.where(is_pair, best & _CELL, cells + 2)  # behind all that there are
    new = _take(tables[-1], jnp.where(is_pair, best >> _CELL_BITS, 0))
    at = jnp.stack([cell - 1, cell + 2])
    is_there = (at >= 0) & (at < cells)
    side = _take(ids_CS.reshape(-1), jnp.where(is_there, at, 0) * words + word)
    side, new = lax.optimization_barrier((jnp.where(is_there, side, GAP), new))
    rank = _ranks(jnp.stack([side[0], new]), jnp.stack([new, side[1]]), tables)
    key = rank << _CELL_BITS | jnp.stack([cell - 1, cell]) & _CELL
    key = lax.optimization_barrier(key)
    next_ids_CS, next_key_CS = _shifted(ids_CS, GAP), _shifted(key_CS, _NO_PAIR + _CELL + 1) - 1
    next_key_CS = jnp.where(cell_CS == cell, key[1], next_key_CS)
    next_key_CS = jnp.where(cell_CS == cell - 1, key[0], next_key_CS)
    return (
        jnp.where(cell_CS < cell, ids_CS, jnp.where(cell_CS == cell, new, next_ids_CS)),
        jnp.where(cell_CS < cell - 1, key_CS, next_key_CS),
    )


def _ranks(left: Any, right: Any, tables: Any) -> Any:
    """As `PairTable.ranks`, with _NO_RANK where a pair is no merge."""
    numbers, ranks, lefts, _ = tables
    slot = _take(numbers, jnp.clip(left, 0, len(numbers) - 1)) ^ right
    slot = jnp.clip(slot, 0, len(ranks) - 1)
    rank = lax.optimization_barrier(_take(ranks, slot))
    return jnp.where(_take(lefts, rank) == left, rank, _NO_RANK)


def _shifted(values_CS: Any, last: Any) -> Any:
    """The values of the cells behind."""
    return jnp.concatenate([values_CS[1:], jnp.full((1, values_CS.shape[1]), last, jnp.int32)])


def _least(key_CS: Any) -> Any:
    """The least key of each column: by halves, which XLA compiles to vectors."""
    while len(key_CS) > 1:
        half = (len(key_CS) + 1) // 2
        key_CS = jnp.minimum(key_CS[:half], key_CS[-half:])
    return lax.optimization_barrier(key_CS[0])


def _take(array: Any, at: Any) -> Any:
    return array.at[at].get(mode="promise_in_bounds")
