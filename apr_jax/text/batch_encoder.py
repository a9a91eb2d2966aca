"""Encoding many texts at once by operations on arrays.

Texts stand one behind another with dividers between, and are gone through in pieces that fit the
cache. In each `cutting.Cutter` finds where words start, and `word_table.WordTable` what ids they
have. Words that it does not know are collected, merged together and kept.
"""

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from apr_jax.text.cutting import Cutter
from apr_jax.text.pieces import cut_texts
from apr_jax.text.pretokenizers import Rule
from apr_jax.text.ragged import Rows, spans
from apr_jax.text.word_table import ABSENT, LONGEST, SHORT, Text, WordTable

if TYPE_CHECKING:
    from apr_jax.text.first_look import FirstLook

_CHUNK = 1 << 16  # words whose ids are written together, so that they stay in the cache
_COMPILED_PIECE = 3 << 18  # bytes for one first look
_COMPILED_LEAST = 1 << 18  # bytes; less is quicker without it
_COMPILED_MOST = 1 << 32  # bytes whose places fit its numbers
_BITS = 21  # of the least number of slots, of which half are used: room for many languages
_LEAST_ROOM = 1 << 16  # words; with less room at the start of a lot, all is forgotten
_NO_IDS = -1  # the value of dividers: row 0 of the pieces
# From words, as bytes one behind another and lengths, to ids and lengths.
Encode = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
_Ragged = tuple[np.ndarray, np.ndarray]


