"""Qwen2.5 ids: the published examples, and equality with `tokenizers` on hostile texts."""

import dataclasses
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.text import tokenizer as tokenizer_lib
from apr_jax.text.characters import nfc
from apr_jax.text.tokenizer import TextError, Tokenizer
from tests.text.hostile import FRAGMENTS, random_texts, texts

# Measured with `tokenizers` 0.23.3 and the tokenizer.json published with the models.
GOLDEN = {
    "def fibonacci(n):\n    return n\n": [750, 75698, 1445, 982, 262, 470, 308, 198],
    "Hello world": [9707, 1879],
    "Hello, world!": [9707, 11, 1879, 0],
    " hello": [23811],
    "   Title": [256, 10869],
    " !!!": [32870],
    "/roadmaps": [14, 8546, 17640],
    " quorum forbids refutes": [922, 33006, 54744, 3365, 2053, 2095],
    "\t\tif x:\n": [197, 743, 856, 510],
    "\t\treturn": [197, 853],
    "a\r\nb": [64, 319, 65],
    "\n\n\n": [1406],
    "  \n  x": [2303, 220, 856],
    "    ": [257],
    "        x": [286, 856],
    "def f():\n\n\n    pass": [750, 282, 4555, 1406, 262, 1494],
    "caf\u00e9": [924, 58858],
    "cafe\u0301": [924, 58858],
    "日本語": [101059, 102819],
    "🦙": [149955],
    "👩\u200d💻": [145233, 378, 235, 145851],
    "I'm DON'T": [40, 2776, 44273, 17323],
    "IT'S": [952, 13272],
    "we'LL": [896, 6, 4086],
    "x'Re": [87, 49427],
    "it'\u017fx": [275, 6, 144815, 87],
    "\u00a0x": [4102, 87],
    "a\u0085b": [64, 126, 227, 65],
    "a\u200bb": [64, 15692, 65],
    "\u001c\u001d a": [216, 217, 264],
    "①²½": [48312, 254, 29456, 26062],
    "0x1F": [15, 87, 16, 37],
    "a_b__c": [64, 880, 563, 66],
    "foo.bar()": [7975, 22001, 368],
    "x = 12345": [87, 284, 220, 16, 17, 18, 19, 20],
    "#######": [97864],
    "## Title": [565, 10869],
    "#!/usr/bin/env python\n": [8701, 7063, 8749, 14358, 10135, 198],
    "<|im_start|>user\nhi<|im_end|>": [151644, 872, 198, 6023, 151645],
    "<tool_call>x</tool_call>": [151657, 87, 151658],
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>": [151659, 64, 151661, 65, 151660],
    "</s>": [522, 82, 29],
    "<unk>": [128243, 29],
    "": [],
    " ": [220],
    "\n": [198],
    "def fibonacci(n):\n    if n < 2:\n        return n\n"
    "    return fibonacci(n - 1) + fibonacci(n - 2)\n": [
        *[750, 75698, 1445, 982, 262, 421, 308, 366, 220, 17, 510, 286, 470, 308, 198],
        *[262, 470, 75698, 1445, 481, 220, 16, 8, 488, 75698, 1445, 481, 220, 17, 340],
    ],
}


@pytest.mark.parametrize("text", GOLDEN)
def test_published_ids(qwen, text):
    ids = qwen.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == GOLDEN[text]


def test_splitting_at_white_space_only_is_not_what_we_do(qwen):
    """What the original program gave, and its tests took for right."""
    wrong = [750, 75698, 1445, 1648, 198, 220, 220, 220, 470, 308, 198]
    text = "def fibonacci(n):\n    return n\n"
    assert qwen.decode(wrong) == text
    assert qwen.encode(text).tolist() != wrong


def test_what_the_vocabulary_says_of_itself(qwen):
    assert (qwen.format, qwen.normalization) == ("tokenizer.json", "nfc")
    assert qwen.vocab_size == 151665
    assert qwen.eos_id == 151643  # never 128247, the ordinary entry spelled </s>
    assert qwen.unk_id is None
    sizes = qwen.token_bytes()
    assert sizes.dtype == np.uint16
    assert len(sizes) == 151665
    assert sizes[[0, 198, 220, 9707, 151643]].tolist() == [1, 1, 1, 5, 0]
    assert sizes[151657] == len("<tool_call>")  # added, but not special: text like any other


def equal(qwen, qwen_hf, batch):
    ours = [ids.tolist() for ids in qwen.encode_batch(batch)]
    theirs = [encoding.ids for encoding in qwen_hf.encode_batch(batch)]
    for text, found, expected in zip(batch, ours, theirs, strict=True):
        assert found == expected, ascii(text)


@settings(max_examples=300, deadline=None)
@given(batch=st.lists(texts, max_size=4))
def test_hostile_texts(qwen, qwen_hf, batch):
    equal(qwen, qwen_hf, batch)


