"""The look that XLA compiles tells what the table tells, or nothing."""

import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from apr_jax.text import compiled_merges, word_table
from apr_jax.text.first_look import FirstLook
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.word_table import ABSENT, Text, WordTable

_DIVIDER = -5


def words_and_bounds(words):
    return Text(b"".join(words)), np.cumsum([0, *map(len, words)])


def table_of(words):
    """A table in which word i has the value 3 - i, and what it knows of short words."""
    table = WordTable(14, _DIVIDER)
    text, bounds = words_and_bounds(words)
    places = table.claim(text, bounds[:-1], np.diff(bounds))
    table.set_values(places, 3 - np.arange(len(words), dtype=np.int32))
    return table


def random_words(count):
    rng = np.random.default_rng(0)
    words = {
        bytes(rng.integers(0, rng.choice([2, 128, 255]), rng.integers(1, 24)).astype(np.uint8))
        for _ in range(count)
    }
    nul = [b"\0" * length for length in range(1, 24)]
    alike = [b"prefix--" + b"suffix--"[:length] for length in range(9)]
    return [*dict.fromkeys([*nul, *alike, *sorted(words)])]


def test_it_equals_the_table():
    words = random_words(3000)
    table, first_look = table_of(words), FirstLook(_DIVIDER)
    rows = table.short_words()
    half = len(rows[0]) // 2
    first_look.add(*(column[:half] for column in rows))
    first_look.add(*(column[half:] for column in rows))
    asked = [*words, b"\xff", *(word + b"?" for word in words)]
    order = np.random.default_rng(1).permutation(len(asked))
    asked = [asked[i] for i in order]
    text, bounds = words_and_bounds(asked)
    expected = table.find(text, bounds[:-1], np.diff(bounds))
    found = first_look.find(text, bounds)
    tells = found != ABSENT
    assert (found[tells] == expected[tells]).all()
    is_short = np.array([len(word) <= 16 for word in asked])
    assert not tells[~is_short].any()
    assert tells[is_short & (expected != ABSENT)].mean() > 0.95
    assert found[asked.index(b"\xff")] == _DIVIDER
    first_look.clear()
    assert set(first_look.find(text, bounds).tolist()) == {ABSENT, _DIVIDER}


def test_of_words_in_one_row_two_are_told(monkeypatch):
    monkeypatch.setattr(word_table, "MIX", np.zeros_like(word_table.MIX))
    monkeypatch.setattr("apr_jax.text.first_look.MIX", np.zeros_like(word_table.MIX))
    words = [b"one", b"two", b"three"]
    first_look = FirstLook(_DIVIDER)
    first_look.add(*table_of(words).short_words())
    assert (first_look.find(*words_and_bounds(words)) == ABSENT).sum() == 1


def test_whatever_the_caller_does_with_jax(qwen):
    tokenizer = Tokenizer(qwen.vocabulary)
    tokenizer.compile()
    text = "def f(x):\n    return x + 1\n" * 20_000
    expected = qwen.encode(text).tolist()
    with jax.transfer_guard("disallow"):
        assert tokenizer.encode(text).tolist() == expected

    @jax.jit
    def traced(x):
        return x + len(tokenizer.encode(text))

    assert traced(0) == len(expected)


def run(code, file, **environment):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; FILE = sys.argv[1]\n{code}", file],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_children_go_without_it(qwen_file):
    code = """
import multiprocessing, warnings
warnings.simplefilter("ignore")  # JAX warns of every fork
from apr_jax.text import load_tokenizer
tokenizer = load_tokenizer(FILE)
tokenizer.compile(merges=False)
texts = ["def f(x):\\n    return x + 1\\n" * 20_000] * 2
expected = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert [ids.tolist() for ids in pool.map(tokenizer.encode, texts)] == expected
"""
    done = run(code, qwen_file)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_children_cannot_compile_and_say_so(qwen_file):
    code = """
import os, pickle, signal, warnings
warnings.simplefilter("ignore")  # JAX warns of every fork
from apr_jax.errors import UserError
from apr_jax.text import load_tokenizer
tokenizer = load_tokenizer(FILE)
tokenizer.compile(merges=False)
data = pickle.dumps(tokenizer)
child = os.fork()
if not child:
    signal.alarm(20)
    for its in (tokenizer, pickle.loads(data)):
        try:
            its.compile()
            os._exit(3)
        except UserError as error:
            if "forked" not in str(error):
                os._exit(4)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""
    done = run(code, qwen_file)
    assert done.returncode == 0, done.stderr


def test_other_threads_encode_meanwhile_and_merges_are_compiled_once(qwen, monkeypatch):
    made, tokenizer = [], Tokenizer(qwen.vocabulary)
    tokenizer.encode("text " * 2000)

    class Slow:
        def __init__(self, merges):
            encoded = threading.Thread(target=tokenizer.encode, args=("text " * 2000,))
            encoded.start()
            encoded.join(20)
            made.append(encoded.is_alive())

    monkeypatch.setattr(compiled_merges, "CompiledMerges", Slow)
    tokenizer.compile()
    tokenizer.compile()
    assert made == [False]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_without_a_cpu_it_says_so(qwen_file, platform):
    code = """
from apr_jax.errors import UserError
from apr_jax.text import load_tokenizer
try:
    load_tokenizer(FILE).compile()
except UserError as error:
    sys.exit("\\n" in str(error) or str(error).endswith(": "))
sys.exit(3)
"""
    done = run(code, qwen_file, JAX_PLATFORMS=platform)
    assert done.returncode == 0, done.stderr
