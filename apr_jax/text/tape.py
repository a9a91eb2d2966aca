"""Words as tokens on one tape of cells: merging a pair everywhere is a few array writes."""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from apr_jax.text.ragged import spans

_GAP = np.int32(-(2**31))  # the cell before, between and after words
_INSIDE = np.int32(-(2**31) + 1)  # a cell in which a token started that is now part of another
_NO_TOKEN = ~_GAP
_CHUNK = 1 << 20  # cells looked at together when all of them are


class Tape:
    """Words of tokens in which pairs of neighbours become tokens.

    A byte has a cell. A cell that is not negative says that a token starts there, and which. The
    last cell of a longer token holds the complement of its id, those between are negative, too. So
    the neighbours of a token are found without links, and 4 bytes a cell are all that is kept.

    A pair is named by its left id times 2**32 plus its right id. Positions are int32.
    """

    def __init__(self, counts: Mapping[bytes, int], byte_ids: np.ndarray, vocab_size: int) -> None:
        """Lay out the words, a token for each byte.

        Args:
          counts: how often each word occurs; their bytes, and one more for each, are fewer than
            2**31 - 1.
          byte_ids: [256], the token of each byte.
          vocab_size: what every id stays below.
        """
        lengths = np.fromiter(map(len, counts), np.int64, len(counts))
        gaps = np.concatenate([[0], np.cumsum(lengths + 1)])
        if gaps[-1] >= 2**31 - 1:
            raise ValueError(f"{gaps[-1]} cells do not fit 31 bits: give fewer words")
        text = np.frombuffer(b"\0".join([b"", *counts, b""]), np.uint8)
        self._cells = byte_ids.astype(np.int32)[text]
        self._cells[gaps] = _GAP
        self._sizes = np.ones(vocab_size, np.int32)  # bytes of each token
        self._counts = np.fromiter(counts.values(), np.int64, len(counts))
        self._word: np.ndarray | None = None  # of each cell, unless all words count the same
        if (self._counts != 1).any():
            self._word = np.repeat(np.arange(-1, len(counts), dtype=np.int32), [1, *(lengths + 1)])

    def totals(self, starts: np.ndarray, first: np.ndarray) -> np.ndarray:
        """int64: how often the pairs at these positions occur in the text.

        Those of one total lie together; `first` is where each total begins.
        """
        if self._word is None:
            return run_lengths(first, len(starts))
        return np.add.reduceat(self._counts[self._word[starts]], first)

    def sizes(self, names: np.ndarray) -> np.ndarray:
        """int32: the bytes of these pairs."""
        left, right = split_names(names)
        return self._sizes[left] + self._sizes[right]

    def where(self, starts: np.ndarray, left: int, right: int) -> np.ndarray:
        """Those of the positions at which the pair still stands."""
        after = starts + self._sizes[left]
        return starts[(self._cells[starts] == left) & (self._cells[after] == right)]

    def merge(
        self, starts: np.ndarray, left: int, right: int, new: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make the pair one token wherever it stands, which is at `starts`.

        Returns:
          The names of the pairs with the new token in them, and their positions.
        """
        if left == right:
            starts = _every_other(starts, int(self._sizes[left]))
        middle = starts + self._sizes[left]
        end = middle + self._sizes[right]
        self._sizes[new] = self._sizes[left] + self._sizes[right]
        self._cells[middle] = _INSIDE
        self._cells[end - 1] = ~new
        self._cells[starts] = new
        before, after = self._cells[starts - 1], self._cells[end]
        before = np.where(before < 0, ~before, before)
        # Two new tokens side by side are one pair: it is taken from the left one.
        has_left, has_right = (before != _NO_TOKEN) & (before != new), after != _GAP
        before = before[has_left]
        names = np.concatenate([_names(before, new), _names(new, after[has_right])])
        return names, np.concatenate([starts[has_left] - self._sizes[before], starts[has_right]])

    def count_pairs(self, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of at most `longest` bytes: names, occurrences in the text, and on the tape.

        Pairs that overlap, as the two in aaa, all count. The names ascend.
        """
        parts = [np.empty((3, 0), np.int64)]
        for names, starts in self._pairs(longest):
            first = run_starts(names)
            places = run_lengths(first, len(starts))
            parts.append(np.stack([names[first], self.totals(starts, first), places]))
        names, counts, places = np.concatenate(parts, axis=1)
        if not names.size:
            return names, counts, places
        order = np.argsort(names)
        first = run_starts(names[order])
        sums = (np.add.reduceat(values[order], first) for values in (counts, places))
        return names[order][first], *sums

    def find_pairs(self, names: np.ndarray, places: np.ndarray, longest: int) -> list[np.ndarray]:
        """The positions of each of these pairs, which stand at so many `places`. Names ascend."""
        ends = np.cumsum(places)
        free = ends - places
        found = np.empty(int(places.sum()), np.int32)
        for chunk_names, starts in self._pairs(longest):
            first = np.searchsorted(chunk_names, names)
            here = np.searchsorted(chunk_names, names, side="right") - first
            found[spans(free, here)] = starts[spans(first, here)]
            free += here
        return cut(found, ends)

    def _pairs(self, longest: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Chunk by chunk of the tape, the names of its pairs, ascending, and their positions."""
        for begin in range(0, len(self._cells), _CHUNK):
            starts = np.flatnonzero(self._cells[begin : begin + _CHUNK] >= 0).astype(np.int32)
            starts += begin
            left = self._cells[starts]
            right = self._cells[starts + self._sizes[left]]
            is_pair = right != _GAP
            names, starts = _names(left[is_pair], right[is_pair]), starts[is_pair]
            fits = np.flatnonzero(self.sizes(names) <= longest)
            if fits.size:
                order = fits[np.argsort(names[fits])]
                yield names[order], starts[order]


def run_starts(values: np.ndarray) -> np.ndarray:
    """int64: where each run of equal values begins; there is at least one."""
    return np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])


def run_lengths(first: np.ndarray, size: int) -> np.ndarray:
    """int64: how long each run is in `size` values, by where it begins."""
    return np.append(first[1:], size) - first


def cut(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """The values up to each of the ends; np.split without its overhead."""
    return [values[start:end] for start, end in itertools.pairwise([0, *ends.tolist()])]


def _names(left: np.ndarray | int, right: np.ndarray | int) -> np.ndarray:
    return np.asarray(left, np.int64) << 32 | right


def split_names(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64: the left and the right ids of the pairs of these names."""
    return names >> 32, names & 0xFFFFFFFF


def _every_other(starts: np.ndarray, step: int) -> np.ndarray:
    """Of the positions of a pair of equals, those left when each token is in one pair only.

    They are taken from the left in every run of overlapping pairs, as in aaaa.
    """
    starts = np.sort(starts)
    index = np.arange(len(starts))
    begins_run = np.ones(len(starts), bool)
    begins_run[1:] = np.diff(starts) != step
    run_start = np.maximum.accumulate(np.where(begins_run, index, 0))
    return starts[(index - run_start) % 2 == 0]