@pytest.mark.parametrize("seed", range(4))
def test_many_random_texts(qwen, qwen_hf, seed):
    equal(qwen, qwen_hf, random_texts(seed, 2500))


def test_every_pair_of_fragments(qwen, qwen_hf):
    equal(qwen, qwen_hf, ["".join(f"{a}{b}" for b in FRAGMENTS) for a in FRAGMENTS])


def test_every_character_in_context(qwen, qwen_hf):
    characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    lots = [characters[start : start + 512] for start in range(0, 0x30000, 512)]
    equal(qwen, qwen_hf, ["".join(f" {c}a'{c}1" for c in lot) for lot in lots if lot])


@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "1", "#", "ab", "=-", "日", "aé", "\u0301", " \n"]
)
def test_runs_of_100000_characters(qwen, qwen_hf, unit):
    equal(qwen, qwen_hf, [unit * (100_000 // len(unit))])


def test_a_batch_is_its_texts_one_by_one(qwen):
    batch = random_texts(9, 200)
    for text, ids in zip(batch, qwen.encode_batch(batch), strict=True):
        assert ids.tolist() == qwen.encode(text).tolist()
    assert qwen.encode_batch([]) == []


def test_forgetting_known_words_changes_nothing(qwen, monkeypatch):
    batch = random_texts(10, 50)
    expected = [ids.tolist() for ids in qwen.encode_batch(batch)]
    monkeypatch.setattr("apr_jax.text.known_words._WORDS", 10)
    monkeypatch.setattr("apr_jax.text.tokenizer._LOT_BYTES", 7)
    for _ in range(3):
        assert [ids.tolist() for ids in qwen.encode_batch(batch)] == expected


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 151_935), st.integers(0, 300)), max_size=12))
def test_decoding_any_ids(qwen, qwen_hf, ids):
    assert qwen.decode(ids) == qwen_hf.decode(ids, skip_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_decoding_inverts_encoding(qwen, qwen_hf, text):
    # Added tokens are found first, so what lies on both sides of one is normalised apart.
    parts = qwen._added.split(text)
    assert qwen.decode(qwen.encode(text)) == "".join(
        part if number % 2 else nfc(part) for number, part in enumerate(parts)
    )


def test_negative_ids_and_lone_surrogates_are_refused(qwen):
    with pytest.raises(TextError, match="cannot decode the id -1"):
        qwen.decode([5, -1])
    with pytest.raises(TextError, match=r"character 2 of the text is the lone surrogate U\+D800"):
        qwen.encode("ab\ud800")


@pytest.mark.parametrize(
    "ids",
    [
        [1.7, 2.2],
        [[1, 2], [3, 4]],
        [[1], [2, 3]],
        ["1"],
        "12",
        [None],
        [True],
        np.int64(5),
        [1 << 70],
    ],
    ids=repr,
)
def test_what_is_no_row_of_integers_is_not_decoded(qwen, ids):
    with pytest.raises(TypeError, match=r"^ids are .*not one row of integers"):
        qwen.decode(ids)


def test_ids_are_taken_from_any_row_of_integers(qwen):
    ids = qwen.encode("hello world").tolist()
    for row in (iter(ids), tuple(ids), np.array(ids, np.uint64), [*ids, 1 << 40], jnp.array(ids)):
        assert qwen.decode(row) == "hello world"
    assert qwen.decode([]) == qwen.decode(np.empty(0)) == ""


def test_slices_of_a_long_text_give_its_ids(qwen, qwen_hf, monkeypatch):
    monkeypatch.setattr(tokenizer_lib, "_SLICE", 40)
    monkeypatch.setattr(tokenizer_lib, "_LOT", 400)
    text = " ".join(random_texts(9, 300)) + "a\n\nb<|im_end|>\n" * 50
    assert qwen.encode(text).tolist() == qwen_hf.encode(text).ids
    plain = Tokenizer(dataclasses.replace(qwen.vocabulary, pretokenizer="o200k"))
    pieces = plain.encode(text).tolist()
    monkeypatch.setattr(tokenizer_lib, "_SLICE", len(text))
    assert plain.encode(text).tolist() == pieces


@pytest.mark.parametrize("texts", ["text", b"text", [None], ["a", b"b"], [["a"]]])
def test_what_is_no_text_is_a_clear_error(qwen, texts):
    message = r"(texts is one (str|bytes), not a list|text [01] is a (NoneType|bytes|list), not a )"
    for encode in (qwen.encode_batch, qwen.encode_flat):
        with pytest.raises(TypeError, match=message):
            encode(texts)
    if not isinstance(texts, str):
        with pytest.raises(TypeError, match=r"text 0 is a (bytes|list), not a str"):
            qwen.encode(texts)
    assert [ids.tolist() for ids in qwen.encode_batch(t for t in ["a", "b"])] == [[64], [65]]
