"""Words against those that `tokenizers` cuts with the expression of the file."""

import itertools

import pytest
from hypothesis import given, settings
from tokenizers import Regex, pre_tokenizers

from apr_jax.text.pretokenizers import QWEN2_PATTERN, qwen2
from tests.text.hostile import texts

SPLIT = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")


def words(text):
    return [word for word, _ in SPLIT.pre_tokenize_str(text)]


# One or more of each class; `ll`, `re` and the long s are what contractions look at.
@pytest.mark.parametrize(
    ("alphabet", "length"), [("a1! \n", 6), ("aé1²! \xa0\n\r\t", 4), ("'s\u017fSlLreVx é", 4)]
)
def test_all_short_texts_of_one_character_a_class(alphabet, length):
    for size in range(length + 1):
        for characters in itertools.product(alphabet, repeat=size):
            text = "".join(characters)
            assert qwen2(text) == words(text), ascii(text)


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_hostile_texts(text):
    assert qwen2(text) == words(text)
    assert "".join(qwen2(text)) == text
