"""Learned vocabularies: the original's examples, and the merges of HuggingFace's trainer."""

import collections
import json
import pathlib
import random

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.errors import UserError
from apr_jax.text import load_tokenizer, trainer_reference
from apr_jax.text.learned_format import write_byte_level
from apr_jax.text.pretokenizers import PRETOKENIZERS
from apr_jax.text.trainer import train_bpe, train_byte_level_bpe
from apr_jax.text.words import count_words
from tests.text.hostile import random_texts, texts


def spelled(tokenizer):
    tokens = tokenizer.vocabulary.tokens
    rows = tokenizer.vocabulary.merges_M3.tolist()
    return [f"{tokens[left].hex()} {tokens[right].hex()}" for left, right, _ in rows]


GREETINGS = ["hello world hello", "hello there world"]
OFTEN = "68 65|6c 6c|6865 6c6c|68656c6c 6f|20 77|6c 64|6f 72|2077 6f72|20776f72 6c64".split("|")
ONCE = (
    "20 74|20 68656c6c6f|65 20776f726c64|72 6520776f726c64|6865 726520776f726c64|"
    "68656c6c6f 20776f726c64|68656c6c6f 2074|68656c6c6f20776f726c64 2068656c6c6f|"
    "68656c6c6f2074 6865726520776f726c64"
).split("|")


@pytest.mark.parametrize(
    ("documents", "vocab_size", "min_frequency", "merges"),
    [
        (["abc"] * 5 + ["xyz"], 300, 2, ["61 62", "6162 63"]),
        (GREETINGS, 300, 2, OFTEN),
        (GREETINGS, 300, 1, OFTEN + ONCE),
        (GREETINGS, 264, 2, OFTEN[:3]),
        (GREETINGS, 261, 2, []),
        (GREETINGS, 10, 2, []),
    ],
)
def test_examples_of_the_original(documents, vocab_size, min_frequency, merges):
    tokenizer = train_bpe(documents, vocab_size, min_frequency)
    assert spelled(tokenizer) == merges
    assert tokenizer.vocab_size == 261 + len(merges)


def test_source_code_of_the_original_examples():
    documents = ["def hello():\n    return 1\n", "def world():\n    return 2\n"]
    tokenizer = train_bpe(documents, 400, 1)
    first = "20 20|0a 2020|28 29|3a 0a2020|64 65|65 74|66 20|6e 20|72 6574|72 6e20".split("|")
    assert spelled(tokenizer)[:10] == first
    assert tokenizer.vocab_size == 293


def test_ids_of_the_original_examples():
    tokenizer = train_bpe(GREETINGS, 300, 2)
    assert tokenizer.encode("hello world").tolist() == [264, 269]
    assert tokenizer.encode("hello, café").tolist() == [264, 49, 37, 104, 102, 107, 200, 174]


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(st.text("aaab \n", max_size=60), min_size=1, max_size=5).filter(any),
    wanted=st.integers(0, 30),
    min_frequency=st.integers(0, 3),
)
def test_a_hex_vocabulary_is_that_of_counting_anew(documents, wanted, min_frequency):
    tokenizer = train_bpe(documents, 261 + wanted, min_frequency, "none")
    counts = collections.Counter(text.encode() for text in documents)
    byte_ids = {byte: 5 + byte for byte in range(256)}
    expected = trainer_reference.learn_merges(counts, byte_ids, 261, 261 + wanted, min_frequency)
    assert [tuple(row) for row in tokenizer.vocabulary.merges_M3.tolist()] == expected


def test_normalisation_comes_before_learning():
    documents = ["cafe\u0301", "caf\u00e9"]
    assert "c3 a9" in spelled(train_bpe(documents, 300, 2, "nfc"))
    assert "c3 a9" not in spelled(train_bpe(documents, 300, 2, "none"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 300), "no text to learn from"),
        ((["", ""], 300), "no text to learn from"),
        ((["a"], 9), "vocab_size=9"),
        ((["a"], 300, 2, "nfkc"), "normalization='nfkc'"),
        ((["a", "b\ud800"], 300), r"document 2: character 1 is the lone surrogate U\+D800"),
    ],
)
def test_what_cannot_be_learned_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        train_bpe(*arguments)


def assert_learns_the_same(
    documents,
    size,
    pretokenizer="qwen2",
    normalization="nfc",
    special_tokens=("<|endoftext|>",),
    **arguments,
):
    """HuggingFace's trainer learns what ours does, from text cut by what ours writes down."""
    words = count_words(documents, pretokenizer=pretokenizer, normalization=normalization)
    ours = train_byte_level_bpe(words, size, special_tokens=special_tokens, **arguments)
    got = ours.to_tokenizer_json()
    written = tokenizers.Tokenizer.from_str(json.dumps(got))
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer, peer.decoder = written.pre_tokenizer, written.decoder
    if written.normalizer is not None:
        peer.normalizer = written.normalizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special_tokens),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **arguments,
    )
    peer.train_from_iterator(documents, trainer)
    expected = json.loads(peer.to_str())
    assert got["model"]["merges"] == expected["model"]["merges"]
    assert got["model"]["vocab"] == expected["model"]["vocab"]
    assert got["added_tokens"] == expected["added_tokens"]
    return peer, ours


