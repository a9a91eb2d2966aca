"""The merges that XLA compiles equal the plain ones."""

import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from apr_jax.text import compiled_merges, reference
from apr_jax.text.compiled_merges import CompiledMerges
from apr_jax.text.merges import Merges
from apr_jax.text.tokenizer import Tokenizer
from tests.text.hostile import random_texts

_EDGES = (0, 1, 2, 8, 9, 11, 12, 13, 35, 36, 37, 71, 127, 128, 129, 150)
_FEW_SIDES = {128: 16, 36: 24, 12: 40}


def flat(words):
    lengths = np.array([len(word) for word in words], np.int64)
    return np.array([id_ for word in words for id_ in word], np.int32), lengths


def many_vocabularies(rng, is_monotonic):
    """Merges of sixty vocabularies of three base ids each, which have no id in common."""
    count, size = 60, 12
    pairs, results = [], []
    new = iter(rng.permutation(np.arange(3 * count, (3 + size) * count)).tolist())
    for number in range(count):
        ids, own = [*range(3 * number, 3 * number + 3)], []
        while len(own) < size:
            pair = tuple(rng.choice(ids, 2).tolist())
            if pair not in own:
                own.append(pair)
                ids.append(next(new))
        pairs.append(own)
        results.append(ids[3:])
    turns = rng.permutation(np.repeat(np.arange(count), size))
    orders = [iter(range(size) if is_monotonic else rng.permutation(size)) for _ in range(count)]
    merges = []
    for number in turns:
        which = next(orders[number])
        merges.append((*pairs[number][which], results[number][which]))
    return np.array(merges, np.int32)


def words_of(rng, bases, count):
    """Words of three ids, which are one of the vocabularies' bases: random ones and runs."""
    for number in range(count):
        length = int(rng.choice(_EDGES) if number % 3 else rng.integers(2, 30))
        ids = 3 * rng.integers(bases) + np.arange(3)
        period = rng.choice(ids, length if number % 2 else rng.integers(1, 4))
        yield np.resize(period, length).tolist() if length else []


@pytest.mark.parametrize("is_monotonic", [True, False])
def test_it_equals_the_reference(monkeypatch, is_monotonic):
    monkeypatch.setattr(compiled_merges, "_SIDES", _FEW_SIDES)
    rng = np.random.default_rng(is_monotonic)
    left, right, result = many_vocabularies(rng, is_monotonic).T
    merges = Merges(left, right, result)
    assert merges.is_monotonic == is_monotonic
    words = [*words_of(rng, 60, 1500)]
    ids, lengths = flat(words)
    assert len(ids) > compiled_merges._CHUNK
    merged, merged_lengths = CompiledMerges(merges).apply(ids, lengths)
    assert (merged.dtype, merged_lengths.dtype) == (np.int32, np.int64)
    plain = {
        (one, other): (rank, new)
        for rank, (one, other, new) in enumerate(np.stack([left, right, result], axis=1).tolist())
    }
    for word, found in zip(words, np.split(merged, np.cumsum(merged_lengths)[:-1]), strict=True):
        assert found.tolist() == reference.merge(word, plain)


class _Recorder:
    """Merges that count the words they are asked for."""

    def __init__(self, merges):
        self._merges, self.words = merges, 0

    def __getattr__(self, name):
        return getattr(self._merges, name)

    def __len__(self):
        return len(self._merges)

    def apply(self, ids, lengths):
        self.words += len(lengths)
        return self._merges.apply(ids, lengths)


@pytest.fixture(scope="module")
def of_qwen(qwen):
    recorder = _Recorder(Tokenizer(qwen.vocabulary)._merges)
    return CompiledMerges(recorder), recorder


def check(compiled, recorder, ids, lengths):
    """How many words NumPy merged, of those that it would merge alike."""
    recorder.words = 0
    found = compiled.apply(ids, lengths)
    by_numpy = recorder.words
    for array, expected in zip(found, recorder._merges.apply(ids, lengths), strict=True):
        assert array.tolist() == expected.tolist()
    return by_numpy


