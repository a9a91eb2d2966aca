"""The vectorised merge engine against the plain one, on random vocabularies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.text import merges as merges_lib
from apr_jax.text import reference, tokenizer
from apr_jax.text.merges import Merges
from apr_jax.text.pair_table import NONE, PairTable
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.vocabulary import Vocabulary


@st.composite
def vocabularies(draw):
    """Merges over three base ids, each of two ids that exist by then."""
    count = draw(st.integers(1, 12))
    pairs = []
    for made in range(count):
        pair = draw(st.tuples(*[st.integers(0, 2 + made)] * 2).filter(lambda p: p not in pairs))
        pairs.append(pair)
    return pairs


def by_pair(pairs):
    return {pair: (rank, 3 + rank) for rank, pair in enumerate(pairs)}


def engine(pairs):
    left, right = np.array(pairs).T
    return Merges(left, right, 3 + np.arange(len(pairs)))


def flatten(texts):
    lengths = np.array([len(text) for text in texts])
    return np.array([i for text in texts for i in text], np.int32), lengths


sequences = st.lists(
    st.one_of(
        st.lists(st.integers(0, 2), max_size=60),
        st.lists(st.integers(0, 2), min_size=1, max_size=3).map(lambda ids: ids * 20),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("short", [0, 24, 1000])  # all on the chain, mixed, all in the matrix
@settings(max_examples=150, deadline=None)
@given(pairs=vocabularies(), texts=sequences)
def test_the_engine_equals_the_reference(short, pairs, texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merges_lib, "_SHORT", short)
        ids, lengths = engine(pairs).apply(*flatten(texts))
    few = engine(pairs).apply_few(*flatten(texts))
    for text, *found in zip(texts, np.split(ids, np.cumsum(lengths)[:-1]), few, strict=True):
        assert [*map(list, found)] == [reference.merge(text, by_pair(pairs))] * 2


def test_the_reference_merges_the_lowest_rank_and_the_leftmost():
    pairs = {(1, 1): (0, 3), (0, 1): (1, 4), (3, 1): (2, 5)}
    assert reference.merge([0, 1, 1, 1], pairs) == [0, 5]
    assert reference.merge([0, 1, 2, 0, 1], pairs) == [4, 2, 4]
    assert reference.merge([], pairs) == []


@pytest.mark.parametrize("short", [0, 24])
@settings(max_examples=150, deadline=None)
@given(pairs=vocabularies(), texts=sequences, data=st.data())
def test_merges_in_any_order(short, pairs, texts, data):
    """Also where a merge ranks before those that make its sides, as in Llama 3's file."""
    results = data.draw(st.permutations(range(3, 3 + len(pairs))))
    renamed = [*range(3), *results]  # so that ids do not tell ranks
    left, right = np.array([[renamed[side] for side in pair] for pair in pairs]).T
    order = np.array(data.draw(st.permutations(range(len(pairs)))))
    result = np.array(results)
    merges = Merges(left[order], right[order], result[order])
    plain = {(int(left[m]), int(right[m])): (rank, int(result[m])) for rank, m in enumerate(order)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merges_lib, "_SHORT", short)
        flat = flatten(texts)
        ids, lengths = merges.apply(*flat)
    for text, found, few in zip(
        texts, np.split(ids, np.cumsum(lengths)[:-1]), merges.apply_few(*flat), strict=True
    ):
        expected = reference.merge(text, plain)
        assert found.tolist() == few == merges.merge_one(text) == expected


def test_merges_that_rank_before_those_of_their_sides_are_noticed():
    assert Merges(np.array([0, 2]), np.array([1, 1]), np.array([2, 3])).is_monotonic
    assert not Merges(np.array([2, 0]), np.array([1, 1]), np.array([3, 2])).is_monotonic
    # Of two ways to make a side the later one counts.
    assert not Merges(np.array([0, 2, 1]), np.array([1, 1, 1]), np.array([2, 3, 2])).is_monotonic


def test_no_merges_change_nothing():
    empty = np.empty(0, np.int32)
    ids, lengths = Merges(empty, empty, empty).apply(np.arange(60, dtype=np.int32), np.array([60]))
    assert ids.tolist() == list(range(60))
    assert lengths.tolist() == [60]


def test_ids_above_all_that_merges_know_stay():
    merges = Merges(np.array([0]), np.array([1]), np.array([2]))
    ids, lengths = merges.apply(np.array([9, 0, 1, 3, 0], np.int32), np.array([5]))
    assert (ids.tolist(), lengths.tolist()) == ([9, 2, 3, 0], [4])


def test_ids_above_those_of_all_merges(monkeypatch):
    tokens = {1000 + byte: bytes([byte]) for byte in range(256)} | {0: b"ab", 1: b"abc"}
    vocabulary = Vocabulary(
        format="byte-level",
        tokens=tokens,
        merges_M3=np.array([[1097, 1098, 0], [0, 1099, 1]], np.int32),
        added=(),
        finds_added=False,
        normalization="none",
        pretokenizer="gpt2",
        eos_id=None,
        unk_id=None,
    )
    text = "abc zzz xabcab" + " w\xffzabcz" * 20
    expected = reference.Encoder(vocabulary).encode(text)
    for few in (0, 1000):
        monkeypatch.setattr(tokenizer, "_MANY", few)
        assert Tokenizer(vocabulary).encode(text).tolist() == expected
    monkeypatch.setattr(tokenizer, "_SMALL", 0)
    assert Tokenizer(vocabulary).encode(text).tolist() == expected


def test_the_pair_table_equals_a_dictionary():
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, 300, (20_000, 2)), axis=0)
    rng.shuffle(pairs)
    table = PairTable(pairs[:, 0], pairs[:, 1])
    ranks = {tuple(pair): rank for rank, pair in enumerate(pairs.tolist())}
    asked = rng.integers(-2, 302, (50, 1000, 2))
    asked[0] = rng.integers(-(2**31), 2**31, (1000, 2))
    asked[1, :, 1] = rng.integers(-(2**31), 2**31, 1000)
    found = table.ranks(asked[..., 0], asked[..., 1])
    expected = [[ranks.get(tuple(pair), NONE) for pair in row] for row in asked.tolist()]
    assert found.tolist() == expected
