"""Encoding in plain Python, one word after the other: what the array operations must equal."""

import itertools
import re
from collections.abc import Mapping, Sequence

from apr_jax.text.characters import nfc
from apr_jax.text.pretokenizers import PRETOKENIZERS
from apr_jax.text.vocabulary import Vocabulary


class Encoder:
    """Encodes as `Tokenizer` does, slowly."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._byte_ids = vocabulary.byte_ids().tolist()
        self._merges = {
            (left, right): (rank, result)
            for rank, (left, right, result) in enumerate(vocabulary.merges_M3.tolist())
        }
        self._whole: dict[bytes, int] = {}
        if vocabulary.ignores_merges:
            self._whole = {text: id_ for id_, text in vocabulary.tokens.items()}

    def encode(self, text: str) -> list[int]:
        """The ids of the text."""
        ids: list[int] = []
        added = {token.content: token.id for token in self._vocabulary.added}
        if not self._vocabulary.finds_added or not added:
            return self._encode_part(text)
        pattern = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        for number, part in enumerate(re.split(f"({pattern})", text)):
            ids += [added[part]] if number % 2 else self._encode_part(part)
        return ids

    def _encode_part(self, part: str) -> list[int]:
        if self._vocabulary.normalization == "nfc":
            part = nfc(part)
        if self._vocabulary.prefix_space and part and not part.startswith(" "):
            part = " " + part
        if self._vocabulary.pretokenizer is None:
            return self._encode_word(part)
        words = PRETOKENIZERS[self._vocabulary.pretokenizer].split(part)
        return [id_ for word in words for id_ in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        octets = word.encode()
        if octets in self._whole:
            return [self._whole[octets]]
        ids = [self._byte_ids[octet] for octet in octets]
        return merge([id_ for id_ in ids if id_ >= 0], self._merges)


def merge(ids: Sequence[int], merges: Mapping[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Merge the pair of lowest rank, the leftmost of equals, until none is left.

    Args:
      ids: the ids to start from.
      merges: from (left id, right id) to (rank, id of the merged token).
    """
    ids = list(ids)
    while True:
        ranked = [
            (merges[pair][0], index)
            for index, pair in enumerate(itertools.pairwise(ids))
            if pair in merges
        ]
        if not ranked:
            return ids
        _, index = min(ranked)
        ids[index : index + 2] = [merges[ids[index], ids[index + 1]][1]]
