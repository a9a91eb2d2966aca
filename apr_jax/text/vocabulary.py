"""What decides the ids of a text: tokens, merges, added tokens, normal form, pre-tokeniser."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from apr_jax.errors import UserError

Normalization = Literal["nfc", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = ("nfc", "none")


class TokenizerError(UserError):
    """A tokenizer's files are damaged, of an unknown kind, or ask for what is not supported."""


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is no result of merges. A special one stands for no text."""

    id: int
    content: str
    special: bool


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """One tokenizer, whichever files it was read from.

    Attributes:
      format: "hex", "byte-level", "tokenizer.json" or "tiktoken".
      tokens: the bytes of each ordinary token by id, the 256 single bytes among them.
      merges_M3: int32, by rank: left id, right id, id of the result.
      added: the added tokens.
      finds_added: whether the content of an added token, met in a text, becomes its id. Not so
        for hex vocabularies, whose original takes it for plain bytes.
      normalization: what is done to a text first.
      pretokenizer: name of the rule that cuts a text into words; None: a text is one word.
      eos_id, unk_id: the ids that end a document and stand for what has no token, if any.
      ignores_merges: whether a word that is a token gets its id, whatever the merges make of it.
      prefix_space: whether a space is put before text that does not begin with one.
    """

    format: str
    tokens: Mapping[int, bytes]
    merges_M3: np.ndarray
    added: tuple[AddedToken, ...]
    finds_added: bool
    normalization: Normalization
    pretokenizer: str | None
    eos_id: int | None
    unk_id: int | None
    ignores_merges: bool = False
    prefix_space: bool = False

    @property
    def size(self) -> int:
        """The highest id plus one: how many rows of a model the ids can reach."""
        return max(max(self.tokens), *(token.id for token in self.added), 0) + 1

    def byte_ids(self) -> np.ndarray:
        """int32 [256]: the id of each single byte; -1 for one that has none and is left out."""
        ids = {text[0]: id_ for id_, text in self.tokens.items() if len(text) == 1}
        return np.array([ids.get(byte, -1) for byte in range(256)], np.int32)

    def sha256(self) -> str:
        """The hash of everything that decides ids, independent of the files' layout."""
        rules: dict[str, object] = {
            "added": sorted((t.id, t.content) for t in self.added if self.finds_added),
            "normalization": self.normalization,
            "pretokenizer": self.pretokenizer,
        }
        # Only where they are set, so that older hashes stay.
        rules |= {name: True for name in ("ignores_merges", "prefix_space") if getattr(self, name)}
        digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
        digest.update(self.byte_ids().astype("<i4").tobytes())
        digest.update(self.merges_M3.astype("<i4").tobytes())
        if self.ignores_merges:  # then also tokens that no merge makes decide
            for id_, text in sorted(self.tokens.items()):
                digest.update(f"{id_} {len(text)} ".encode() + text)
        return digest.hexdigest()


# Tables have a row for each id, so an absurd one must not pass. The largest known are near 2**18.
MAX_IDS = 1 << 21


def check_id(source: object, token: str, id_: object) -> int:
    """The id, if it is one. Raises TokenizerError."""
    if type(id_) is not int or not 0 <= id_ < MAX_IDS:
        raise TokenizerError(
            f"{source}: token {token!r} has id {id_!r}, not an integer from 0 to {MAX_IDS - 1}"
        )
    return id_


def check_ids(source: object, ids: Mapping[str, object]) -> dict[str, int]:
    """`ids` from JSON as a map from token to id.

    Raises:
      TokenizerError: an id is no id, or two tokens share one.
    """
    tokens: dict[int, str] = {}
    for token, value in ids.items():
        id_ = check_id(source, token, value)
        if id_ in tokens:
            raise TokenizerError(f"{source}: {tokens[id_]!r} and {token!r} share the id {id_}")
        tokens[id_] = token
    return {token: id_ for id_, token in tokens.items()}


def resolve_merges(ids: Mapping[str, int], merges: Iterable[tuple[str, str, str]]) -> np.ndarray:
    """int32 [M, 3]: the ids of (place in its file, left, right), by rank.

    Raises:
      TokenizerError: a side or the result is no token, or a pair is listed twice.
    """
    rows: list[tuple[int, int, int]] = []
    places: dict[tuple[int, int], str] = {}
    for place, left, right in merges:
        for token in (left, right, left + right):
            if token not in ids:
                raise TokenizerError(
                    f"{place}: merge {left!r} {right!r}: {token!r} is not in the vocabulary"
                )
        pair = ids[left], ids[right]
        if pair in places:
            raise TokenizerError(f"{place}: repeats the merge of {places[pair]}")
        places[pair] = place
        rows.append((*pair, ids[left + right]))
    return np.array(rows, np.int32).reshape(-1, 3)


def read_merges(source: object, text: str) -> list[tuple[str, str, str]]:
    """The lines of a merges.txt as (place, left, right). Only a first `#version` is a comment."""
    merges = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(
                f"{source}:{number}: {line!r} is not two tokens with one space between"
            )
        merges.append((f"{source}:{number}", left, right))
    return merges
