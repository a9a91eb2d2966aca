"""Learning vocabularies from text: hex ones as `apr tokenize train` does, byte-level ones as
HuggingFace's `BpeTrainer` does, merge for merge."""

import collections
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from apr_jax.errors import UserError
from apr_jax.text.hex_format import FIRST_MERGED, SPECIALS, hex_vocabulary
from apr_jax.text.learned_format import (
    byte_level_ids,
    byte_level_vocabulary,
    check_special_tokens,
    reserved_ids,
)
from apr_jax.text.learner import learn_merges
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.vocabulary import Normalization
from apr_jax.text.words import Words, normalized

MAX_VOCAB_SIZE = 1_000_000


def train_bpe(
    documents: Iterable[str],
    vocab_size: int,
    min_frequency: int = 2,
    normalization: Normalization = "nfc",
) -> Tokenizer:
    """Learn the hex vocabulary that `apr tokenize train` learns from these documents.

    A document is one word. Pairs are counted wherever they stand (`aaa` holds `aa` twice), the
    pair with the highest count is merged, ties go to the smallest (left id, right id).

    Args:
      documents: the texts, of less than 2 GB. All are in memory, 14 to 18 bytes for each of theirs.
      vocab_size: tokens to reach, 10 to 1,000,000. The 5 special ones and the 256 bytes are always
        there; fewer merges are learned when no pair is left that is seen often enough.
      min_frequency: how often a pair must be seen; below 1 counts as 1.
      normalization: "nfc" or "none", done to the documents first, and later to what is encoded.

    Raises:
      UserError: there is no text, or a value is out of range.
    """
    _check_size(vocab_size, 10)
    counts = collections.Counter(text.encode() for text in normalized(documents, normalization))
    _check_bytes(counts)
    byte_ids = np.arange(len(SPECIALS), FIRST_MERGED)
    merges_M3 = learn_merges(
        counts,
        byte_ids=byte_ids,
        next_id=FIRST_MERGED,
        vocab_size=vocab_size,
        min_frequency=min_frequency,
    )
    pairs = [(left, right) for left, right, _ in merges_M3.tolist()]
    return Tokenizer(hex_vocabulary(pairs, normalization))


def train_byte_level_bpe(
    words: Words,
    vocab_size: int,
    *,
    min_frequency: int = 2,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    max_token_length: int | None = None,
) -> Tokenizer:
    """Learn a byte-level vocabulary, whose merges stay within words.

    Merges and ids are those of HuggingFace's `BpeTrainer` with `initial_alphabet` set to all of
    `ByteLevel.alphabet()`. Its `limit_alphabet` has no counterpart: without all 256 bytes there is
    text that cannot be encoded, and which it drops among equals is not determined.

    Args:
      words: what `count_words` counted.
      vocab_size: tokens to reach, up to 1,000,000. The special ones and the 256 bytes are always
        there; fewer merges are learned when no pair is left that is seen often enough.
      min_frequency: how often a pair must occur to be merged; below 1 counts as 1.
      special_tokens: the tokens with the first ids. They have no part in learning.
      max_token_length: bytes that tokens of more than two bytes stay below, as in HuggingFace.

    Raises:
      UserError: a value is out of range.
    """
    check_byte_level(vocab_size, special_tokens, max_token_length)
    first = len(special_tokens) + 256
    _check_bytes(words.counts)
    merges_M3 = learn_merges(
        words.counts,
        byte_ids=byte_level_ids(len(special_tokens)),
        next_id=first,
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        reserved=reserved_ids(special_tokens),
        longest=None if max_token_length is None else max_token_length - 1,
    )
    return Tokenizer(
        byte_level_vocabulary(merges_M3, special_tokens, words.normalization, words.pretokenizer)
    )


def check_byte_level(
    vocab_size: int, special_tokens: Sequence[str], max_token_length: int | None
) -> None:
    """Raise the UserErrors of `train_byte_level_bpe`, before words are counted for it."""
    check_special_tokens(special_tokens)
    _check_size(vocab_size, len(special_tokens) + 256)
    if max_token_length is not None and max_token_length < 1:
        raise UserError(f"max_token_length={max_token_length} is less than 1")


def _check_size(vocab_size: int, least: int) -> None:
    if not least <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(f"vocab_size={vocab_size} is not between {least} and {MAX_VOCAB_SIZE}")


def _check_bytes(counts: Mapping[bytes, int]) -> None:
    if sum(map(len, counts)) + len(counts) >= 2**31 - 1:
        raise UserError(
            "there are more than 2 GB of different words: learn from a part of the text"
        )
