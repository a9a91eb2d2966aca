"""Encoding many texts at once by operations on arrays.

Texts stand one behind another with dividers between, and are gone through in pieces that fit the
cache. In each `cutting.Cutter` finds where words start, and `word_table.WordTable` what ids they
have; once compiled, `compiled_cutting.CompiledCutter` and `first_look.FirstLook` do most of it.
Words that the table does not know are noted, merged together at the end of a lot, and kept.
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from apr_jax.text.cutting import Cutter
from apr_jax.text.pieces import cut_texts
from apr_jax.text.pretokenizers import Rule
from apr_jax.text.ragged import Rows, spans
from apr_jax.text.word_table import ABSENT, LONGEST, SHORT, Text, WordTable

if TYPE_CHECKING:
    from apr_jax.text.compiled_cutting import CompiledCutter
    from apr_jax.text.first_look import FirstLook

_PIECE = 1 << 18  # bytes looked at together, so that they stay in the cache
_COMPILED_PIECE = 15 << 16  # the same for what is compiled
_COMPILED_ROOM = 1 << 20  # bytes, for such a piece and what there is until it may be cut
_COMPILED_LEAST = 1 << 18  # bytes; less is quicker without it
_BITS = 21  # of the least number of slots, of which half are used: room for many languages
_LEAST_ROOM = 1 << 16  # words; with less room at the start of a lot, all is forgotten
_NO_IDS = -1  # the value of dividers: row 0 of the pieces
_UNSETTLED = -(1 << 30)  # values below are ABSENT, or the numbers of words that are being learned
_FIRST_NUMBER = ABSENT + 1
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
        self._compiled: _Compiled | None = None
        self._lock = threading.Lock()
        self._forget()

    def compile(self) -> None:
        """Go over to what XLA compiles. Raises UserError where JAX has no CPU."""
        from apr_jax.text.compiled_cutting import CompiledCutter  # here, since they import JAX
        from apr_jax.text.first_look import FirstLook

        if self._is_compiled():
            return
        cutter, first_look = CompiledCutter(self._cutter.rule), FirstLook(_NO_IDS)
        text = Text(b" ", capacity=_COMPILED_ROOM)
        first_look.find(text, cutter.bounds(text))  # so that it is compiled now
        with self._lock:
            self._fill_first_look(first_look)
            self._compiled = _Compiled(cutter, first_look, os.getpid())

    def _is_compiled(self) -> bool:
        return self._compiled is not None and self._compiled.process == os.getpid()

    def _forget(self) -> None:
        """Know only the words of the beginning. Cut short it leaves what must be forgotten."""
        # The value of a word is its id, or, where it has several, the number of its row here, and
        # then inverted.
        self._rows = Rows(np.int32)
        self._rows.append(np.empty(0, np.int32), np.zeros(1, np.int64))
        self._kept_rows = 1
        self._ones = np.empty(0, np.int64)  # but for a moment nothing else is in it
        bits = max(_BITS, (3 * len(self._ids)).bit_length())
        self._table = WordTable(bits, _NO_IDS)
        self._room = (1 << bits - 1) - len(self._ids)
        octets, lengths = self._words
        kept = np.flatnonzero(lengths <= LONGEST)[::-1]  # of two with one slot the last gets it
        starts = (np.cumsum(lengths) - lengths)[kept]
        places = self._table.claim(Text(octets.tobytes()), starts, lengths[kept])
        self._table.set_values(places[places >= 0], self._ids[kept[places >= 0]])
        if self._compiled is not None:
            self._fill_first_look(self._compiled.first_look)

    def _fill_first_look(self, first_look: "FirstLook") -> None:
        """Hold the words of the table in it."""
        first, second, values = self._table.short_words()
        # Of two words in one row the last stays: that of the lower id, or else that learned first.
        learned = int(self._ids.max()) + 1 + ~values.astype(np.int64)
        order = np.argsort(np.where(values < 0, learned, values))[::-1]
        first_look.clear()
        first_look.add(first[order], second[order], values[order])

    def encode(self, texts: Sequence[bytes]) -> _Ragged:
        """The ids (int32) of all texts one behind another, and how many each has (int64).

        Texts are UTF-8.
        """
        with self._lock:
            try:
                if not self._is_compiled():
                    self._compiled = None
                if self._room < _LEAST_ROOM:
                    self._forget()
                encoded = self._encode_lot(texts)
            except BaseException:
                self._room = 0  # what was being learned, or forgotten, is not to be trusted
                raise
        return encoded

    def _encode_lot(self, texts: Sequence[bytes]) -> _Ragged:
        pieces, new = [], _NewWords()
        for text, bounds, values in self._look(texts):
            others = np.flatnonzero(values < 0)  # words of several ids or none yet, and dividers
            their = values.take(others)
            unsettled = np.flatnonzero(their < _UNSETTLED)
            at = others.take(unsettled)
            starts = bounds.take(at)
            their[unsettled] = self._note(text, starts, bounds.take(at + 1) - starts, new)
            pieces.append((values, others, their))
        settled = self._learn(new)
        ids, ends, size = [], [], 0
        for values, others, their in pieces:
            late = np.flatnonzero(their < _UNSETTLED)
            their[late] = settled.take(their.take(late) - _FIRST_NUMBER)
            part, ends_of_part = self._ids_of(values, others, their)
            ids.append(part)
            ends.append(ends_of_part + size)
            size += len(part)
        self._rows.shorten(self._kept_rows)  # the others are of words that the table does not keep
        return np.concatenate(ids), np.diff(np.concatenate(ends), prepend=0)

    def _look(self, texts: Sequence[bytes]) -> Iterator[tuple[Text, np.ndarray, np.ndarray]]:
        """Piece by piece the bytes, the bounds of the words, and the words' values."""
        if self._compiled is None or sum(map(len, texts)) < _COMPILED_LEAST:
            for text, bounds in cut_texts(self._cutter, texts, piece=_PIECE):
                yield text, bounds, self._table.find(text, bounds[:-1], np.diff(bounds))
            return
        cutter, first_look = self._compiled.cutter, self._compiled.first_look
        for text, bounds in cut_texts(
            cutter, texts, piece=_COMPILED_PIECE, capacity=_COMPILED_ROOM
        ):
            yield text, bounds, first_look.find(text, bounds)

    def _note(
        self, text: Text, starts: np.ndarray, lengths: np.ndarray, new: "_NewWords"
    ) -> np.ndarray:
        """int32: the values of words, which for new ones are their numbers."""
        places = np.full(len(lengths), -1)
        some = slice(max(self._room, 0))
        places[some] = self._table.claim(text, starts[some], lengths[some])
        found = np.full(len(lengths), ABSENT, np.int32)
        kept = np.flatnonzero(places >= 0)
        found[kept] = self._table.values(places.take(kept))
        unseen = np.flatnonzero(found == ABSENT)
        places = places.take(unseen)
        # Of equal words one speaks for all: the one whose index their place holds in the end.
        kept, index = np.flatnonzero(places >= 0), np.arange(unseen.size, dtype=np.int32)
        speaks = places < 0
        self._table.set_values(places.take(kept), index.take(kept))
        speaks[kept] = self._table.values(places.take(kept)) == kept
        speakers = np.flatnonzero(speaks)
        places_of_speakers, at = places.take(speakers), unseen.take(speakers)
        found[at] = new.add(text, starts.take(at), lengths.take(at), places_of_speakers)
        kept_at = at[places_of_speakers >= 0]
        self._table.set_values(places_of_speakers[places_of_speakers >= 0], found.take(kept_at))
        self._room -= kept_at.size
        found[unseen.take(kept)] = self._table.values(places.take(kept))
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

    def _learn(self, new: "_NewWords") -> np.ndarray:
        """int32: the values of the new words by number; most are kept from now on."""
        octets, lengths, places = new.all()
        starts = np.cumsum(lengths) - lengths
        values = np.empty(len(lengths), np.int32)
        kept, alone = np.flatnonzero(places >= 0), np.flatnonzero(places < 0)
        for which in (kept, alone):  # in this order, so that the rows of the latter can go again
            if which.size:
                at, sizes = starts.take(which), lengths.take(which)
                values[which] = self._encode_new(octets.take(spans(at, sizes)), sizes)
            if which is kept:
                self._kept_rows = len(self._rows)
        self._table.set_values(places.take(kept), values.take(kept))
        if self._compiled is not None:
            short = kept[lengths.take(kept) <= SHORT]
            words = Text(octets.tobytes()).pairs(starts.take(short), lengths.take(short))
            self._compiled.first_look.add(*words, values.take(short))
        return values

    def _ids_of(self, values: np.ndarray, others: np.ndarray, their: np.ndarray) -> _Ragged:
        """The ids that words of these values have, and where among them texts end.

        `others` are the words of another number of ids than one, and a few more; `their` values.
        """
        if (their >= 0).any():
            values[others] = their  # those that were new have one after all
            left = np.flatnonzero(their < 0)
            others, their = others.take(left), their.take(left)
        rows = ~their
        several, counts = self._rows.take(rows)
        if len(values) > len(self._ones):
            self._ones = np.ones(len(values), np.int64)
        times = self._ones[: len(values)]
        times[others] = counts
        ids = np.repeat(values, times)
        times[others] = 1
        extra = counts - 1
        begins = others + np.cumsum(extra) - extra
        ids[spans(begins, counts)] = several
        return ids, begins[rows == 0]


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """What XLA has compiled, in this process: its threads are not in its children."""

    cutter: "CompiledCutter"
    first_look: "FirstLook"
    process: int


class _NewWords:
    """Words that have no value yet, numbered in the order in which they come."""

    def __init__(self) -> None:
        self._octets = [np.empty(0, np.uint8)]
        self._lengths, self._places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        self._next = _FIRST_NUMBER

    def add(
        self, text: Text, starts: np.ndarray, lengths: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """int32: the numbers of these words, of which a place is -1 where they are not kept."""
        self._octets.append(text.bytes.take(spans(starts, lengths)))
        self._lengths.append(lengths)
        self._places.append(places)
        first, self._next = self._next, self._next + len(lengths)
        return np.arange(first, self._next, dtype=np.int32)

    def all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Their bytes one behind another, their lengths and their places."""
        concatenate = np.concatenate
        return concatenate(self._octets), concatenate(self._lengths), concatenate(self._places)
