"""Generation against the whole forward pass, and what is sampled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.model import GenerateError, Qwen2, generate, to_tree
from apr_jax.model.generate import new_cache, sample, step
from tests.model import small

MODEL = Qwen2(small.CONFIG)
PARAMS = to_tree(small.weights())
KEY = jax.random.key(0)


def continuation(prompt_T: np.ndarray, **kwargs: object) -> list[int]:
    return list(generate(MODEL, PARAMS, prompt_T, **({"max_tokens": 8, "key": KEY} | kwargs)))


def test_cache_gives_the_whole_passes_logits() -> None:
    """Whatever the pieces in which the text is fed."""
    ids_BT = small.ids(12, batch=1)
    want_BTV = MODEL.apply({"params": PARAMS}, ids_BT)
    cache, place = new_cache(MODEL, 16), 0
    for length in (5, 1, 1, 4, 1):
        piece_BT = ids_BT[:, place : place + length]
        got_BV, cache = step(MODEL, PARAMS, cache, piece_BT, place)
        place += length
        np.testing.assert_allclose(got_BV, want_BTV[:, place - 1], atol=1e-5)


def test_greedy_takes_the_likeliest_of_the_whole_pass() -> None:
    ids_T = small.ids(5, batch=1)[0]
    for token in continuation(ids_T):
        logits_BTV = MODEL.apply({"params": PARAMS}, ids_T[None])
        assert token == int(jnp.argmax(logits_BTV[0, -1]))
        ids_T = np.append(ids_T, np.int32(token))
    assert len(ids_T) == 13


def test_ends_before_eos() -> None:
    ids_T = small.ids(5, batch=1)[0]
    tokens = continuation(ids_T)
    assert continuation(ids_T, eos_id=tokens[3]) == tokens[: tokens.index(tokens[3])]
    many = continuation(ids_T, eos_id=[tokens[3], tokens[1]])
    assert many == tokens[: min(tokens.index(tokens[3]), tokens.index(tokens[1]))]


def test_the_key_decides_the_samples() -> None:
    ids_T = small.ids(5, batch=1)[0]
    one, again, other = (
        continuation(ids_T, temperature=5.0, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_samples_follow_the_tempered_distribution() -> None:
    logits_V = jnp.log(jnp.array([0.1, 0.5, 0.15, 0.25]))
    draws = sample(jnp.broadcast_to(logits_V, (20_000, 4)), KEY, 0.5, 1.0)
    want_V = np.array([0.01, 0.25, 0.0225, 0.0625]) / 0.345
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 20_000, want_V, atol=0.015)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {1}), (0.6, {1, 3}), (0.8, {1, 2, 3})])
def test_nucleus(top_p: float, kept: set[int]) -> None:
    logits_V = jnp.log(jnp.array([0.1, 0.5, 0.15, 0.25]))
    draws = sample(jnp.broadcast_to(logits_V, (1000, 4)), KEY, 1.0, top_p)
    assert set(np.asarray(draws).tolist()) == kept


def test_a_tiny_temperature_takes_the_likeliest() -> None:
    logits_BV = jnp.array([[3.0, 4.0, 1.0]])
    assert int(sample(logits_BV, KEY, 1e-37, 1.0)[0]) == 1
    ids_T = small.ids(5, batch=1)[0]
    assert continuation(ids_T, temperature=1e-50) == continuation(ids_T)


@pytest.mark.parametrize(
    ("message", "prompt", "changes"),
    [
        ("prompt is empty", [], {}),
        ("0 to 60", [3, 61], {}),
        ("0 to 60", [-1, 3], {}),
        ("more than the 64 positions", [1] * 60, {}),
        ("max_tokens=0", [1], {"max_tokens": 0}),
        ("temperature=-1", [1], {"temperature": -1.0}),
        ("top_p=0", [1], {"top_p": 0.0}),
    ],
)
def test_refuses(message: str, prompt: list[int], changes: dict[str, object]) -> None:
    with pytest.raises(GenerateError, match=message):
        continuation(np.array(prompt, np.int32), **changes)


def test_bfloat16_keeps_the_cache_in_bfloat16() -> None:
    model = dataclasses.replace(MODEL, compute_dtype=jnp.bfloat16)
    cache = new_cache(model, 8)
    logits_BV, cache = step(model, PARAMS, cache, small.ids(3, batch=1), 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}
    assert logits_BV.dtype == jnp.float32