SOURCE = [
    path.read_text("utf-8") for path in sorted(pathlib.Path(json.__file__).parent.glob("*.py"))
]
HOSTILE = random_texts(seed=3, count=400)


@pytest.mark.parametrize("pretokenizer", [*PRETOKENIZERS, None])
@pytest.mark.parametrize("normalization", ["nfc", "none"])
@pytest.mark.parametrize("documents", [SOURCE, HOSTILE], ids=["source", "hostile"])
def test_a_byte_level_vocabulary_is_that_of_huggingface(documents, pretokenizer, normalization):
    assert_learns_the_same(documents, 1500, pretokenizer, normalization, min_frequency=2)


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.one_of(texts, st.text("ab ", max_size=40)), max_size=6).filter(any),
    wanted=st.integers(0, 60),
    min_frequency=st.integers(0, 3),
    max_token_length=st.one_of(st.none(), st.integers(1, 9)),
    special_tokens=st.lists(st.sampled_from(["<s>", "ab", "bab", "日", "  "]), unique=True),
)
def test_every_setting_means_what_it_means_there(
    documents, wanted, min_frequency, max_token_length, special_tokens
):
    assert_learns_the_same(
        documents,
        256 + len(special_tokens) + wanted,
        special_tokens=special_tokens,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
    )


def test_a_special_token_can_be_a_side_of_a_merge(tmp_path):
    documents = ["hello hello helloes helloes"]
    peer, ours = assert_learns_the_same(documents, 280, special_tokens=["hello"], min_frequency=2)
    write_byte_level(tmp_path, ours.vocabulary)
    loaded = load_tokenizer(tmp_path)
    for text in ["hellohelloes", "helloes hello"]:
        assert loaded.encode(text).tolist() == peer.encode(text).ids
    assert loaded.to_tokenizer_json() == ours.to_tokenizer_json()


def test_the_folder_loads_everywhere_with_the_same_ids(tmp_path):
    specials = ["<|endoftext|>", "<|im_start|>"]
    peer, ours = assert_learns_the_same(SOURCE, 600, special_tokens=specials, min_frequency=2)
    write_byte_level(tmp_path, ours.vocabulary)
    files = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.sha256 == ours.sha256
    assert auto.eos_token_id == loaded.eos_id == ours.eos_id == 0
    for text in [*random_texts(seed=4, count=50), "a<|im_start|>b<|endoftext|>", *SOURCE[:1]]:
        ids = loaded.encode(text).tolist()
        assert ids == ours.encode(text).tolist() == peer.encode(text).ids
        assert ids == files.encode(text).ids == auto(text)["input_ids"]


def test_a_byte_level_vocabulary_may_have_no_special_tokens(tmp_path):
    _, ours = assert_learns_the_same(["aaaa"], 300, special_tokens=[], min_frequency=1)
    write_byte_level(tmp_path, ours.vocabulary)
    assert load_tokenizer(tmp_path).eos_id is None


def test_the_order_of_documents_does_not_matter():
    shuffled = random.Random(0).sample(SOURCE, len(SOURCE))
    one, other = (train_byte_level_bpe(count_words(d), 500) for d in (SOURCE, shuffled))
    assert one.sha256 == other.sha256


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        (256, {}, "vocab_size=256 is not between 257 and 1000000"),
        (2_000_000, {}, "vocab_size=2000000"),
        (300, {"max_token_length": 0}, "max_token_length=0 is less than 1"),
        (300, {"special_tokens": ["<s>", "<s>"]}, "'<s>' is given twice"),
        (300, {"special_tokens": [""]}, "special token '' is not of one or more"),
        (300, {"special_tokens": ["a\nb"]}, "is not of one or more printable characters"),
        (300, {"special_tokens": ["\u0120"]}, "is the symbol of a byte"),
    ],
)
def test_what_cannot_be_a_byte_level_vocabulary_is_refused(size, arguments, message):
    with pytest.raises(UserError, match=message):
        train_byte_level_bpe(count_words(["a"]), size, **arguments)


def test_a_folder_with_another_tokenizer_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    tokenizer = train_byte_level_bpe(count_words(["a"]), 300)
    with pytest.raises(UserError, match=r"vocab\.json: is of another tokenizer"):
        write_byte_level(tmp_path, tokenizer.vocabulary)
    assert not (tmp_path / "tokenizer.json").exists()
