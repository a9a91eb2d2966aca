"""Text to token ids and back."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from apr_jax.errors import UserError
from apr_jax.text import reference
from apr_jax.text.characters import nfc
from apr_jax.text.merges import Merges
from apr_jax.text.pretokenizers import PRETOKENIZERS
from apr_jax.text.tokenizer_json import tokenizer_json
from apr_jax.text.vocabulary import Normalization, Vocabulary

_KNOWN_WORDS = 1 << 20  # words kept with their ids; beyond this all are forgotten
_KNOWN_CHARACTERS = 64  # longer words hardly ever come again
_LOT_BYTES = 1 << 20  # words merged together; more fall out of the cache


class TextError(UserError):
    """A text that has no encoding."""


class Tokenizer:
    """Encodes as HuggingFace `tokenizers` does with the same files, id for id.

    Nothing is added to a text's ids: no BOS, no EOS, no truncation.

    Attributes:
      vocabulary: what decides the ids.
      format: "hex", "byte-level", "tokenizer.json" or "tiktoken".
      vocab_size: the highest id plus one.
      normalization: "nfc" or "none".
      eos_id, unk_id: as in the vocabulary, or None.
      sha256: hash of all that decides the ids.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.format = vocabulary.format
        self.vocab_size = vocabulary.size
        self.normalization: Normalization = vocabulary.normalization
        self.eos_id, self.unk_id = vocabulary.eos_id, vocabulary.unk_id
        self.sha256 = vocabulary.sha256()
        self._merges = Merges(*vocabulary.merges_M3.T)
        self._byte_ids = vocabulary.byte_ids()
        self._texts = [b""] * self.vocab_size
        for id_, text in vocabulary.tokens.items():
            self._texts[id_] = text
        for token in vocabulary.added:
            self._texts[token.id] = token.content.encode()
        self._pretokenize: Callable[[str], list[str]] | None = None
        if vocabulary.pretokenizer is not None:
            self._pretokenize = PRETOKENIZERS[vocabulary.pretokenizer]
        self._added: re.Pattern[str] | None = None
        self._added_ids = {token.content: token.id for token in vocabulary.added}
        if vocabulary.finds_added and self._added_ids:
            longest_first = sorted(self._added_ids, key=len, reverse=True)
            self._added = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        # A piece of text is a word (str) or the id of an added token (int). What is known of a
        # piece are its ids as bytes, so that a text's are joined by one call.
        self._known = self._known_added()

    def encode(self, text: str) -> np.ndarray:
        """int32 [n]: the ids of the text. Raises TextError for lone surrogates."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32. Much faster than one by one: new words merge together.

        Raises:
          TextError: a text holds a lone surrogate, which is no Unicode text.
        """
        if len(self._known) > _KNOWN_WORDS:
            self._known = self._known_added()
        pieces = [self._pieces(text) for text in texts]
        known = self._known
        unseen = {piece for text in pieces for piece in text if piece not in known}
        words = [piece for piece in unseen if isinstance(piece, str)]
        ids: dict[str | int, bytes] = dict(zip(words, self._encode_words(words), strict=True))
        if self._pretokenize is not None:
            known |= {word: ids[word] for word in words if len(word) <= _KNOWN_CHARACTERS}
        return [
            np.frombuffer(
                b"".join([known.get(piece) or ids[piece] for piece in text]), "<i4"
            ).astype(np.int32)
            for text in pieces
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens included.

        As in HuggingFace, ids without a token (the spare rows of a model) stand for no text, and
        bytes that are not UTF-8 become U+FFFD.

        Raises:
          TextError: an id is negative.
        """
        texts = []
        for id_ in np.asarray(ids, np.int64).tolist():
            if id_ < 0:
                raise TextError(f"cannot decode the id {id_}: ids are not negative")
            if id_ < self.vocab_size:
                texts.append(self._texts[id_])
        return b"".join(texts).decode("utf-8", errors="replace")

    def token_id(self, content: str) -> int | None:
        """The id of the added token of this spelling, None if there is none."""
        return self._added_ids.get(content)

    def token_bytes(self) -> np.ndarray:
        """uint16 [vocab_size]: bytes of text that each id stands for; 0 for special tokens."""
        sizes = [len(text) for text in self._texts]
        for token in self.vocabulary.added:
            if token.special:
                sizes[token.id] = 0
        if max(sizes) > 0xFFFF:
            raise TextError(f"a token of {max(sizes)} bytes is longer than 65535")
        return np.array(sizes, np.uint16)

    def to_tokenizer_json(self) -> dict[str, Any]:
        """The tokenizer.json with which HuggingFace gives the same ids.

        One difference cannot be written down: a hex vocabulary takes `</s>` in a text for four
        plain bytes, HuggingFace for the special token.
        """
        return tokenizer_json(self.vocabulary)

    def __reduce__(self) -> tuple[type, tuple[Vocabulary]]:
        return Tokenizer, (self.vocabulary,)

    def _known_added(self) -> dict[str | int, bytes]:
        return {id_: np.array([id_], "<i4").tobytes() for id_ in self._added_ids.values()}

    def _pieces(self, text: str) -> list[str | int]:
        if not text.isascii():
            refuse_surrogates(text)
        if self._added is None:
            return self._words(text)
        pieces: list[str | int] = []
        for number, part in enumerate(self._added.split(text)):
            if number % 2:  # what the pattern matched
                pieces.append(self._added_ids[part])
            else:
                pieces += self._words(part)
        return pieces

    def _words(self, text: str) -> list[Any]:
        if self.normalization == "nfc":
            text = nfc(text)
        if self._pretokenize is None:
            return [text] if text else []
        return self._pretokenize(text)

    def _encode_words(self, words: Sequence[str]) -> list[bytes]:
        """The ids of each word as little-endian int32."""
        encoded: list[bytes] = []
        texts = [word.encode() for word in words]
        ends = np.cumsum([len(text) for text in texts])
        lots = np.searchsorted(ends, np.arange(0, ends[-1] if texts else 0, _LOT_BYTES))
        for start, stop in itertools.pairwise([*np.unique(lots).tolist(), len(texts)]):
            encoded += self._merge_lot(texts[start:stop])
        return encoded

    def _merge_lot(self, texts: Sequence[bytes]) -> list[bytes]:
        if not self._merges.is_monotonic:
            plain = [reference.merge(self._byte_ids[list(t)].tolist(), self._ranks) for t in texts]
            return [np.array(ids, "<i4").tobytes() for ids in plain]
        lengths = np.array([len(text) for text in texts], np.int64)
        symbols = np.frombuffer(b"".join(texts), np.uint8)
        ids, lengths = self._merges.apply(self._byte_ids[symbols], lengths)
        data = ids.astype("<i4").tobytes()
        ends = (4 * np.cumsum(lengths)).tolist()
        return [data[start:end] for start, end in itertools.pairwise([0, *ends])]

    @functools.cached_property
    def _ranks(self) -> dict[tuple[int, int], tuple[int, int]]:
        rows = self.vocabulary.merges_M3.tolist()
        return {(left, right): (rank, result) for rank, (left, right, result) in enumerate(rows)}


def refuse_surrogates(text: str) -> None:
    """Raise TextError for a text with a lone surrogate, naming the first."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"character {error.start} of the text is the lone surrogate "
            f"U+{ord(text[error.start]):04X}, which is no Unicode text: repair the input"
        ) from error
