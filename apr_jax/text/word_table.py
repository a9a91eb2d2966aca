"""Words with the ids they have: hash tables that are asked for many words at once.

Every answer is exact. Words of up to eight bytes are their own keys; of longer ones all bytes are
compared, so that a collision, even a built one, costs time and changes nothing. No word may hold
the byte 0xFF, which is in no UTF-8.
"""

import numpy as np

from apr_jax.text.ragged import Column, Rows, spans

ABSENT = np.iinfo(np.int32).min
LONGEST = 128  # bytes; longer words are not kept, as they hardly ever come again
_SHORT = 8
_PROBES = 64  # slots looked at; a word that finds no room in as many is not kept
# What fills up a short word, so also what a divider, the byte 0xFF, has for a key.
_EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
# Multipliers, new in each process, so that no text can be built to fill the same slots.
_MIX = np.random.default_rng().integers(0, 2**63, LONGEST // 8 + 1, np.uint64) * 2 + np.uint64(1)


class Slots:
    """A hash table with open addressing, from keys (uint64) to values (int32)."""

    def __init__(self, bits: int, empty: int) -> None:
        """For at most 2**bits keys; the key of all ones has the value `empty`."""
        self._shift = np.uint64(64 - bits)
        self._mask = (1 << bits) - 1
        self._empty = empty
        self.keys = np.full(1 << bits, _EMPTY)
        self.values = np.full(1 << bits, empty, np.int32)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """int32: the value of each key, or ABSENT."""
        slots = self._home(keys)
        held = self.keys.take(slots)
        values = self.values.take(slots)
        pending = np.flatnonzero(held != keys)
        keys, slots, held = keys[pending], slots[pending], held[pending]
        for _ in range(_PROBES - 1):
            values[pending] = ABSENT
            on = held != _EMPTY
            if not on.any():
                return values
            pending, keys, slots = pending[on], keys[on], (slots[on] + 1) & self._mask
            held = self.keys[slots]
            is_hit = held == keys
            values[pending[is_hit]] = self.values[slots[is_hit]]
            pending, keys, slots, held = (x[~is_hit] for x in (pending, keys, slots, held))
        values[pending] = ABSENT
        return values

    def claim(self, keys: np.ndarray) -> np.ndarray:
        """int64: the slot of each key, a new one where it has none; -1 where there is no room."""
        slots = self._home(keys)
        pending = np.arange(len(keys))
        for _ in range(_PROBES):
            free = pending[self.keys[slots[pending]] == _EMPTY]
            self.keys[slots[free]] = keys[free]  # of several with one slot the last wins
            pending = pending[self.keys[slots[pending]] != keys[pending]]
            if not pending.size:
                return slots
            slots[pending] = (slots[pending] + 1) & self._mask
        slots[pending] = -1
        return slots

    def _home(self, keys: np.ndarray) -> np.ndarray:
        slots = keys * _MIX[0]
        slots >>= self._shift
        return slots.view(np.int64)


class Text:
    """Bytes of which words are looked at eight at a time."""

    def __init__(self, data: bytes) -> None:
        pad = -len(data) % 8 + 16
        self._octets = np.frombuffer(data + b"\xff" * pad, "<u8")
        self.bytes = self._octets.view(np.uint8)

    def octets(self, at: np.ndarray, left: np.ndarray) -> np.ndarray:
        """uint64: the eight bytes at each place; 0xFF where less than eight are `left`."""
        index = at >> 3
        shift = (at & 7).view(np.uint64)
        shift <<= 3
        octets = self._octets.take(index, mode="clip")
        octets >>= shift
        np.subtract(64, shift, out=shift)
        following = self._octets[1:].take(index, mode="clip")
        following <<= shift
        octets |= following
        beyond = left.astype(np.uint64)
        beyond <<= 3
        np.left_shift(_EMPTY, beyond, out=beyond)
        octets |= beyond
        return octets


class WordTable:
    """Words with a value each. The place of a word is the number under which its value is kept."""

    def __init__(self, bits: int, divider: int) -> None:
        """With 2**bits slots for words of either kind; a divider's value is `divider`."""
        self._short = Slots(bits, divider)
        self._long = _LongWords(bits)
        self._first_long = 1 << bits  # the place of the first long word

    def find(self, text: Text, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32: the value of each word of the text, or ABSENT."""
        keys = text.octets(starts, lengths)
        values = self._short.find(keys)
        long = np.flatnonzero(lengths > _SHORT)
        if long.size:
            values[long] = ABSENT
            long = long[lengths[long] <= LONGEST]
            words = _Words(text, starts[long], lengths[long], keys[long])
            values[long] = self._long.find(words)
        return values

    def claim(self, text: Text, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int64: the place of each word, the same for equal words; -1 for words that are not kept.

        New words have no value yet, and must get one.
        """
        places = np.full(len(starts), -1)
        keys = text.octets(starts, lengths)
        short = np.flatnonzero(lengths <= _SHORT)
        places[short] = self._short.claim(keys[short])
        long = np.flatnonzero((lengths > _SHORT) & (lengths <= LONGEST))
        if long.size:
            words = _Words(text, starts[long], lengths[long], keys[long])
            entries = self._long.claim(words)
            places[long] = np.where(entries < 0, -1, entries + self._first_long)
        return places

    def values(self, places: np.ndarray) -> np.ndarray:
        """int32: what is kept at these places, which are not -1."""
        is_long = places >= self._first_long
        values = self._short.values[np.where(is_long, 0, places)]
        values[is_long] = self._long.values.values[places[is_long] - self._first_long]
        return values

    def set_values(self, places: np.ndarray, values: np.ndarray) -> None:
        """Keep these values at these places."""
        is_long = places >= self._first_long
        self._short.values[places[~is_long]] = values[~is_long]
        self._long.values.values[places[is_long] - self._first_long] = values[is_long]


class _Words:
    """Words of more than eight bytes, in the form in which they are compared."""

    def __init__(
        self, text: Text, starts: np.ndarray, lengths: np.ndarray, first: np.ndarray
    ) -> None:
        self.first, self.second = first, text.octets(starts + 8, lengths - 8)
        self.lengths = lengths
        self.keys = self.first * _MIX[1]
        self.keys += self.second * _MIX[2]
        # Octets beyond the second, one word's behind another's.
        self.counts = np.maximum((lengths + 7 >> 3) - 2, 0)
        self.rest_starts = np.cumsum(self.counts) - self.counts
        longer = np.flatnonzero(self.counts)
        counts = self.counts[longer]
        number = spans(np.full(len(longer), 2), counts)
        at = np.repeat(starts[longer], counts) + 8 * number
        self.rest = text.octets(at, np.repeat(lengths[longer], counts) - 8 * number)
        if longer.size:
            mixed = self.rest * _MIX[1 + number]
            self.keys[longer] += np.add.reduceat(mixed, self.rest_starts[longer])


class _LongWords:
    """Words of more than eight bytes. Entry i of each column belongs to the i-th word kept."""

    def __init__(self, bits: int) -> None:
        self._slots = Slots(bits, ABSENT)  # from keys to entries
        self._first, self._second = Column(np.uint64), Column(np.uint64)
        self._lengths, self._rest = Column(np.int64), Rows(np.uint64)
        self.values = Column(np.int32)

    def find(self, words: _Words) -> np.ndarray:
        """int32: the value of each word, or ABSENT."""
        entries = self._slots.find(words.keys)
        values = np.full(len(entries), ABSENT, np.int32)
        known = np.flatnonzero(entries != ABSENT)
        known = known[self._is_same(entries[known], words, known)]
        values[known] = self.values.values[entries[known]]
        return values

    def claim(self, words: _Words) -> np.ndarray:
        """int64: the entry of each word, a new one where it has none; -1 where it cannot."""
        slots = self._slots.claim(words.keys)
        placed = np.flatnonzero(slots >= 0)
        new = placed[self._slots.values[slots[placed]] == ABSENT]
        new_slots, index = np.unique(slots[new], return_index=True)
        self._slots.values[new_slots] = self._append(words, new[index])
        entries = np.full(len(slots), -1)
        entries[placed] = self._slots.values[slots[placed]]
        entries[placed[~self._is_same(entries[placed], words, placed)]] = -1
        return entries

    def _append(self, words: _Words, which: np.ndarray) -> np.ndarray:
        self._first.append(words.first[which])
        self._second.append(words.second[which])
        self._lengths.append(words.lengths[which])
        self.values.append(np.full(len(which), ABSENT, np.int32))
        counts = words.counts[which]
        return self._rest.append(words.rest[spans(words.rest_starts[which], counts)], counts)

    def _is_same(self, entries: np.ndarray, words: _Words, which: np.ndarray) -> np.ndarray:
        """bool: whether these entries are these words, byte for byte."""
        is_same = self._first.values[entries] == words.first[which]
        is_same &= self._second.values[entries] == words.second[which]
        is_same &= self._lengths.values[entries] == words.lengths[which]
        longer = np.flatnonzero(is_same & (words.counts[which] > 0))
        if longer.size:
            kept, counts = self._rest.take(entries[longer])
            asked = words.rest[spans(words.rest_starts[which[longer]], counts)]
            is_same[longer] = np.logical_and.reduceat(kept == asked, np.cumsum(counts) - counts)
        return is_same
