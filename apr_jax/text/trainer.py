"""Learning a hex vocabulary from documents: the pair seen most often becomes a token, and again.

The result is that of counting all pairs anew for every merge. What is really done: the pairs'
counts are kept, and a merge changes them only around the places that it touches.
"""

import heapq
from collections.abc import Iterable

import numpy as np

from apr_jax.errors import UserError
from apr_jax.progress import Progress
from apr_jax.text.chain import Chain
from apr_jax.text.characters import nfc
from apr_jax.text.hex_format import FIRST_MERGED, NORMALIZATIONS, SPECIALS, hex_vocabulary
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.vocabulary import Normalization


def train_bpe(
    documents: Iterable[str],
    vocab_size: int,
    min_frequency: int = 2,
    normalization: Normalization = "nfc",
) -> Tokenizer:
    """Learn the vocabulary that `apr tokenize train` learns from these documents.

    A document is one word. Pairs are counted wherever they stand (`aaa` holds `aa` twice), the
    pair with the highest count is merged, ties go to the smallest (left id, right id).

    Args:
      documents: the texts; all are held in memory, with index arrays many times their size.
      vocab_size: tokens to reach, 10 to 1,000,000. The 5 special ones and the 256 bytes are always
        there; fewer merges are learned when no pair is left that is seen often enough.
      min_frequency: how often a pair must be seen; below 1 counts as 1.
      normalization: "nfc" or "none", done to the documents first, and later to what is encoded.

    Raises:
      UserError: there is no document, or a value is out of range.
    """
    if not 10 <= vocab_size <= 1_000_000:
        raise UserError(f"vocab_size={vocab_size} is not between 10 and 1000000")
    if normalization not in NORMALIZATIONS:
        raise UserError(f"normalization={normalization!r} is not one of {NORMALIZATIONS}")
    texts = [(nfc(text) if normalization == "nfc" else text).encode() for text in documents]
    if not any(texts):
        raise UserError("there is no text to learn from: every document is empty, or there is none")
    if sum(map(len, texts)) + len(texts) >= 2**31 - 1:
        raise UserError("the documents are larger than 2 GB: learn from a part of them")
    merges = _learn(texts, max(0, vocab_size - FIRST_MERGED), max(1, min_frequency))
    return Tokenizer(hex_vocabulary(merges, normalization))


def _learn(texts: list[bytes], wanted: int, min_frequency: int) -> list[tuple[int, int]]:
    """The pairs that were merged, in order. Merge n makes the id FIRST_MERGED + n."""
    ids = np.frombuffer(b"".join(texts), np.uint8).astype(np.int32) + len(SPECIALS)
    chain = Chain(ids, np.array([len(text) for text in texts]))
    pairs = _Pairs(chain)
    merges: list[tuple[int, int]] = []
    with Progress("learning merges", wanted, "merges") as progress:
        while len(merges) < wanted:
            best = pairs.most_frequent(min_frequency)
            if best is None:
                break
            new = FIRST_MERGED + len(merges)
            positions = chain.occurrences(pairs.places(best), *best)
            pairs.remove(chain.neighbourhood(positions))
            pairs.add(chain.merge(positions, new))
            merges.append(best)
            progress.update()
    return merges


class _Pairs:
    """How often each pair of neighbours occurs in a chain, and where it may be found."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._counts: dict[int, int] = {}
        self._places: dict[int, list[np.ndarray]] = {}
        self._heap: list[tuple[int, int]] = []  # (-count, pair), some of them out of date
        self.add(np.arange(len(chain.ids), dtype=np.int32))

    def add(self, positions: np.ndarray) -> None:
        """Count the pairs that begin at these positions."""
        for pair, places in self._by_pair(positions):
            count = self._counts.get(pair, 0) + len(places)
            self._counts[pair] = count
            self._places.setdefault(pair, []).append(places)
            heapq.heappush(self._heap, (-count, pair))

    def remove(self, positions: np.ndarray) -> None:
        """Count the pairs that begin at these positions no longer."""
        for pair, places in self._by_pair(positions):
            self._counts[pair] -= len(places)
            if not self._counts[pair]:
                del self._counts[pair], self._places[pair]

    def most_frequent(self, least: int) -> tuple[int, int] | None:
        """The pair with the highest count, the smallest of equals; None if it is below `least`."""
        while self._heap:
            count, pair = self._heap[0]
            now = self._counts.get(pair, 0)
            if now == -count:
                return (pair >> 32, pair & 0xFFFFFFFF) if now >= least else None
            # Counts that grew were pushed when they did; one that shrank is pushed here.
            if 0 < now < -count:
                heapq.heapreplace(self._heap, (-now, pair))
            else:
                heapq.heappop(self._heap)
        return None

    def places(self, pair: tuple[int, int]) -> np.ndarray:
        """Positions among which are all those of the pair."""
        return np.concatenate(self._places[pair[0] << 32 | pair[1]])

    def _by_pair(self, positions: np.ndarray) -> list[tuple[int, np.ndarray]]:
        left, right = self._chain.pairs(positions)
        is_pair = (left >= 0) & (right >= 0)
        keys = left[is_pair].astype(np.int64) << 32 | right[is_pair]
        order = np.argsort(keys, kind="stable")
        keys, positions = keys[order], positions[is_pair][order]
        bounds = np.flatnonzero(keys[1:] != keys[:-1]) + 1
        starts, stops = [0, *bounds.tolist()], [*bounds.tolist(), len(keys)]
        if not len(keys):
            return []
        return [
            (pair, positions[start:stop])
            for pair, start, stop in zip(keys[starts].tolist(), starts, stops, strict=True)
        ]
