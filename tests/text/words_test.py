"""Words of a corpus: counted as HuggingFace counts them, refused, forgotten."""

import collections

import pytest

from apr_jax.errors import UserError
from apr_jax.text import word_counter
from apr_jax.text import words as words_module
from apr_jax.text.characters import nfc
from apr_jax.text.pretokenizers import PRETOKENIZERS
from apr_jax.text.words import count_words
from tests.text.hostile import random_texts


@pytest.mark.parametrize("name", PRETOKENIZERS)
@pytest.mark.parametrize("lot", [1, 500, 1 << 20])
def test_words_are_those_of_the_pre_tokeniser(name, lot, monkeypatch):
    monkeypatch.setattr(words_module, "_LOT", lot)
    documents = [*random_texts(seed=5, count=150), "x" * 300, "x" * 300 + " y"]
    words = count_words(documents, pretokenizer=name)
    split = PRETOKENIZERS[name].split
    expected = collections.Counter(word.encode() for text in documents for word in split(nfc(text)))
    assert words.counts == expected
    assert (words.normalization, words.pretokenizer, words.forgotten) == ("nfc", name, 0)


def test_words_without_room_in_the_table_count_as_others(monkeypatch):
    monkeypatch.setattr(word_counter, "_BITS", 3)
    monkeypatch.setattr(words_module, "_LOT", 1)
    documents = [f" word{n % 7} {n % 5}x" for n in range(100)]
    split = PRETOKENIZERS["qwen2"].split
    expected = collections.Counter(word.encode() for text in documents for word in split(text))
    assert count_words(documents).counts == expected


def test_without_pre_tokeniser_a_document_is_a_word():
    assert count_words(["a b", "", "a b"], pretokenizer=None).counts == {b"a b": 2}


def test_the_rarest_words_are_forgotten_and_counted(monkeypatch):
    monkeypatch.setattr(words_module, "_LOT", 1)
    # Five words at the fourth document and at the seventh: " b", and " a", which came before " d".
    documents = ["a a a", " b b b", " c", " d d", " e", " f", " g", " h"]
    words = count_words(documents, max_words=4)
    assert words.counts == {b" b": 3, b" a": 2, b" h": 1}
    assert words.forgotten == 4 + 3


@pytest.mark.parametrize(
    ("documents", "arguments", "message"),
    [
        ([], {}, "no text to learn from"),
        (["", ""], {}, "no text to learn from"),
        (["a"], {"pretokenizer": "gpt5"}, r"pretokenizer='gpt5' is not one of \['qwen2'"),
        (["a"], {"normalization": "nfkc"}, "normalization='nfkc'"),
        (["a"], {"max_words": 1}, "max_words=1 is less than 2"),
        (["a", "\udfff"], {}, r"document 2: character 0 is the lone surrogate U\+DFFF"),
    ],
)
def test_what_cannot_be_counted_is_refused(documents, arguments, message):
    with pytest.raises(UserError, match=message):
        count_words(documents, **arguments)
