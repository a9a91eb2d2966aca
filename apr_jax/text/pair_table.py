"""From pairs of ids to ranks, for arrays of pairs."""

import numpy as np

NONE = np.iinfo(np.int32).max  # the rank of a pair that is no merge
_BITS = 21  # of ids and of ranks
_EMPTY = np.iinfo(np.int64).min  # no pair's slot, not even that of a GAP
# 2**64 / golden ratio, and 2**64 * (pi - 3): multiplying scatters keys.
_SPREAD, _OTHER_SPREAD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x243F6A8885A308D3)


class PairTable:
    """From pairs of ids to ranks: a cuckoo hash table, looked up by arrays.

    A pair can only be in one of two slots, so that every look-up takes two steps. A slot holds left
    id, right id and rank, 21 bits each.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray) -> None:
        if max(highest(left), highest(right), len(left)) >> _BITS:
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


def highest(ids: np.ndarray) -> int:
    return int(ids.max()) if len(ids) else 0
