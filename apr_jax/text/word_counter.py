"""Counting words by operations on arrays, for any rule of `pretokenizers`.

A table tells of most words at once which they are. Those that it does not know, new ones and the
few that it has no room for, go through a dictionary one by one.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from apr_jax.text.cutting import Cutter
from apr_jax.text.pieces import cut_texts
from apr_jax.text.pretokenizers import Rule
from apr_jax.text.word_table import ABSENT, Text, WordTable

_PIECE = 1 << 18  # bytes looked at together
_BITS = 20
_NO_WORD = -1  # the value of dividers


class WordCounter:
    """How often each word occurs in texts, of any number and size."""

    def __init__(self, rule: Rule, counts: Mapping[bytes, int]) -> None:
        """Cut texts by the rule, and go on from these counts."""
        self._cutter = Cutter(rule)
        # A word's value in the table is its number; not every word is there.
        self._table, self._room = WordTable(_BITS, _NO_WORD), 1 << _BITS - 1
        self._numbers: dict[bytes, int] = {}
        self._counts = np.empty(0, np.int64)
        self._add(counts)

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def counts(self) -> dict[bytes, int]:
        """The count of each word, in the order in which they were first seen."""
        return dict(zip(self._numbers, self._counts.tolist(), strict=True))

    def update(self, texts: Sequence[str]) -> None:
        """Count the words of the texts, in which no lone surrogate is."""
        known, unknown = [np.empty(0, np.int32)], collections.Counter[bytes]()
        for text, bounds in cut_texts(self._cutter, [*map(str.encode, texts)], piece=_PIECE):
            values = self._table.find(text, bounds[:-1], np.diff(bounds))
            known.append(values[values >= 0])
            absent = np.flatnonzero(values == ABSENT)
            data = text.bytes.tobytes()
            begins, ends = bounds[absent].tolist(), bounds[absent + 1].tolist()
            unknown.update([data[begin:end] for begin, end in zip(begins, ends, strict=True)])
        self._counts += np.bincount(np.concatenate(known), minlength=len(self))
        self._add(unknown)

    def _add(self, counts: Mapping[bytes, int]) -> None:
        """Add the counts of words that the table does not know."""
        first = len(self)
        numbers = [self._numbers.setdefault(word, len(self)) for word in counts]
        self._counts = np.concatenate([self._counts, np.zeros(len(self) - first, np.int64)])
        self._counts[numbers] += np.fromiter(counts.values(), np.int64, len(counts))
        new = [word for word, number in zip(counts, numbers, strict=True) if number >= first]
        self._keep(first, new[: self._room])

    def _keep(self, first: int, words: list[bytes]) -> None:
        """Put words into the table, which have the numbers from `first` on."""
        self._room -= len(words)
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        places = self._table.claim(Text(b"".join(words)), np.cumsum(lengths) - lengths, lengths)
        kept = np.flatnonzero(places >= 0)
        self._table.set_values(places[kept], (first + kept).astype(np.int32))
