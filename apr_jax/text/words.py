"""Counting the words of a corpus: all that learning a byte-level vocabulary needs to know of it."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from apr_jax.errors import UserError
from apr_jax.progress import Progress
from apr_jax.text.characters import nfc
from apr_jax.text.lots import lots
from apr_jax.text.pretokenizers import PRETOKENIZERS
from apr_jax.text.vocabulary import NORMALIZATIONS, Normalization
from apr_jax.text.word_counter import WordCounter

MAX_WORDS = 20_000_000
_LOT = 1 << 21  # characters counted together


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of some documents, and what was done to have them.

    Attributes:
      counts: how often each word occurs.
      normalization: "nfc" or "none", done to the documents first.
      pretokenizer: the rule that cut the text into words; None: a document is one word.
      forgotten: occurrences of words that are not in `counts`, because they were too many.
    """

    counts: Mapping[bytes, int]
    normalization: Normalization
    pretokenizer: str | None
    forgotten: int


def count_words(
    documents: Iterable[str],
    *,
    pretokenizer: str | None = "qwen2",
    normalization: Normalization = "nfc",
    max_words: int = MAX_WORDS,
) -> Words:
    """Count the words of the documents, of which some megabytes are in memory at a time.

    Args:
      documents: the texts.
      pretokenizer: name of the rule that cuts a text into words; None: a text is one word.
      normalization: "nfc" or "none", done to a text first.
      max_words: how many different words are kept, at about 150 bytes each. Beyond it the rarest
        are forgotten until half remain, and counts of words that come again are then too low.

    Raises:
      UserError: there is no text, a document holds a lone surrogate, or a value is out of range.
    """
    if pretokenizer is not None and pretokenizer not in PRETOKENIZERS:
        raise UserError(f"pretokenizer={pretokenizer!r} is not one of {[*PRETOKENIZERS]}")
    if max_words < 2:
        raise UserError(f"max_words={max_words} is less than 2")
    counter = _counter(pretokenizer, {})
    forgotten = 0
    with Progress("counting words", None, "documents") as progress:
        for texts in lots(normalized(documents, normalization), _LOT):
            counter.update(texts)
            if len(counter) > max_words:
                counts = collections.Counter(counter.counts)
                kept = dict(counts.most_common(max_words // 2))  # of equals the first to come
                forgotten += counts.total() - sum(kept.values())
                counter = _counter(pretokenizer, kept)
            progress.update(len(texts), f"{len(counter):,} different words")
    return Words(counter.counts, normalization, pretokenizer, forgotten)


def normalized(documents: Iterable[str], normalization: Normalization) -> Iterator[str]:
    """The documents in normal form, without those that are empty.

    Raises:
      UserError: all are empty, one holds a lone surrogate, or the normal form is unknown.
    """
    if normalization not in NORMALIZATIONS:
        raise UserError(f"normalization={normalization!r} is not one of {NORMALIZATIONS}")
    is_empty = True
    for number, text in enumerate(documents, 1):
        if not text.isascii():
            _refuse_surrogates(number, text)
            text = nfc(text) if normalization == "nfc" else text
        if text:
            is_empty = False
            yield text
    if is_empty:
        raise UserError("there is no text to learn from: every document is empty, or there is none")


class _PlainCounter:
    """Counts words one by one, with the methods of a `WordCounter`."""

    def __init__(self, split: Callable[[str], Sequence[str]], counts: Mapping[bytes, int]) -> None:
        self._split = split
        self.counts = collections.Counter(counts)

    def __len__(self) -> int:
        return len(self.counts)

    def update(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.counts.update([word.encode() for word in self._split(text)])


def _counter(pretokenizer: str | None, counts: Mapping[bytes, int]) -> WordCounter | _PlainCounter:
    if pretokenizer is None:
        return _PlainCounter(lambda text: [text], counts)
    rule = PRETOKENIZERS[pretokenizer]
    return WordCounter(rule, counts) if rule.joins else _PlainCounter(rule.split, counts)


def _refuse_surrogates(number: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"document {number}: character {error.start} is the lone surrogate "
            f"U+{ord(text[error.start]):04X}, which is no Unicode text: repair the input"
        ) from error
