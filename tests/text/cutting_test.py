"""Word starts by array operations, and words by expression, against `tokenizers`."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from apr_jax.text import pieces
from apr_jax.text.characters import DIVIDER, fold
from apr_jax.text.cutting import Cutter
from apr_jax.text.pretokenizers import (
    LLAMA3_PATTERN,
    PRETOKENIZERS,
    QWEN2_PATTERN,
    WHITESPACE_PATTERN,
)
from tests.text.hostile import FRAGMENTS, random_texts, texts

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
HF = {
    "qwen2": pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
    "llama3": pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
    "whitespace": pre_tokenizers.Split(Regex(WHITESPACE_PATTERN), "isolated"),
    "gpt2": BYTE_LEVEL,
    "smollm2": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
}
CUTTERS = {name: Cutter(rule) for name, rule in PRETOKENIZERS.items()}


def hf_words(name, text):
    return [text[start:end] for _, (start, end) in HF[name].pre_tokenize_str(text)]


def cut(name, batch):
    """The words of each text, by one call for all."""
    folded = [fold(text).encode("latin-1") for text in batch]
    starts = CUTTERS[name].starts(DIVIDER.encode("latin-1").join(folded))
    assert starts.dtype == np.intp
    bounds = [*starts.tolist(), len(DIVIDER.join(batch))]
    joined = "\0".join(batch)
    is_divider = np.cumsum([0, *(len(text) + 1 for text in batch)]) - 1
    words, dividers = [[]], set(is_divider[1:].tolist())
    for start, end in itertools.pairwise(bounds):
        if start in dividers:
            assert end == start + 1
            words.append([])
        else:
            words[-1].append(joined[start:end])
    return words


def equal(name, batch):
    for text, words in zip(batch, cut(name, batch), strict=True):
        expected = hf_words(name, text)
        assert words == expected, ascii(text)
        assert PRETOKENIZERS[name].split(text) == expected, ascii(text)


# One or more of each class; `ll`, `re` and the long s are what contractions look at.
@pytest.mark.parametrize("name", PRETOKENIZERS)
@pytest.mark.parametrize(
    ("alphabet", "length"),
    [("a1! \n", 6), ("aé1²! \xa0\n\r\t", 4), ("'s\u017fSlLreVx é", 4), ("1²\U00011de0a !", 5)],
)
def test_all_short_texts_of_one_character_a_class(name, alphabet, length):
    batch = [
        "".join(characters)
        for size in range(length + 1)
        for characters in itertools.product(alphabet, repeat=size)
    ]
    equal(name, batch)


@pytest.mark.parametrize("name", PRETOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(batch=st.lists(texts, min_size=1, max_size=3))
def test_hostile_texts(name, batch):
    equal(name, batch)


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_many_random_texts(name):
    equal(name, random_texts(1, 2000))
    equal(name, ["".join(f"{a}{b}" for b in FRAGMENTS) for a in FRAGMENTS])


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_pieces_are_cut_as_the_whole_is(name, monkeypatch):
    monkeypatch.setattr(pieces, "_PIECE", 1)
    texts = [*random_texts(2, 500), "a\n\nb\n\n\nc \nd\n  e  \n"]
    folded = DIVIDER.join(map(fold, texts))
    cuts = [*pieces._cuts(re.compile(PRETOKENIZERS[name].breaks), folded)]
    found = [start + starts(name, folded[start:stop]) for start, stop in cuts]
    assert len(found) > 300
    assert np.concatenate(found).tolist() == starts(name, folded).tolist()


def starts(name, folded):
    return CUTTERS[name].starts(folded.encode("latin-1"))
