"""Words with the values they have: a hash table that is asked for many words at once.

Every answer is exact. Words of up to eight bytes are their own keys; of longer ones all bytes are
compared, so that a collision, even a built one, costs time and changes nothing. No word may hold
the byte 0xFF, which is in no UTF-8.
"""

import numpy as np

from apr_jax.text.ragged import Column, Rows, spans

ABSENT = np.iinfo(np.int32).min
LONGEST = 128  # bytes; longer words are not kept, as they hardly ever come again
SHORT = 16  # bytes of a word that two numbers hold
_ONE_KEY = 8  # bytes of a word that is its own key
_PROBES = 64  # slots looked at; a word that finds no room in as many is not kept
# What fills up a short word, so also what a divider, the byte 0xFF, has for a key.
EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
# The last byte of keys of long words, which no short word has there.
_LONG_KEY = np.uint64(0xFE << 56)
# Multipliers, new in each process, so that no text can be built to fill the same slots.
MIX = np.random.default_rng().integers(0, 2**63, LONGEST // 8 + 1, np.uint64) * 2 + np.uint64(1)


class Text:
    """Bytes of which words are looked at eight at a time.

    Attributes:
      size: how many there are.
      eights: uint64, the bytes and what follows them.
      bytes: uint8 [size + 16], the bytes and then 0xFF.
      room: uint8, all that is in `eights`.
    """

    def __init__(self, data: bytes | memoryview, *, capacity: int = 0) -> None:
        """With these bytes.

        Args:
          capacity: bytes that there is room for at least. The room is a power of two of them, so
            that what is compiled for one text fits others.
        """
        self.size = size = len(data)
        room = 1 << max(size + 15, capacity - 1).bit_length()
        self.eights = aligned(room >> 3)
        self.room = self.eights.view(np.uint8)
        self.bytes = self.room[: size + 16]
        self.bytes[:size], self.bytes[size:] = np.frombuffer(data, np.uint8), 0xFF

    def octets(self, at: np.ndarray, left: np.ndarray) -> np.ndarray:
        """uint64: the eight bytes at each place; 0xFF where less than eight are `left`."""
        index = at >> 3
        shift = (at & 7).view(np.uint64)
        shift <<= 3
        octets = self.eights.take(index, mode="clip")
        octets >>= shift
        np.subtract(64, shift, out=shift)
        following = self.eights[1:].take(index, mode="clip")
        following <<= shift
        octets |= following
        beyond = left.view(np.uint64) << 3
        np.left_shift(EMPTY, beyond, out=beyond)
        octets |= beyond
        return octets

    def pairs(self, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint64: the first and the second eight bytes of words of at most sixteen bytes."""
        beyond = np.maximum(lengths - 8, 0)
        return self.octets(starts, lengths), self.octets(starts + 8, beyond)


def aligned(size: int) -> np.ndarray:
    """uint64 [size], not initialised, and where XLA need not copy it."""
    room = np.empty(size + 8, np.uint64)
    skip = -room.ctypes.data % 64 // 8
    return room[skip : skip + size]


class Slots:
    """A hash table with open addressing, from keys (uint64) to values (int32)."""

    def __init__(self, bits: int, empty: int) -> None:
        """For at most 2**bits keys; the key of all ones has the value `empty`."""
        self._shift = np.uint64(64 - bits)
        self._mask = (1 << bits) - 1
        self._empty = empty
        self.keys = np.full(1 << bits, EMPTY)
        self.values = np.full(1 << bits, empty, np.int32)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """int32: the value of each key, or ABSENT."""
        slots = self._home(keys)
        held = self.keys.take(slots, mode="clip")
        values = self.values.take(slots, mode="clip")
        pending = np.flatnonzero(held != keys)
        slots, keys, held = slots[pending], keys[pending], held[pending]
        values[pending] = np.where(keys == EMPTY, self._empty, ABSENT)
        for _ in range(_PROBES - 1):
            on = held != EMPTY
            if not on.any():
                break
            pending, keys, slots = pending[on], keys[on], (slots[on] + 1) & self._mask
            held = self.keys[slots]
            is_hit = held == keys
            values[pending[is_hit]] = self.values[slots[is_hit]]
            held[is_hit] = EMPTY
        return values

    def claim(self, keys: np.ndarray) -> np.ndarray:
        """int64: the slot of each key, a new one where it has none; -1 where there is no room."""
        slots = self._home(keys)
        pending = np.arange(len(keys))
        for _ in range(_PROBES):
            free = pending[self.keys[slots[pending]] == EMPTY]
            self.values[slots[free]] = ABSENT
            self.keys[slots[free]] = keys[free]  # of several with one slot the last wins
            pending = pending[self.keys[slots[pending]] != keys[pending]]
            if not pending.size:
                return slots
            slots[pending] = (slots[pending] + 1) & self._mask
        slots[pending] = -1
        return slots

    def _home(self, keys: np.ndarray) -> np.ndarray:
        slots = keys * MIX[0]
        slots >>= self._shift
        return slots.view(np.int64)


class WordTable:
    """Words with a value each. The place of a word is the number under which its value is kept."""

    def __init__(self, bits: int, divider: int) -> None:
        """With 2**bits slots; a divider's value is `divider`."""
        # Of a short word the slot has the value, of a long one the number of its entry.
        self._slots = Slots(bits, divider)
        self._long = _LongWords()
        self._first_entry = 1 << bits  # the place of entry 0

    def find(self, text: Text, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32: the value of each word of the text, or ABSENT."""
        keys, long, words = _keys(text, starts, lengths)
        values = self._slots.find(keys)
        values[long] = self._long.find(values.take(long), words)
        return values

    def claim(self, text: Text, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int64: the place of each word, the same for equal words; -1 for words that are not kept.

        New words have no value yet, and must get one.
        """
        keys, long, words = _keys(text, starts, lengths)
        places = np.full(len(keys), -1)
        may_keep = lengths <= LONGEST
        places[may_keep] = self._slots.claim(keys[may_keep])
        entries = self._claim_entries(places[long], words)
        places[long] = np.where(entries < 0, -1, entries + self._first_entry)
        return places

    def values(self, places: np.ndarray) -> np.ndarray:
        """int32: what is kept at these places, which are not -1."""
        is_long = places >= self._first_entry
        values = self._slots.values[np.where(is_long, 0, places)]
        values[is_long] = self._long.values[places[is_long] - self._first_entry]
        return values

    def set_values(self, places: np.ndarray, values: np.ndarray) -> None:
        """Keep these values at these places."""
        is_long = places >= self._first_entry
        self._slots.values[places[~is_long]] = values[~is_long]
        self._long.values[places[is_long] - self._first_entry] = values[is_long]

    def short_words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Words of up to sixteen bytes: their first and second eight bytes, and their values."""
        slots = self._slots
        is_long = slots.keys >> np.uint64(56) == _LONG_KEY >> np.uint64(56)
        held = np.flatnonzero((slots.keys != EMPTY) & ~is_long)
        first, second, values = self._long.short_words()
        return (
            np.concatenate([slots.keys[held], first]),
            np.concatenate([np.full(held.size, EMPTY), second]),
            np.concatenate([slots.values[held], values]),
        )

    def _claim_entries(self, slots: np.ndarray, words: "_Words") -> np.ndarray:
        """int64: the entries of long words with these slots, -1 where there is none to have."""
        entries = np.full(len(slots), -1)
        placed = np.flatnonzero(slots >= 0)
        new = placed[self._slots.values[slots[placed]] == ABSENT]
        # Of equal words one speaks for all: the one whose number their slot holds in the end.
        self._slots.values[slots[new]] = np.arange(new.size)
        speaks = new[self._slots.values[slots[new]] == np.arange(new.size)]
        self._slots.values[slots[speaks]] = self._long.append(words, speaks)
        entries[placed] = self._slots.values[slots[placed]]
        entries[~self._long.is_same(entries, words)] = -1  # another word has the same key
        return entries


def _keys(
    text: Text, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, "_Words"]:
    """The key of each word, and which of them are long."""
    keys = text.octets(starts, lengths)
    long = np.flatnonzero(lengths > _ONE_KEY)
    words = _Words(text, *(values.take(long) for values in (starts, lengths, keys)))
    keys[long] = words.keys
    return keys, long, words


class _Words:
    """Words of more than eight bytes, in the form in which they are compared."""

    def __init__(
        self, text: Text, starts: np.ndarray, lengths: np.ndarray, first: np.ndarray
    ) -> None:
        self.first, self.second = first, text.octets(starts + 8, lengths - 8)
        self.lengths = lengths
        self.keys = self.first * MIX[1]
        self.keys += self.second * MIX[2]
        # Octets beyond the second of words that have such, one word's behind another's.
        self.longer = np.flatnonzero(lengths > 16)
        starts, lengths = starts[self.longer], np.minimum(lengths[self.longer], LONGEST)
        self.counts = (lengths - 9) >> 3
        self.rest_starts = np.cumsum(self.counts) - self.counts
        number = spans(np.full(len(starts), 2), self.counts)
        at = np.repeat(starts, self.counts) + 8 * number
        self.rest = text.octets(at, np.repeat(lengths, self.counts) - 8 * number)
        if self.longer.size:
            mixed = self.rest * MIX[1 + number]
            self.keys[self.longer] += np.add.reduceat(mixed, self.rest_starts)
        self.keys >>= 8  # the low bits of products depend on the low bits of their sides alone
        self.keys |= _LONG_KEY


class _LongWords:
    """Words of more than eight bytes that are kept, each an entry."""

    def __init__(self) -> None:
        self._columns = Column(np.uint64, 4)  # two octets, length, value
        self._rest = Rows(np.uint64)

    @property
    def values(self) -> np.ndarray:
        """The value of each entry, to be changed in place."""
        return self._columns.values.view(np.int64)[:, 3]

    def find(self, entries: np.ndarray, words: _Words) -> np.ndarray:
        """int64: the values of these entries, ABSENT where they are ABSENT or other words."""
        is_same, values = self._compare(entries, words)
        values[~is_same] = ABSENT
        return values

    def short_words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `WordTable.short_words`, of those that are here."""
        columns = self._columns.values
        columns = columns[columns[:, 2] <= SHORT]
        return columns[:, 0], columns[:, 1], columns[:, 3].astype(np.int32)

    def append(self, words: _Words, which: np.ndarray) -> np.ndarray:
        """int64: the new entries of these words, which have no value yet."""
        columns = (words.first, words.second, words.lengths.view(np.uint64))
        no_value = np.full(len(which), ABSENT, np.int64).view(np.uint64)
        self._columns.append(np.stack([*(column[which] for column in columns), no_value], axis=1))
        counts, starts = np.zeros((2, len(words.first)), np.int64)
        counts[words.longer], starts[words.longer] = words.counts, words.rest_starts
        rest = words.rest[spans(starts[which], counts[which])]
        return self._rest.append(rest, counts[which])

    def is_same(self, entries: np.ndarray, words: _Words) -> np.ndarray:
        """bool: whether these entries are these words, byte for byte; not where negative."""
        return self._compare(entries, words)[0]

    def _compare(self, entries: np.ndarray, words: _Words) -> tuple[np.ndarray, np.ndarray]:
        """Whether these entries are these words, and the entries' values (int64)."""
        if not len(self._rest):
            return np.zeros(len(entries), bool), np.zeros(len(entries), np.int64)
        columns = self._columns.values.take(entries, axis=0, mode="clip")
        is_same = columns[:, 0] == words.first
        is_same &= columns[:, 1] == words.second
        is_same &= columns[:, 2] == words.lengths.view(np.uint64)
        is_same &= entries >= 0
        longer = np.flatnonzero(is_same[words.longer])
        if longer.size:
            which = words.longer[longer]
            kept, counts = self._rest.take(entries[which])
            asked = words.rest[spans(words.rest_starts[longer], counts)]
            is_same[which] = np.logical_and.reduceat(kept == asked, np.cumsum(counts) - counts)
        return is_same, columns[:, 3].astype(np.int64)
