"""Encoding by arrays: pieces, lots, forgetting and collisions must not be seen in the ids."""

import concurrent.futures
import time

import numpy as np
import pytest

from apr_jax.text import batch_encoder, reference, word_table
from apr_jax.text import tokenizer as tokenizer_lib
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.word_table import ABSENT, Text, WordTable
from tests.text.hostile import random_texts


@pytest.fixture(autouse=True)
def arrays_only(monkeypatch):
    monkeypatch.setattr(tokenizer_lib, "_SMALL", 0)


@pytest.fixture(scope="module")
def plain(qwen):
    return reference.Encoder(qwen.vocabulary)


@pytest.fixture(params=["numpy", "xla"])
def fresh(request, qwen, monkeypatch):
    """Makes tokenizers that know no words but those of the vocabulary."""

    def fresh():
        tokenizer = Tokenizer(qwen.vocabulary)
        tokenizer._whole_words = qwen._whole_words
        if request.param == "xla":
            monkeypatch.setattr(batch_encoder, "_COMPILED_LEAST", 0)
            tokenizer.compile()
        return tokenizer

    return fresh


def equal(tokenizer, plain, batch):
    ids, offsets = tokenizer.encode_flat(batch)
    assert ids.dtype == np.int32
    assert offsets.dtype == np.int64
    assert len(offsets) == len(batch) + 1
    for text, start, stop in zip(batch, offsets, offsets[1:], strict=False):
        assert ids[start:stop].tolist() == plain.encode(text), ascii(text)


@pytest.mark.parametrize(("piece", "lot"), [(1, 40), (7, 10_000), (30, 1000), (1 << 17, 1 << 23)])
def test_texts_may_be_cut_anywhere(fresh, plain, monkeypatch, piece, lot):
    monkeypatch.setattr(batch_encoder, "_PIECE", piece)
    monkeypatch.setattr(batch_encoder, "_COMPILED_PIECE", piece)
    monkeypatch.setattr(tokenizer_lib, "_LOT", lot)
    equal(fresh(), plain, random_texts(piece, 120))
    equal(fresh(), plain, ["", "a b\n c'll 12 !\n \n x" * 20, "", "\n \n" * 50, ""])


def test_no_texts(fresh):
    ids, offsets = fresh().encode_flat([])
    assert (len(ids), offsets.tolist()) == (0, [0])
    assert fresh().encode_flat(["", ""])[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("same", [slice(0, 1), slice(1, None), slice(None)])
def test_hashes_that_are_all_the_same_change_no_id(fresh, plain, monkeypatch, same):
    mix = word_table.MIX.copy()
    mix[same] = 0
    monkeypatch.setattr(word_table, "MIX", mix)
    tokenizer = fresh()
    for _ in range(2):  # new words, then the same again
        equal(tokenizer, plain, random_texts(3, 60))


def test_a_built_collision_is_found_out():
    first, second, third = (int(mix) for mix in word_table.MIX[1:4])
    rng = np.random.default_rng(0)
    while True:
        a, b, c, d = (int(octet) for octet in rng.integers(0, 2**64, 4, np.uint64))
        # Key of (x, y, z): x * first + y * second + z * third, modulo 2**64.
        y = (b + (a - d) * first * pow(second, -1, 2**64)) % 2**64
        z = (c + (a - d) * first * pow(third, -1, 2**64)) % 2**64
        words = [pack(a, b), pack(d, y), pack(a, b, c), pack(d, b, z)]
        if not any(b"\xff" in word for word in words):
            break
    for pair in (words[:2], words[2:]):
        table = WordTable(10, -1)
        one, other = map(word, pair)
        assert table._slots.find(keys(*one)) == table._slots.find(keys(*other))
        place = table.claim(*one)
        table.set_values(place, np.array([7], np.int32))
        assert table._slots.find(keys(*other)) != ABSENT  # they do collide
        assert table.find(*one) == [7]
        assert table.find(*other) == [ABSENT]
        assert table.claim(*other) == [-1]
        assert table.claim(*one) == place


def pack(*octets):
    return b"".join(octet.to_bytes(8, "little") for octet in octets)


def word(data):
    return Text(data), np.array([0]), np.array([len(data)])


def keys(text, starts, lengths):
    return word_table._keys(text, starts, lengths)[0]


def test_the_table_equals_a_dictionary():
    rng = np.random.default_rng(1)
    table, known = WordTable(12, -5), {}
    for _ in range(4):
        words = [
            bytes(rng.integers(0, rng.choice([2, 255]), rng.integers(1, 40)).astype(np.uint8))
            for _ in range(300)
        ]
        lengths = np.array([len(w) for w in words])
        text, starts = Text(b"".join(words)), np.cumsum(lengths) - lengths
        expected = [known.get(w, ABSENT) for w in words]
        assert table.find(text, starts, lengths).tolist() == expected
        places = table.claim(text, starts, lengths)
        assert (places >= 0).all()
        for w, place in zip(words, places.tolist(), strict=True):
            assert known.setdefault(w, place % 1000) == place % 1000
        table.set_values(places, (places % 1000).astype(np.int32))
        assert table.values(places).tolist() == (places % 1000).tolist()
        assert table.find(text, starts, lengths).tolist() == [known[w] for w in words]
    divider = table.find(Text(b"\xff"), np.array([0]), np.array([1]))
    assert divider.tolist() == [-5]


def test_words_are_forgotten_when_there_is_no_room(fresh, plain, monkeypatch):
    tokenizer = fresh()
    encoder = tokenizer._batches
    monkeypatch.setattr(batch_encoder, "_LEAST_ROOM", encoder._room - 100)
    forgets = []
    forget = encoder._forget
    monkeypatch.setattr(encoder, "_forget", lambda: (forgets.append(encoder._room), forget()))
    for seed in range(3):
        equal(tokenizer, plain, random_texts(seed, 40))
    assert len(forgets) == 2
    encoder._room = 5  # no room within a lot: what is not kept is encoded all the same
    monkeypatch.setattr(batch_encoder, "_LEAST_ROOM", 0)
    equal(tokenizer, plain, random_texts(7, 40))
    assert encoder._room <= 5


def test_words_that_were_being_learned_are_not_trusted(fresh, plain, monkeypatch):
    tokenizer, batch = fresh(), random_texts(4, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer._batches, "_encode_new", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tokenizer.encode_flat(batch)
    equal(tokenizer, plain, batch)


def test_an_interrupt_while_words_are_forgotten_changes_nothing(fresh, plain):
    tokenizer = fresh()
    equal(tokenizer, plain, random_texts(4, 40))

    def interrupted(*_):
        raise KeyboardInterrupt

    for name in ("_encode_new", "_look"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer._batches, name, interrupted)
            patch.setattr(batch_encoder, "WordTable", interrupted)
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    tokenizer.encode_flat(random_texts(5, 40))
        equal(tokenizer, plain, random_texts(4, 40))


def test_threads_share_one_encoder(qwen, monkeypatch):
    made = []

    class Slow(batch_encoder.BatchEncoder):
        def __init__(self, *arguments):
            made.append(self)
            time.sleep(0.05)  # so that the other threads come meanwhile
            super().__init__(*arguments)

    monkeypatch.setattr(tokenizer_lib, "BatchEncoder", Slow)
    tokenizer = Tokenizer(qwen.vocabulary)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        encoders = [*threads.map(lambda _: tokenizer._batches, range(4))]
    assert len(made) == 1
    assert set(encoders) == {*made}
