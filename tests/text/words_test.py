"""Words of a corpus: counted as HuggingFace counts them, refused, forgotten."""

import collections

import pytest

from apr_jax.errors import UserError
from apr_jax.text.characters import nfc
from apr_jax.text.pretokenizers import qwen2
from apr_jax.text.words import count_words
from tests.text.hostile import random_texts


def test_words_are_those_of_the_pre_tokeniser():
    documents = random_texts(seed=5, count=100)
    words = count_words(documents)
    expected = collections.Counter(word for text in documents for word in qwen2(nfc(text)))
    assert words.counts == expected
    assert (words.normalization, words.pretokenizer, words.forgotten) == ("nfc", "qwen2", 0)


def test_without_pre_tokeniser_a_document_is_a_word():
    assert count_words(["a b", "", "a b"], pretokenizer=None).counts == {"a b": 2}


def test_the_rarest_words_are_forgotten_and_counted():
    # Five words at the fourth document: " b" and " a", which came before " d", remain.
    words = count_words(["a a a", " b b b", " c", " d d", " e"], max_words=4)
    assert words.counts == {" b": 3, " a": 2, " e": 1}
    assert words.forgotten == 4


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
