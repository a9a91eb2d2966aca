"""The dictionary of words against what it was filled from."""

import numpy as np

from apr_jax.text import known_words
from apr_jax.text.known_words import KnownWords


def test_rows_are_those_of_the_words(monkeypatch):
    monkeypatch.setattr(known_words, "_WORDS", 20)
    asked = []

    def encode(words):
        asked.extend(words)
        return [[*word] if word != b"none" else [] for word in words]

    known = KnownWords(encode)
    rng = np.random.default_rng(0)
    for _ in range(30):  # with words that repeat, that are forgotten, and that are not kept
        words = [str(n) for n in rng.integers(0, 60, 10)] + ["none", "long" * 30]
        for word, row in zip(words, known.rows(words), strict=True):
            expected = [*word.encode()] if word != "none" else []
            assert np.frombuffer(row, np.int32).tolist() == expected
    assert asked.count(b"long" * 30) == 30
    assert known.rows([]) == []
