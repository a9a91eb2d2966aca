"""Byte-pair learning in plain Python: what `learner.py` must equal."""

import collections
import itertools
from collections.abc import Mapping


def learn_merges(
    counts: Mapping[bytes, int],
    byte_ids: Mapping[int, int],
    next_id: int,
    vocab_size: int,
    min_frequency: int,
    longest: int | None = None,
    reserved: Mapping[bytes, int] | None = None,
) -> list[tuple[int, int, int]]:
    """Count all pairs, merge the best everywhere from the left, and so on.

    Args:
      counts: how often each word occurs.
      byte_ids: the token of each byte.
      next_id, vocab_size: the id of the first token that is learned, and the id to stop at.
      min_frequency: how often a pair must occur.
      longest: bytes that a token may have, if it has more than 2.
      reserved: tokens that have their id already, should they be learned.

    Returns:
      Left id, right id and the id of what they make, in order of learning.
    """
    words = [([byte_ids[byte] for byte in word], count) for word, count in counts.items()]
    texts = {id_: bytes([byte]) for byte, id_ in byte_ids.items()}
    merges: list[tuple[int, int, int]] = []
    while next_id < vocab_size:
        pairs: collections.Counter[tuple[int, int]] = collections.Counter()
        for ids, count in words:
            for pair in itertools.pairwise(ids):
                pairs[pair] += count
        allowed = [
            pair
            for pair, count in pairs.items()
            if count >= max(1, min_frequency)
            and (longest is None or sum(len(texts[id_]) for id_ in pair) <= max(2, longest))
        ]
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-pairs[pair], pair))
        text = texts[best[0]] + texts[best[1]]
        new = (reserved or {}).get(text, next_id)
        next_id += new == next_id
        texts[new] = text
        merges.append((*best, new))
        for ids, _ in words:
            _replace(ids, best, new)
    return merges


def _replace(ids: list[int], pair: tuple[int, int], new: int) -> None:
    index = 0
    while index < len(ids) - 1:
        if (ids[index], ids[index + 1]) == pair:
            ids[index : index + 2] = [new]
        index += 1