def hostile(tokenizer, count):
    """Ids of bytes in hostile words of all lengths up to 200."""
    octets = np.frombuffer("".join(random_texts(0, count // 2)).encode(), np.uint8)
    rng = np.random.default_rng(0)
    lengths = rng.choice([*_EDGES, *range(2, 12), *range(2, 12), 200], count)
    lengths = lengths[np.cumsum(lengths) <= len(octets)]
    return tokenizer._byte_ids.take(octets[: lengths.sum()]), lengths


def test_hostile_words(qwen, of_qwen):
    ids, lengths = hostile(qwen, 9000)
    assert (lengths < 9).sum() > 2 * max(compiled_merges._SIDES.values())
    assert (lengths == 0).any()
    by_numpy = check(*of_qwen, ids, lengths)
    assert 0 < by_numpy < (lengths > 128).sum()


def test_what_goes_to_numpy(monkeypatch, qwen, of_qwen):
    ids, lengths = hostile(qwen, 2000)
    lengths = lengths[lengths < 100]
    few = compiled_merges._LEAST - 1
    assert check(*of_qwen, ids[: lengths[:few].sum()], lengths[:few]) == few
    assert check(*of_qwen, ids[: lengths[: few + 1].sum()], lengths[: few + 1]) == 0
    monkeypatch.setattr(compiled_merges, "_MOST", int(lengths.sum()))
    assert check(*of_qwen, ids[: lengths.sum()], lengths) == 0
    longer = np.append(lengths, 1)
    assert check(*of_qwen, ids[: longer.sum()], longer) == len(longer)
    another = os.getpid() + 1
    monkeypatch.setattr(compiled_merges.os, "getpid", lambda: another)
    assert check(*of_qwen, ids[: lengths.sum()], lengths) == len(lengths)


def test_ids_that_no_merge_knows_and_words_of_any_kind_of_id(of_qwen):
    rng = np.random.default_rng(0)
    merges = of_qwen[1]._merges
    ids = rng.choice(np.concatenate([merges.left, merges.right]), 20_000)
    ids[::7] = rng.integers(0, len(merges.made_at), len(ids[::7]))
    ids[::11] = rng.integers(len(merges.made_at), 1 << 24, len(ids[::11]))
    ids[::500] = (1 << 24) - 1
    assert check(*of_qwen, ids, np.full(4000, 5)) == 0
    octets = rng.choice(np.flatnonzero(merges.made_at < 0), 20_000).astype(np.int32)
    octets[rng.random(len(octets)) < 0.5] += len(merges.made_at) + 1  # which have no row of theirs
    assert check(*of_qwen, octets, np.full(4000, 5)) == 0


def test_without_merges(monkeypatch):
    monkeypatch.setattr(compiled_merges, "_SIDES", {8: 40})
    monkeypatch.setattr(compiled_merges, "_LEAST", 1)
    none = np.empty(0, np.int32)
    ids, lengths = CompiledMerges(Merges(none, none, none)).apply(
        np.arange(60, dtype=np.int32), np.array([7, 0, 8, 45])
    )
    assert ids.tolist() == [*range(60)]
    assert lengths.tolist() == [7, 0, 8, 45]


def test_threads_at_once(qwen, of_qwen):
    compiled, recorder = of_qwen
    parts = [hostile(qwen, count) for count in (3000, 5000, 7000)]
    expected = [recorder._merges.apply(*part) for part in parts]
    found = [None] * len(parts)

    def work(number):
        for _ in range(3):
            found[number] = compiled.apply(*parts[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (ids, lengths), (plain_ids, plain_lengths) in zip(found, expected, strict=True):
        assert np.array_equal(ids, plain_ids)
        assert np.array_equal(lengths, plain_lengths)


def test_whatever_the_caller_does_with_jax(monkeypatch):
    monkeypatch.setattr(compiled_merges, "_SIDES", {16: 24, 8: 48})
    rng = np.random.default_rng(0)
    merges = Merges(*many_vocabularies(rng, True).T)
    ids, lengths = flat([word[:16] for word in words_of(rng, 60, 1100)])
    expected = merges.apply(ids, lengths)[0].tolist()

    @jax.jit
    def traced(x):
        return x + len(CompiledMerges(merges).apply(ids, lengths)[0])

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert traced(0) == len(expected)
        with jax.transfer_guard("disallow"):
            assert CompiledMerges(merges).apply(ids, lengths)[0].tolist() == expected


def test_the_tokenizer_uses_it(monkeypatch, qwen):
    monkeypatch.setattr(compiled_merges, "_SIDES", {32: 264, 8: 1040})
    tokenizer = Tokenizer(qwen.vocabulary)
    tokenizer.compile()
    recorder = _Recorder(tokenizer._merges)
    monkeypatch.setattr(tokenizer._merging, "_merges", recorder)
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (3000, 9), np.uint8)
    text = " ".join(word.tobytes().decode() for word in letters)
    assert tokenizer.encode(text).tolist() == qwen.encode(text).tolist()
    assert recorder.words == 0


_FORK = """
import os, warnings
import numpy as np
from apr_jax.text import compiled_merges
from apr_jax.text.merges import Merges
warnings.simplefilter("ignore")  # JAX warns of every fork
compiled_merges._SIDES = {8: 40}
merges = Merges(np.array([0, 2]), np.array([1, 1]), np.array([2, 3]))
words = np.arange(2000 * 5, dtype=np.int32) % 2, np.full(2000, 5)
expected = [array.tolist() for array in merges.apply(*words)]
compiled = compiled_merges.CompiledMerges(merges)
assert [array.tolist() for array in compiled.apply(*words)] == expected
child = os.fork()
if not child:
    os._exit([array.tolist() for array in compiled.apply(*words)] != expected)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_children_go_without_it():
    done = subprocess.run(
        [sys.executable, "-c", _FORK], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
