"""The model against the float64 reference, and the properties that training relies on."""

import dataclasses
from collections.abc import Callable

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.model import Qwen2, init_params, qwen2, reference, to_named, to_tree
from kernels.attention import attention
from tests.model import small

# Largest error over the largest logit, against float64.
TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-2}


def logits(
    named: dict[str, np.ndarray],
    ids_BT: np.ndarray,
    config: Qwen2Config = small.CONFIG,
    compute_dtype: str = "float32",
    remat: bool = False,
    **kwargs: object,
) -> np.ndarray:
    model = Qwen2(config, jnp.dtype(compute_dtype), remat=remat)
    return np.asarray(jax.jit(model.apply)({"params": to_tree(named)}, ids_BT, **kwargs))


def error(got_BTV: np.ndarray, want_BTV: np.ndarray) -> float:
    return float(np.abs(got_BTV - want_BTV).max() / np.abs(want_BTV).max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("compute_dtype", TOLERANCE)
def test_logits_are_the_references(compute_dtype: str, tied: bool) -> None:
    config = dataclasses.replace(small.CONFIG, tied=tied)
    named, ids_BT = small.weights(config), small.ids(40)
    got_BTV = logits(named, ids_BT, config, compute_dtype)
    want_BTV = reference.forward(config, named, ids_BT)["logits"]
    assert got_BTV.dtype == np.float32
    assert error(got_BTV, want_BTV) <= TOLERANCE[compute_dtype]


def test_hidden_and_head_are_the_whole() -> None:
    model, ids_BT = Qwen2(small.CONFIG, jnp.bfloat16), small.ids(9)
    variables = {"params": to_tree(small.weights())}
    hidden_BTD = model.apply(variables, ids_BT, method="hidden")
    assert hidden_BTD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        model.apply(variables, hidden_BTD, method="logits"), model.apply(variables, ids_BT)
    )


@pytest.mark.parametrize("tied", [True, False])
def test_cross_entropy_and_its_gradients_are_those_of_the_logits(tied: bool) -> None:
    model, ids_BT = Qwen2(dataclasses.replace(small.CONFIG, tied=tied)), small.ids(10)
    params = to_tree(small.weights(model.config))
    ids_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    weights_BT = np.random.default_rng(0).random(targets_BT.shape, np.float32)

    def of_logits(params: object) -> jax.Array:
        logits_BTV = model.apply({"params": params}, ids_BT)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels
        return jnp.sum(weights_BT * losses(logits_BTV, targets_BT))

    def fused(params: object) -> jax.Array:
        arrays = (ids_BT, targets_BT, weights_BT)
        return model.apply({"params": params}, *arrays, method="cross_entropy")[0]

    (want, wants), (got, gots) = (jax.value_and_grad(f)(params) for f in (of_logits, fused))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    wants = to_named(wants)
    for name, value in to_named(gots).items():
        assert error(value, wants[name]) <= 1e-5, name


