"""Word starts by array operations, and words by expression, against `tokenizers`."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from apr_jax.text import cutting, pieces
from apr_jax.text.characters import fold
from apr_jax.text.cutting import Cutter
from apr_jax.text.pretokenizers import (
    CL100K_PATTERN,
    GPT4_PATTERN,
    LLAMA3_PATTERN,
    O200K_PATTERN,
    PATTERNS,
    PRETOKENIZERS,
    QWEN2_PATTERN,
    WHITESPACE_PATTERN,
)
from tests.text import probe_unicode
from tests.text.both_ways import bounds
from tests.text.hostile import FRAGMENTS, random_texts, texts

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
HF = {
    "qwen2": pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
    "llama3": pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
    "cl100k": pre_tokenizers.Split(Regex(CL100K_PATTERN), "isolated"),
    "o200k": pre_tokenizers.Split(Regex(O200K_PATTERN), "isolated"),
    "whitespace": pre_tokenizers.Split(Regex(WHITESPACE_PATTERN), "isolated"),
    "gpt2": BYTE_LEVEL,
    "smollm2": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
}
DIVIDER = b"\xff"
CUTTERS = {name: Cutter(rule) for name, rule in PRETOKENIZERS.items() if rule.joins}


def hf_words(name, text):
    return [text[start:end] for _, (start, end) in HF[name].pre_tokenize_str(text)]


def cut(name, batch):
    """The words of each text, by one call for all."""
    data = joined(batch)
    words = [[]]
    for start, end in itertools.pairwise(bounds(CUTTERS[name], data).tolist()):
        if data[start:end] == DIVIDER:
            words.append([])
        else:
            words[-1].append(data[start:end].decode())
    return words


def joined(batch):
    return DIVIDER.join(text.encode() for text in batch)


def equal(name, batch):
    expected = [hf_words(name, text) for text in batch]
    for text, words in zip(batch, expected, strict=True):
        assert PRETOKENIZERS[name].split(text) == words, ascii(text)
    if name in CUTTERS:
        for text, words, found in zip(batch, expected, cut(name, batch), strict=True):
            assert found == words, ascii(text)


# One or more of each class; `ll`, `re` and the long s are what contractions look at.
@pytest.mark.parametrize("name", PRETOKENIZERS)
@pytest.mark.parametrize(
    ("alphabet", "length"),
    [
        ("a1! \n", 6),
        ("aA\u01c5\u0930\u0301é/\n", 4),
        ("aB\u02b0\u0301' !", 5),
        ("aé1²! \xa0\n\r\t", 4),
        ("'s\u017fSlLreVx é", 4),
        ("1²\U00011de0a !", 5),
    ],
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


def test_every_character_at_an_end_of_its_class_is_cut_as_it_is():
    classes = fold("".join(probe_unicode.CHARACTERS), cased=True)
    ends = [
        character
        for character, before, here in zip(
            probe_unicode.CHARACTERS[1:], classes, classes[1:], strict=False
        )
        if before != here
    ]
    assert len(ends) > 3000
    for template in ("a{}A", "A{}a", "1{}1", " {}b", "!{}/\n", "A{}'s"):
        text = "\n".join(template.replace("{}", character) for character in ends)
        for name in ("o200k", "cl100k"):
            assert PRETOKENIZERS[name].split(text) == hf_words(name, text)


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_slices_are_split_as_the_whole_is(name):
    rule, text = PRETOKENIZERS[name], "".join(random_texts(2, 500)) + "a!\n/b!\nc \n!\n\n/"
    cuts = [*pieces.cuts(text, pieces.breaks_of_text(rule), 1)]
    assert len(cuts) > 300
    found = [word for start, stop in cuts for word in rule.split(text[start:stop])]
    assert found == rule.split(text)


def test_other_words_for_a_rule():
    batch = [*random_texts(3, 2000), "  \n \n  x", " \n\n ", "I'LL 12345'\u017f"]
    for pattern, behavior, invert in (
        (GPT4_PATTERN, "isolated", False),
        (O200K_PATTERN, "removed", True),
    ):
        split = pre_tokenizers.Split(Regex(pattern), behavior, invert)
        name = PATTERNS[pattern]
        for text in batch:
            found = [text[start:end] for _, (start, end) in split.pre_tokenize_str(text)]
            assert found == PRETOKENIZERS[name].split(text), ascii(text)


@pytest.mark.parametrize("name", CUTTERS)
def test_pieces_are_cut_as_the_whole_is(name):
    texts = [*random_texts(2, 500), "a\n\nb\n\n\nc \nd\n  e  \n"]
    data = joined(texts)
    cuts = [*pieces.cuts(data, pieces.breaks_of_utf8(PRETOKENIZERS[name]), 1)]
    found = [start + bounds(CUTTERS[name], data[start:stop])[:-1] for start, stop in cuts]
    assert len(found) > 300
    assert [*np.concatenate(found), len(data)] == bounds(CUTTERS[name], data).tolist()


@pytest.mark.parametrize(
    "line",
    [
        "日本語の「かな」も。\n",
        "ሰላም ለዓለም።\n",
        "a\u3000\nb\u2003c\u00a0d\n\u3000e\n",
        "été — où ?\n",
        "日本語の「かな」も。\r\n",
        "日本語の「かな」も。\n\n",
    ],
)
def test_long_texts_of_other_scripts_are_cut_and_never_at_a_space(line):
    data = (line * 2000).encode()
    breaks = pieces.breaks_of_utf8(PRETOKENIZERS["qwen2"])
    cuts = [*pieces.cuts(data, breaks, 1000)]
    assert max(stop - start for start, stop in cuts) < 1200
    whole = bounds(CUTTERS["qwen2"], data)
    assert {start for start, _ in cuts} <= set(whole.tolist())


def test_short_texts_without_a_space_are_cut_between_them():
    data = joined(["日本語"] * 1000)
    cuts = [*pieces.cuts(data, pieces.breaks_of_utf8(PRETOKENIZERS["qwen2"]), 100)]
    assert max(stop - start for start, stop in cuts) == 110
    assert all(data[start - 1 : start] == DIVIDER for start, _ in cuts[1:])


@pytest.mark.parametrize(
    ("text", "is_dense"),
    [
        ("def f(naïve):\n    return '—'\n", False),
        ("Il a mangé une pomme verte\n", False),
        ("Съешь ещё этих мягких булок\n", False),
        ("키스의 고유조건은 입술끼리\n", False),
        ("เป็นมนุษย์สุดประเสริฐเลิศคุณค่า\n", True),
        ("ऋषियों को सताने वाले दुष्ट राक्षसों\n", True),
        ("いろはにほへと ちりぬるを\n", True),
        ("", False),
    ],
)
def test_which_texts_are_cut_by_characters(text, is_dense):
    octets = np.frombuffer((text * 100).encode(), np.uint8)
    assert cutting._is_dense(octets) == is_dense
