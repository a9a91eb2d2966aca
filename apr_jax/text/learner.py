"""Byte-pair learning: the pair seen most often becomes a token, and again.

The result is that of counting all pairs anew for every merge (`trainer_reference.py`). What makes
it fast: all places of a pair come into being at once, when the younger of its tokens does, and from
then on they only become fewer. So a count that was right once is never too low, and a queue of such
counts needs no upkeep: only the pair at its top is counted anew, among the places that it had.
"""

import heapq
from collections.abc import Iterator, Mapping

import numpy as np

from apr_jax.progress import Progress
from apr_jax.text.tape import Tape, cut, run_lengths, run_starts, split_names

_ANY_LENGTH = 2**31 - 1
_ALL = np.zeros(1, np.int64)
_FEW = 1000  # pairs in the queue, at the least, when it has been filled


def learn_merges(
    counts: Mapping[bytes, int],
    *,
    byte_ids: np.ndarray,
    next_id: int,
    vocab_size: int,
    min_frequency: int,
    longest: int | None = None,
    reserved: Mapping[bytes, int] | None = None,
) -> np.ndarray:
    """Learn merges, none of which crosses from word to word.

    Pairs are counted wherever they stand (`aaa` holds `aa` twice), the pair with the highest count
    is merged, ties go to the smallest (left id, right id).

    Args:
      counts: how often each word occurs; their bytes, and one more for each, are fewer than
        2**31 - 1.
      byte_ids: [256], the token of each byte.
      next_id: the id of the first token that is learned.
      vocab_size: learning ends at this id.
      min_frequency: how often a pair must occur to be merged; below 1 counts as 1.
      longest: bytes that a token may have; any if None, and 2 are always allowed.
      reserved: tokens that have their id already, should they be learned.

    Returns:
      int32 [M, 3] in order of learning: left id, right id, id of the token that they make.
    """
    tape = Tape(counts, byte_ids, max(vocab_size, next_id))
    texts = {int(id_): bytes([byte]) for byte, id_ in enumerate(byte_ids)}
    merges: list[tuple[int, int, int]] = []
    with Progress("learning merges", max(0, vocab_size - next_id), "merges") as progress:
        queue = _Queue(tape, min_frequency, _ANY_LENGTH if longest is None else max(2, longest))
        while next_id < vocab_size and (best := queue.pop(vocab_size - next_id)) is not None:
            left, right, starts = best
            text = texts[left] + texts[right]
            new = (reserved or {}).get(text, next_id)
            next_id += new == next_id
            texts[new] = text
            merges.append((left, right, new))
            queue.push(*tape.merge(starts, left, right, new))
            progress.update()
    return np.array(merges, np.int32).reshape(-1, 3)


class _Queue:
    """The pairs of a tape, the most frequent first.

    Only those are in it that occur `least` times. When none is left, `least` is lowered and all
    pairs are counted. In between, the many that are never merged cost nothing.
    """

    def __init__(self, tape: Tape, min_frequency: int, longest: int) -> None:
        self._tape, self._longest = tape, longest
        self._min_frequency = max(1, min_frequency)
        self._least = np.iinfo(np.int64).max
        # (-count, left, right, places), no pair twice. The pair is at all of the places, or was.
        self._heap: list[tuple[int, int, int, np.ndarray]] = []

    def pop(self, wanted: int) -> tuple[int, int, np.ndarray] | None:
        """The most frequent pair and its positions; None if no pair occurs often enough.

        So many are `wanted` in all.
        """
        while self._heap or self._fill(wanted):
            _, left, right, places = self._heap[0]
            starts = self._tape.where(places, left, right)
            if len(starts) == len(places):
                heapq.heappop(self._heap)
                return left, right, starts
            count = int(self._tape.totals(starts, _ALL)[0]) if len(starts) else 0
            if count >= self._least:
                heapq.heapreplace(self._heap, (-count, left, right, starts))
            else:
                heapq.heappop(self._heap)
        return None

    def push(self, names: np.ndarray, starts: np.ndarray) -> None:
        """Put in the pairs of a new token, each as often as it stands somewhere."""
        if not names.size:
            return
        order = np.argsort(names)
        names, starts = names[order], starts[order]
        first = run_starts(names)
        counts = self._tape.totals(starts, first)
        keep = (counts >= self._least) & (self._tape.sizes(names[first]) <= self._longest)
        places = run_lengths(first, len(names))
        parts = cut(starts[np.repeat(keep, places)], np.cumsum(places[keep]))
        for entry in _entries(names[first[keep]], counts[keep], parts):
            heapq.heappush(self._heap, entry)

    def _fill(self, wanted: int) -> bool:
        """Put in the most frequent of all pairs. False when none is left."""
        if self._least == self._min_frequency:
            return False
        names, counts, places = self._tape.count_pairs(self._longest)
        enough = max(_FEW, min(wanted // 2, len(counts) // 4))
        self._least = self._min_frequency
        if len(counts) > enough:
            self._least = max(self._least, int(np.partition(counts, -enough)[-enough]))
        keep = counts >= self._least
        parts = self._tape.find_pairs(names[keep], places[keep], self._longest)
        self._heap = list(_entries(names[keep], counts[keep], parts))
        heapq.heapify(self._heap)
        return bool(self._heap)


def _entries(
    names: np.ndarray, counts: np.ndarray, places: list[np.ndarray]
) -> Iterator[tuple[int, int, int, np.ndarray]]:
    left, right = split_names(names)
    return zip((-counts).tolist(), left.tolist(), right.tolist(), places, strict=True)
