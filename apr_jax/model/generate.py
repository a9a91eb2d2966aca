"""Continuing a text, token by token, with keys and values kept in a cache of fixed size.

Letters in shapes: B batch (always 1), T positions, S places in the cache, K key-value heads,
H head size, V vocabulary.
"""

import functools
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.errors import UserError
from apr_jax.model.qwen2 import Qwen2


class GenerateError(UserError):
    """The prompt or the request does not fit the model."""


def generate(
    model: Qwen2,
    params: Any,
    prompt_T: np.ndarray,
    *,
    max_tokens: int,
    key: jax.Array,
    temperature: float = 0.0,
    top_p: float = 1.0,
    eos_id: int | Collection[int] | None = None,
) -> Iterator[int]:
    """Yield up to `max_tokens` ids that continue `prompt_T`; ends before an `eos_id`, one of many.

    Args:
      prompt_T: int32 ids, at least one.
      key: of `jax.random`; decides every sample.
      temperature: divides the logits; 0 takes the likeliest token.
      top_p: sample among the likeliest tokens that together reach this probability.

    Raises:
      GenerateError: an empty or too long prompt, an id without a row, or a value out of range.
    """
    _check(model.config, prompt_T, max_tokens, temperature, top_p)
    ends = {eos_id} if isinstance(eos_id, int) else set(eos_id or ())
    return _continue(model, params, prompt_T, max_tokens, key, temperature, top_p, ends)


def new_cache(model: Qwen2, length: int) -> dict[str, Any]:
    """An empty "cache" collection for `model.apply`, with room for `length` positions."""
    config = model.config
    shape_BSKH = (1, length, config.num_kv_heads, config.head_dim)
    return {
        "model": {
            f"layers_{layer}": {
                "self_attn": {
                    "k_BSKH": jnp.zeros(shape_BSKH, model.compute_dtype),
                    "v_BSKH": jnp.zeros(shape_BSKH, model.compute_dtype),
                }
            }
            for layer in range(config.num_layers)
        }
    }


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def step(
    model: Qwen2, params: Any, cache: dict[str, Any], ids_BT: jax.Array, place: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """Write `ids_BT` into the cache from `place` on; the logits BV after the last, and the cache.

    Compiles once for each T: for the prompt, and for single tokens.
    """
    positions_BT = place + jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
    hidden_BTD, state = model.apply(
        {"params": params, "cache": cache},
        ids_BT,
        positions_BT=positions_BT,
        method="hidden",
        mutable=["cache"],
    )
    logits_BTV = model.apply({"params": params}, hidden_BTD[:, -1:], method="logits")
    return logits_BTV[:, 0], state["cache"]


@jax.jit
def sample(logits_BV: jax.Array, key: jax.Array, temperature: float, top_p: float) -> jax.Array:
    """Ids B drawn from the nucleus of the tempered distribution; the likeliest is always in it."""
    order_BV = jnp.argsort(logits_BV, axis=-1, descending=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    # The largest becomes 0 first, so that a tiny temperature overflows none but the others.
    tempered_BV = (sorted_BV - sorted_BV[:, :1]) / temperature
    probability_BV = jax.nn.softmax(tempered_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    nucleus_BV = jnp.where(before_BV < top_p, tempered_BV, -jnp.inf)
    rank_B = jax.random.categorical(key, nucleus_BV)
    return jnp.take_along_axis(order_BV, rank_B[:, None], axis=-1)[:, 0]


def _continue(
    model: Qwen2,
    params: Any,
    prompt_T: np.ndarray,
    max_tokens: int,
    key: jax.Array,
    temperature: float,
    top_p: float,
    ends: Collection[int],
) -> Iterator[int]:
    # Only the plain implementation can continue a cache; for single queries it is the right one.
    model = model.clone(attention_impl="xla", remat=False)
    cache, ids_BT, place = new_cache(model, len(prompt_T) + max_tokens), prompt_T[None], 0
    greedy = np.float32(temperature) == 0  # so is what float32 cannot tell from 0
    for token_key in jax.random.split(key, max_tokens):
        logits_BV, cache = step(model, params, cache, ids_BT, place)
        place += ids_BT.shape[1]
        if greedy:
            token = int(jnp.argmax(logits_BV[0]))
        else:
            token = int(sample(logits_BV, token_key, temperature, top_p)[0])
        if token in ends:
            return
        yield token
        ids_BT = np.array([[token]], np.int32)


def _check(
    config: Qwen2Config, prompt_T: np.ndarray, max_tokens: int, temperature: float, top_p: float
) -> None:
    if not len(prompt_T):
        raise GenerateError("the prompt is empty: give at least one token to continue")
    if max_tokens < 1:
        raise GenerateError(f"max_tokens={max_tokens}: ask for at least 1")
    if len(prompt_T) + max_tokens > config.max_position_embeddings:
        raise GenerateError(
            f"{len(prompt_T)} prompt tokens and max_tokens={max_tokens} are more than the "
            f"{config.max_position_embeddings} positions of the model; ask for fewer"
        )
    if not 0 <= prompt_T.min() <= prompt_T.max() < config.vocab_size:
        raise GenerateError(
            f"the prompt has ids from {prompt_T.min()} to {prompt_T.max()}, the model has rows for "
            f"0 to {config.vocab_size - 1}; use the model's own tokenizer"
        )
    if not temperature >= 0:
        raise GenerateError(f"temperature={temperature}: give 0 (the likeliest token) or more")
    if not 0 < top_p <= 1:
        raise GenerateError(f"top_p={top_p}: give a probability above 0, at most 1")
