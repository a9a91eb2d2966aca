"""Text to token ids and back."""

import functools
import itertools
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apr_jax.errors import UserError
from apr_jax.text.added_tokens import AddedTokens
from apr_jax.text.batch_encoder import BatchEncoder
from apr_jax.text.characters import encode_nfc
from apr_jax.text.known_words import KnownWords, row
from apr_jax.text.lots import lots
from apr_jax.text.merges import Merges
from apr_jax.text.pieces import breaks_of_text, cuts
from apr_jax.text.pretokenizers import PRETOKENIZERS, Rule
from apr_jax.text.ragged import spans
from apr_jax.text.tokenizer_json import tokenizer_json
from apr_jax.text.vocabulary import Normalization, Vocabulary

if TYPE_CHECKING:
    from apr_jax.text.compiled_merges import CompiledMerges

_SMALL = 4096  # characters; what is less is quicker word by word, from a dictionary
_MANY = 32  # words from which on it is quicker to begin merging them together
_SLICE = 1 << 21  # characters of one text that are normalised and encoded together
_LOT = 1 << 23  # bytes encoded before the next are looked at
_LOT_BYTES = 1 << 20  # words merged together; more fall out of the cache
_SURROGATE = re.compile("[\ud800-\udfff]")


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
        left, right, result = vocabulary.merges_M3.T
        self._merges = Merges(left, right, result, size=self.vocab_size)
        self._merging: Merges | CompiledMerges = self._merges
        self._batch_encoder: BatchEncoder | None = None
        self._lock, self._compiling = threading.Lock(), threading.Lock()
        self._byte_ids = vocabulary.byte_ids()
        self._byte_list = self._byte_ids.tolist()
        self._has_all_bytes = bool((self._byte_ids >= 0).all())
        self._texts = [b""] * self.vocab_size
        for id_, text in vocabulary.tokens.items():
            self._texts[id_] = text
        for token in vocabulary.added:
            self._texts[token.id] = token.content.encode()
        self._rule: Rule | None = None
        if vocabulary.pretokenizer is not None:
            self._rule = PRETOKENIZERS[vocabulary.pretokenizer]
        self._added = AddedTokens(vocabulary.added, are_found=vocabulary.finds_added)
        self._known = KnownWords(self._encode_each)

    def encode(self, text: str) -> np.ndarray:
        """int32 [n]: the ids of the text.

        Raises:
          TextError: the text holds a lone surrogate.
          TypeError: it is no str.
        """
        return self.encode_flat([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32: views on what `encode_flat` gives.

        Raises:
          TextError: a text holds a lone surrogate, which is no Unicode text.
          TypeError: a text is no str, or `texts` is one itself.
        """
        ids, offsets = self.encode_flat(texts)
        return [ids[start:stop] for start, stop in itertools.pairwise(offsets.tolist())]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts one behind another. Megabytes at once are fastest.

        Returns:
          ids: int32, those of text i from offsets[i] to offsets[i + 1].
          offsets: int64 [texts + 1].

        Raises:
          TextError: a text holds a lone surrogate, which is no Unicode text.
          TypeError: a text is no str, or `texts` is one itself.
        """
        texts = as_texts(texts)
        try:
            if self._rule is not None and sum(map(len, texts)) < _SMALL:
                return self._encode_few(texts)
            return self._encode_lots(texts)
        except UnicodeEncodeError as error:
            raise lone_surrogate(texts) from error

    def compile(self, *, merges: bool = True) -> None:
        """Compile what XLA does faster than NumPy: worth while for hundreds of megabytes.

        Python source gains most, Chinese and Japanese nothing. It takes two seconds and starts JAX
        in this process, with all its devices. Processes that are forked later encode without it.

        Args:
          merges: whether the merging of new words too, which takes half of the time, and pays from
            half a gigabyte to a gigabyte on.

        Raises:
          UserError: JAX is told not to use the CPU, or this process was forked from one that has
            compiled. In the child of one that uses JAX in another way it waits for ever.
        """
        if self._rule is None or not self._rule.joins:
            return  # nothing is compiled for what is cut word by word
        from apr_jax.text.compiled_merges import CompiledMerges  # here, since they import JAX
        from apr_jax.text.on_cpu import for_one_core

        with self._compiling, for_one_core():
            self._batches.compile()
            if merges and self._merging is self._merges:
                self._merging = CompiledMerges(self._merges)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens included.

        As in HuggingFace, ids without a token (the spare rows of a model) stand for no text, and
        bytes that are not UTF-8 become U+FFFD.

        Raises:
          TextError: an id is negative.
          TypeError: the ids are no integers in one row.
        """
        texts = [self._texts[id_] for id_ in known_ids(ids, self.vocab_size)]
        return b"".join(texts).decode("utf-8", errors="replace")

    def token_id(self, content: str) -> int | None:
        """The id of the added token of this spelling, None if there is none."""
        return self._added.ids.get(content)

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

    def _encode_lots(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `encode_flat`, some millions of bytes at a time."""
        added: list[int] = []  # the ids of added tokens
        parts_before: list[int] = []  # how many parts, which lie between them, stand before each
        counts = [(0, 0)]  # of parts and added tokens, up to each text's end

        def parts() -> Iterator[bytes]:
            number = 0
            for text in texts:
                for at, part in enumerate(self._added.split(text)):
                    if at % 2:  # what the pattern matched
                        added.append(self._added.ids[part])
                        parts_before.append(number)
                        continue
                    slices = self._slices(part) if len(part) > _SLICE else (self._octets(part),)
                    for slice_ in slices:
                        number += 1
                        yield slice_
                counts.append((number, len(added)))

        encoded = [self._encode_many(lot) for lot in lots(parts(), _LOT)]
        rows = [ids for ids, _ in encoded] or [np.empty(0, np.int32)]
        ids = rows[0] if len(rows) == 1 else np.concatenate(rows)
        ends = np.cumsum(np.concatenate([[0], *(lengths for _, lengths in encoded)]))
        part_counts, added_counts = np.array(counts).T
        return _insert(ids, ends[parts_before], added), ends[part_counts] + added_counts

    def _slices(self, part: str) -> Iterator[bytes]:
        """The `_octets` of the part, in slices that are cut alone as they are within it."""
        if self._rule is None:
            yield self._octets(part)
            return
        for start, stop in cuts(part, breaks_of_text(self._rule), _SLICE):
            yield self._octets(part[start:stop], is_first=not start)

    def _octets(self, part: str, is_first: bool = True) -> bytes:
        """The form that is cut into words. Raises UnicodeEncodeError for lone surrogates."""
        octets = encode_nfc(part) if self.normalization == "nfc" else part.encode()
        if self.vocabulary.prefix_space and is_first and part and not part.startswith(" "):
            return b" " + octets
        return octets

    def _encode_few(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `encode_flat`, word by word from a dictionary."""
        rows = [self._row(text) for text in texts]
        sizes = np.array([0, *map(len, rows)], np.int64)
        return np.frombuffer(bytearray().join(rows), np.int32), np.cumsum(sizes) // 4

    def _row(self, text: str) -> bytes:
        """The ids of the text, as the bytes of int32s."""
        assert self._rule is not None
        rows: list[bytes] = []
        for number, part in enumerate(self._added.split(text)):
            if number % 2:  # what the pattern matched
                rows.append(row([self._added.ids[part]]))
            elif part:
                rows += self._known.rows(self._rule.split(self._octets(part).decode()))
        return b"".join(rows)

    def _encode_many(self, parts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all parts, and how many each has. Without a rule each part is one word."""
        if self._rule is not None:
            return self._batches.encode(parts) if self._rule.joins else self._encode_plain(parts)
        lengths = np.array([*map(len, parts)], np.int64)
        return self._merge(np.frombuffer(b"".join(parts), np.uint8), lengths)

    def _encode_plain(self, parts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """As `_encode_many`, word by word."""
        assert self._rule is not None
        rows = [b"".join(self._known.rows(self._rule.split(part.decode()))) for part in parts]
        lengths = np.array([len(row) // 4 for row in rows], np.int64)
        return np.frombuffer(bytearray().join(rows), np.int32), lengths

    def _encode_each(self, words: Sequence[bytes]) -> list[list[int]]:
        """The ids of each of a few words."""
        whole = [*map(self._whole_words.get, words)]
        rest = [word for word, id_ in zip(words, whole, strict=True) if id_ is None]
        merged = self._merge_each(rest)
        return [next(merged) if id_ is None else [id_] for id_ in whole]

    def _merge_each(self, words: Sequence[bytes]) -> Iterator[list[int]]:
        """What the merges make of each of a few words."""
        if len(words) < _MANY or not self._has_all_bytes:
            return map(self._merge_word, words)
        lengths = np.array([*map(len, words)], np.int64)
        octets = np.frombuffer(b"".join(words), np.uint8)
        return self._merges.apply_few(self._byte_ids.take(octets), lengths)

    def _merge_word(self, word: bytes) -> list[int]:
        ids = [self._byte_list[octet] for octet in word]
        return self._merges.merge_one(ids if self._has_all_bytes else [i for i in ids if i >= 0])

    def _encode_words(
        self, octets: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of words that lie one behind another, and how many each has."""
        if not self.vocabulary.ignores_merges:
            return self._merge(octets, lengths)
        starts = np.cumsum(lengths) - lengths
        ends = (starts + lengths).tolist()
        words = [
            octets[start:end].tobytes() for start, end in zip(starts.tolist(), ends, strict=True)
        ]
        whole = np.array([self._whole_words.get(word, -1) for word in words], np.int32)
        rest = np.flatnonzero(whole < 0)
        counts = np.ones(len(words), np.int64)
        ids, counts[rest] = self._merge(octets[spans(starts[rest], lengths[rest])], lengths[rest])
        is_whole = np.repeat(whole >= 0, counts)
        found = np.empty(len(is_whole), np.int32)
        found[is_whole], found[~is_whole] = whole[whole >= 0], ids
        return found, counts

    def _merge(self, octets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the merges make of words that lie one behind another."""
        symbols = self._byte_ids.take(octets)
        if not self._has_all_bytes:  # HuggingFace leaves out what has no token
            is_known = symbols >= 0
            word = np.repeat(np.arange(len(lengths)), lengths)[is_known]
            symbols, lengths = symbols[is_known], np.bincount(word, minlength=len(lengths))
        ends = np.cumsum(lengths)
        rows: list[np.ndarray] = [np.empty(0, np.int32)]
        counts: list[np.ndarray] = [np.empty(0, np.int64)]
        first = 0
        while first < len(lengths):
            start = int(ends[first] - lengths[first])
            last = max(first + 1, int(np.searchsorted(ends, start + _LOT_BYTES)))
            lot = symbols[start : ends[last - 1]]
            ids, merged_lengths = self._merging.apply(lot, lengths[first:last])
            rows.append(ids)
            counts.append(merged_lengths)
            first = last
        return np.concatenate(rows), np.concatenate(counts)

    @property
    def _batches(self) -> BatchEncoder:
        with self._lock:  # of two, what one has learned or compiled would be lost
            if self._batch_encoder is None:
                assert self._rule is not None
                words = [*self._whole_words]
                octets = np.frombuffer(b"".join(words), np.uint8)
                lengths = np.array([len(word) for word in words], np.int64)
                ids = np.array([*self._whole_words.values()], np.int32)
                self._batch_encoder = BatchEncoder(
                    self._rule, self._encode_words, (octets, lengths), ids
                )
            return self._batch_encoder

    @functools.cached_property
    def _whole_words(self) -> dict[bytes, int]:
        """The words that have one id, most frequent ones first."""
        # The byte 0xFF is in no text, and stands for dividers between texts.
        tokens = {
            text: id_ for id_, text in sorted(self.vocabulary.tokens.items()) if b"\xff" not in text
        }
        if self.vocabulary.ignores_merges:
            return tokens
        lengths = np.array([len(text) for text in tokens], np.int64)
        ids, counts = self._merge(np.frombuffer(b"".join(tokens), np.uint8), lengths)
        first = np.append(ids, -1)[np.cumsum(counts) - counts]
        is_whole = (counts == 1) & (first == np.array([*tokens.values()], np.int32))
        return dict(itertools.compress(tokens.items(), is_whole.tolist()))


def as_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises TypeError for what is no text, or no list of them."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts is one {type(texts).__name__}, not a list of str")
    texts = texts if isinstance(texts, list) else [*texts]
    for kind in set(map(type, texts)):
        if not issubclass(kind, str):
            number = next(at for at, text in enumerate(texts) if type(text) is kind)
            raise TypeError(f"text {number} is a {kind.__name__}, not a str")
    return texts


def known_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Those of the ids that a vocabulary of this size has.

    Raises:
      TextError: an id is negative.
      TypeError: the ids are no integers in one row.
    """
    try:
        row = np.asarray(ids if hasattr(ids, "__array__") else [*ids])
    except ValueError as error:  # rows of different lengths
        raise TypeError("ids are not one row of integers: decode one row at a time") from error
    if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
        raise TypeError(
            f"ids are {row.dtype}{[*row.shape]}, not one row of integers: decode one row at a time"
        )
    if row.size and row.min() < 0:
        raise TextError(f"cannot decode the id {row.min()}: ids are not negative")
    return row[row < vocab_size].tolist()


def lone_surrogate(texts: Sequence[str]) -> TextError:
    """The error for texts with a lone surrogate: it names the first."""
    found = ((number, _SURROGATE.search(text)) for number, text in enumerate(texts))
    number, match = next((number, match) for number, match in found if match)
    which = "the text" if len(texts) == 1 else f"text {number}"
    return TextError(
        f"character {match.start()} of {which} is the lone surrogate U+{ord(match[0]):04X}, which "
        "is no Unicode text: repair the input"
    )


def _insert(ids: np.ndarray, at: np.ndarray, added: Sequence[int]) -> np.ndarray:
    """`ids` with those of added tokens before these places."""
    if not added:
        return ids
    is_added = np.zeros(len(ids) + len(added), bool)
    is_added[at + np.arange(len(added))] = True
    merged = np.empty(len(is_added), np.int32)
    merged[is_added], merged[~is_added] = added, ids
    return merged