# Each entry changes the weights, the config or the code as a plausible bug would.
def _reshape_for_transpose(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def mutate(named: dict[str, np.ndarray]) -> None:
        named[name] = named[name].T.reshape(named[name].shape)

    return mutate


def _zero(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def mutate(named: dict[str, np.ndarray]) -> None:
        named[name] = np.zeros_like(named[name])

    return mutate


def _interleaved(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """RoPE as GPT-J has it: channels 2i and 2i + 1 turn together."""
    halves_BTNH = jnp.concatenate([x_BTNH[..., ::2], x_BTNH[..., 1::2]], axis=-1)
    first_BTNh, second_BTNh = jnp.split(ROTATE(halves_BTNH, positions_BT, theta), 2, axis=-1)
    return jnp.stack([first_BTNh, second_BTNh], axis=-1).reshape(x_BTNH.shape)


def _unmasked(q: jax.Array, k: jax.Array, v: jax.Array, *, impl: str, **_: object) -> jax.Array:
    return attention(q, k, v, causal=False, impl=impl)


def _heads_dealt_round(q: jax.Array, k: jax.Array, v: jax.Array, **kwargs: object) -> jax.Array:
    """Query head n reads key-value head n % K, as repeating the whole K and V would make it."""
    K = k.shape[2]
    order = np.arange(q.shape[2]).reshape(-1, K).T.reshape(-1)
    return attention(q[:, :, order], k, v, **kwargs)[:, :, np.argsort(order)]


ROTATE = qwen2._rotate
AT = "model.layers.1.self_attn."
WEIGHT_MUTATIONS = {
    **{
        f"{name}_proj reshaped for a transpose": _reshape_for_transpose(f"{AT}{name}_proj.weight")
        for name in "qkvo"
    },
    **{
        f"{name}_proj reshaped for a transpose": _reshape_for_transpose(
            f"model.layers.0.mlp.{name}_proj.weight"
        )
        for name in ("gate", "up", "down")
    },
    **{f"{name}_proj without bias": _zero(f"{AT}{name}_proj.bias") for name in "qkv"},
}
CONFIG_MUTATIONS = {"eps": {"rms_norm_eps": 1e-5}, "theta": {"rope_theta": 1e4}}
CODE_MUTATIONS = {
    "interleaved RoPE": ("_rotate", _interleaved),
    "no mask": ("attention", _unmasked),
    "heads dealt round": ("attention", _heads_dealt_round),
}


def _mutant(mutation: str, ids_BT: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    named, config = small.weights(), small.CONFIG
    if mutation in WEIGHT_MUTATIONS:
        WEIGHT_MUTATIONS[mutation](named)
    elif mutation in CONFIG_MUTATIONS:
        config = dataclasses.replace(config, **CONFIG_MUTATIONS[mutation])
    else:
        monkeypatch.setattr(qwen2, *CODE_MUTATIONS[mutation])
    return logits(named, ids_BT, config)


@pytest.mark.parametrize("mutation", [*WEIGHT_MUTATIONS, *CONFIG_MUTATIONS, *CODE_MUTATIONS])
def test_mutation_is_seen(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids_BT = small.ids(40)
    want_BTV = reference.forward(small.CONFIG, small.weights(), ids_BT)["logits"]
    assert error(_mutant(mutation, ids_BT, monkeypatch), want_BTV) > 10 * TOLERANCE["float32"]


def test_logits_depend_on_the_past_alone() -> None:
    """Gradients of the logits at t with respect to the embedded tokens: none after t."""
    model, T = Qwen2(small.CONFIG), 9
    params = to_tree(small.weights())

    def outputs_T(embedding_VD: jax.Array) -> jax.Array:
        changed = jax.tree.map(lambda x: x, params)
        changed["model"]["embed_tokens"]["weight"] = embedding_VD
        # Each id once, so that a row of the embedding is a place in the text.
        hidden_BTD = model.apply({"params": changed}, np.arange(T)[None], method="hidden")
        return jnp.sum(jnp.square(hidden_BTD) * np.arange(1, 41)[None, None], axis=(0, 2))

    embedding_VD = jnp.asarray(small.weights()["model.embed_tokens.weight"])
    jacobian_TVD = jax.jit(jax.jacrev(outputs_T))(embedding_VD)
    reached_TT = np.any(np.asarray(jacobian_TVD)[:, :T] != 0, axis=-1)
    np.testing.assert_array_equal(reached_TT, np.tril(np.ones((T, T), bool)))


def test_packed_documents_are_as_if_alone() -> None:
    named, lengths = small.weights(), (7, 1, 12)
    documents = [small.ids(length, batch=1, seed=length) for length in lengths]
    starts = np.cumsum([0, *lengths[:-1]])
    packed_BTV = logits(
        named,
        np.concatenate(documents, axis=1),
        segment_start_BT=np.repeat(starts, lengths).astype(np.int32)[None],
    )
    for start, ids_BT in zip(starts, documents, strict=True):
        alone_BTV = logits(named, ids_BT)
        np.testing.assert_allclose(
            packed_BTV[:, start : start + ids_BT.shape[1]], alone_BTV, atol=1e-6
        )


def test_positions_shift_without_effect() -> None:
    """RoPE is relative: only differences of positions count."""
    named, ids_BT = small.weights(), small.ids(9)
    moved_BTV = logits(named, ids_BT, positions_BT=np.arange(5, 14, dtype=np.int32)[None])
    np.testing.assert_allclose(moved_BTV, logits(named, ids_BT), atol=1e-5)


def test_remat_changes_no_gradient() -> None:
    ids_BT, params = small.ids(9), to_tree(small.weights())

    def gradient(remat: bool) -> dict[str, jax.Array]:
        model = Qwen2(small.CONFIG, remat=remat)

        def loss(params: object) -> jax.Array:
            return jnp.mean(jnp.square(model.apply({"params": params}, ids_BT)))

        return to_named(jax.jit(jax.grad(loss))(params))

    plain, again = gradient(remat=False), gradient(remat=True)
    assert plain.keys() == small.CONFIG.tensors().keys()
    for name, value in plain.items():
        assert np.any(value != 0), name
        np.testing.assert_allclose(value, again[name], atol=1e-6, err_msg=name)


def test_blocks_are_named_in_profiles() -> None:
    model = Qwen2(small.CONFIG)
    variables = {"params": init_params(small.CONFIG, 0)}
    text = jax.jit(model.apply).lower(variables, small.ids(9)).as_text(debug_info=True)
    assert "layers_1/self_attn/" in text.replace(".", "/")


@pytest.mark.parametrize("tied", [True, False])
def test_flax_would_make_the_declared_tree(tied: bool) -> None:
    config = dataclasses.replace(small.CONFIG, tied=tied)
    made = jax.eval_shape(Qwen2(config).init, jax.random.key(0), small.ids(3))["params"]
    shapes = {name: value.shape for name, value in to_named(made).items()}
    assert shapes == {name: spec.shape for name, spec in config.tensors().items()}


def test_a_matrix_of_another_shape_is_refused() -> None:
    named = small.weights()
    named["model.layers.0.mlp.up_proj.weight"] = named["model.layers.0.mlp.up_proj.weight"].T
    with pytest.raises(flax.errors.ScopeParamShapeError, match="up_proj"):
        logits(named, small.ids(3))


def test_an_id_without_row_gives_nan() -> None:
    ids_BT = small.ids(3)
    ids_BT[0, 2] = small.CONFIG.vocab_size
    got_BTV = logits(small.weights(), ids_BT)
    assert np.isnan(got_BTV[0, 2]).all() and np.isfinite(got_BTV[1]).all()
