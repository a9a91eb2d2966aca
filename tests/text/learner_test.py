"""Learning with a queue equals counting all pairs anew for every merge."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.text import learner, tape, trainer_reference
from apr_jax.text.learner import learn_merges

FIRST = 300
# The ids of bytes do not ascend with the bytes, so that ties show which of the two decides.
BYTE_IDS = np.arange(FIRST - 1, FIRST - 257, -1)

words = st.one_of(
    st.text("ab", min_size=1, max_size=30),
    st.text("aaab ", min_size=1, max_size=60),
    st.binary(min_size=1, max_size=6).map(lambda word: word.decode("latin-1")),
).map(str.encode)


def assert_equal(counts, size, min_frequency, longest=None, reserved=None):
    merges_M3 = learn_merges(
        counts,
        byte_ids=BYTE_IDS,
        next_id=FIRST,
        vocab_size=size,
        min_frequency=min_frequency,
        longest=longest,
        reserved=reserved,
    )
    plain = dict(enumerate(BYTE_IDS.tolist()))
    expected = trainer_reference.learn_merges(
        counts, plain, FIRST, size, min_frequency, longest, reserved
    )
    assert merges_M3.dtype == np.int32
    assert [tuple(row) for row in merges_M3.tolist()] == expected


@settings(max_examples=300, deadline=None)
@given(
    counts=st.dictionaries(words, st.one_of(st.just(1), st.integers(1, 2**40)), max_size=6),
    wanted=st.integers(0, 40),
    min_frequency=st.integers(0, 3),
    longest=st.one_of(st.none(), st.integers(0, 8)),
    reserved=st.lists(words, max_size=3),
    few=st.sampled_from([1, 3, 1000]),
    chunk=st.sampled_from([1, 7, 1 << 20]),
)
def test_the_queue_equals_counting_anew(
    counts, wanted, min_frequency, longest, reserved, few, chunk
):
    reserved = {text: id_ for id_, text in enumerate(reserved) if len(text) > 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "_FEW", few)
        patch.setattr(tape, "_CHUNK", chunk)
        assert_equal(counts, FIRST + wanted, min_frequency, longest, reserved)


def test_text_that_fills_the_queue_many_times(monkeypatch):
    monkeypatch.setattr(learner, "_FEW", 5)
    rng = np.random.default_rng(0)
    text = bytes(rng.choice(list(b"etaoin shrdlu"), 3000, p=np.arange(13, 0, -1) / 91).tolist())
    assert_equal(collections.Counter(text.split()), FIRST + 80, 2)
    assert_equal({text: 1}, FIRST + 80, 2)


def test_counts_beyond_32_bits_do_not_wrap():
    counts = {b"ab": 2**40, b"cd": 2**40 + 1, b"abab": 2**33}
    assert_equal(counts, FIRST + 5, 2)


@pytest.mark.parametrize("run", [2, 3, 4, 5, 1023, 1024, 1025])
def test_runs_of_one_byte(run):
    assert_equal({b"a" * run: 3, b"ba" + b"a" * run + b"b": 1}, FIRST + 12, 1)
