"""Learned vocabularies: the original's examples, and a trainer that recounts for every merge."""

import collections
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.errors import UserError
from apr_jax.text.trainer import train_bpe


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


def naive_merges(documents, wanted, min_frequency):
    """Count all pairs, merge the best everywhere from the left, and so on."""
    sequences = [[5 + byte for byte in text.encode()] for text in documents]
    merges = []
    while len(merges) < wanted:
        counts = collections.Counter(pair for ids in sequences for pair in itertools.pairwise(ids))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < min_frequency:
            break
        for ids in sequences:
            index = 0
            while index < len(ids) - 1:
                if (ids[index], ids[index + 1]) == best:
                    ids[index : index + 2] = [261 + len(merges)]
                index += 1
        merges.append(best)
    return merges


@settings(max_examples=200, deadline=None)
@given(
    documents=st.lists(
        st.one_of(st.text("ab", max_size=30), st.text("aaab \n", max_size=60)),
        min_size=1,
        max_size=5,
    ).filter(any),
    wanted=st.integers(0, 30),
    min_frequency=st.integers(0, 3),
)
def test_counting_changes_equals_counting_anew(documents, wanted, min_frequency):
    tokenizer = train_bpe(documents, 261 + wanted, min_frequency, "none")
    expected = naive_merges(documents, wanted, max(1, min_frequency))
    assert [tuple(row[:2]) for row in tokenizer.vocabulary.merges_M3.tolist()] == expected


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
    ],
)
def test_what_cannot_be_learned_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        train_bpe(*arguments)