class BatchEncoder:
    """Encodes plain texts: those without added tokens, in the normal form."""

    def __init__(self, rule: Rule, encode: Encode, words: _Ragged, ids: np.ndarray) -> None:
        """With words (bytes, lengths) that are known to have one of these ids each."""
        self._cutter = Cutter(rule)
        self._encode = encode
        self._words, self._ids = words, ids
        self._first_look: FirstLook | None = None
        self._compiled_in = -1  # process that the first look works in; not in its children
        self._lock = threading.Lock()
        self._forget()

    def compile(self) -> None:
        """Go over to the first look that XLA compiles. JAX raises an error where it has no CPU."""
        from apr_jax.text.first_look import FirstLook  # here, since it imports JAX

        with self._lock:
            if self._compiled_in == os.getpid():
                return
            first_look = FirstLook(_NO_IDS)
            self._fill_first_look(first_look)
            piece = Text(b" ", capacity=_COMPILED_PIECE)
            first_look.find(piece, np.array([0, 1]))  # so that it is compiled now
            self._first_look, self._compiled_in = first_look, os.getpid()

    def _forget(self) -> None:
        """Know only the words of the beginning. Cut short it leaves what must be forgotten."""
        # The value of a word is its id, or, where it has several, the number of its row here, and
        # then inverted.
        self._rows = Rows(np.int32)
        self._rows.append(np.empty(0, np.int32), np.zeros(1, np.int64))
        self._kept_rows = 1
        bits = max(_BITS, (3 * len(self._ids)).bit_length())
        self._table = WordTable(bits, _NO_IDS)
        self._room = (1 << bits - 1) - len(self._ids)
        octets, lengths = self._words
        kept = np.flatnonzero(lengths <= LONGEST)[::-1]  # of two with one slot the last gets it
        starts = (np.cumsum(lengths) - lengths)[kept]
        places = self._table.claim(Text(octets.tobytes()), starts, lengths[kept])
        self._table.set_values(places[places >= 0], self._ids[kept[places >= 0]])
        if self._first_look is not None:
            self._fill_first_look(self._first_look)

    def _fill_first_look(self, first_look: "FirstLook") -> None:
        """Hold the words of the table in it."""
        first, second, values = self._table.short_words()
        # Of two words in one row the last stays: that of the lower id, or else that learned first.
        learned = int(self._ids.max()) + 1 + ~values.astype(np.int64)
        order = np.argsort(np.where(values < 0, learned, values))[::-1]
        first_look.clear()
        first_look.add(first[order], second[order], values[order])

    def encode(self, texts: Sequence[str]) -> _Ragged:
        """The ids (int32) of all texts one behind another, and how many each has (int64)."""
        with self._lock:
            try:
                if self._compiled_in != os.getpid():
                    self._first_look = None
                if self._room < _LEAST_ROOM:
                    self._forget()
                encoded = self._encode_lot(texts)
            except BaseException:
                self._room = 0  # what was being learned, or forgotten, is not to be trusted
                raise
        return encoded

    def _encode_lot(self, texts: Sequence[str]) -> _Ragged:
        known, unseen = [], []
        first_look = self._first_look
        least = 0 if first_look is None else _COMPILED_PIECE
        for text, bounds in cut_texts(self._cutter, texts, least):
            if first_look is not None and _COMPILED_LEAST <= len(text.bytes) < _COMPILED_MOST:
                values = first_look.find(text, bounds)
            else:
                values = self._table.find(text, bounds[:-1], np.diff(bounds))
            absent = np.flatnonzero(values == ABSENT)
            starts = bounds.take(absent)
            lengths = bounds.take(absent + 1) - starts
            known.append(values)
            unseen.append((absent, text.bytes.take(spans(starts, lengths)), lengths))
        self._fill_in(known, unseen)
        ids, ends, size = [], [], 0
        for values in known:
            for first in range(0, len(values), _CHUNK):
                part, ends_of_part = self._ids_of(values[first : first + _CHUNK])
                ids.append(part)
                ends.append(ends_of_part + size)
                size += len(part)
        self._rows.shorten(self._kept_rows)  # the others are of words that the table does not keep
        return np.concatenate(ids), np.diff(np.concatenate(ends), prepend=0)

    def _fill_in(
        self, known: list[np.ndarray], unseen: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    ) -> None:
        """Put the values of unseen words (index, bytes, lengths) where `known` has none."""
        lengths = np.concatenate([lengths for _, _, lengths in unseen])
        if not lengths.size:
            return
        values = self._learn(np.concatenate([octets for _, octets, _ in unseen]), lengths)
        for piece, (absent, _, _) in zip(known, unseen, strict=True):
            piece[absent], values = values[: len(absent)], values[len(absent) :]

    def _learn(self, octets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32: the values of words, of which most are kept from now on."""
        starts = np.cumsum(lengths) - lengths
        places = np.full(len(lengths), -1)
        some = slice(max(self._room, 0))
        text = Text(octets.tobytes())
        places[some] = self._table.claim(text, starts[some], lengths[some])
        found = np.full(len(lengths), ABSENT, np.int32)
        kept = np.flatnonzero(places >= 0)
        found[kept] = self._table.values(places[kept])  # the first look does not tell all of them
        new = np.flatnonzero(found == ABSENT)
        places_of_new = places.take(new)
        kept, alone = (
            new.take(np.flatnonzero(at)) for at in (places_of_new >= 0, places_of_new < 0)
        )
        # Of equal words one speaks for all: the one whose number their place holds in the end.
        places = places.take(kept)
        self._table.set_values(places, np.arange(kept.size, dtype=np.int32))
        speaker = self._table.values(places)
        speakers = np.flatnonzero(speaker == np.arange(kept.size))
        speaks = kept.take(speakers)
        which = np.concatenate([speaks, alone])
        starts, lengths = starts.take(which), lengths.take(which)
        values = self._encode_new(octets.take(spans(starts, lengths)), lengths)
        self._table.set_values(places.take(speakers), values[: speaks.size])
        if self._first_look is not None:
            short = np.flatnonzero(lengths[: speaks.size] <= SHORT)
            words = text.pairs(starts.take(short), lengths.take(short))
            self._first_look.add(*words, values.take(short))
        self._room -= speaks.size
        self._kept_rows = len(self._rows) - int((values[speaks.size :] < 0).sum())
        found[kept] = self._table.values(places)
        found[alone] = values[speaks.size :]
        return found

    def _encode_new(self, octets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32: the values of words that are encoded now."""
        ids, counts = self._encode(octets, lengths)
        begins = np.cumsum(counts) - counts
        values = np.append(ids, np.int32(0)).take(begins)
        several = np.flatnonzero(counts != 1)  # or none at all
        begins, counts = begins.take(several), counts.take(several)
        values[several] = ~self._rows.append(ids.take(spans(begins, counts)), counts)
        return values

    def _ids_of(self, values: np.ndarray) -> _Ragged:
        """The ids that words of these values have, and where among them texts end."""
        others = np.flatnonzero(values < 0)  # words of several ids, and dividers
        rows = ~values.take(others)
        several, counts = self._rows.take(rows)
        times = np.ones(len(values), np.int64)
        times[others] = counts
        ids = np.repeat(values, times)
        extra = counts - 1
        begins = others + np.cumsum(extra) - extra
        ids[spans(begins, counts)] = several
        return ids, begins[rows == 0]
