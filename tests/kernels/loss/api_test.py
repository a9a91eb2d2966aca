"""The fused loss against its definition in float64, its plain reference, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from kernels.loss import linear_cross_entropy
from kernels.loss.reference import linear_cross_entropy_whole
from tests.kernels.loss import oracle

# Largest error over the largest value of the float64 result. In 16 bits the gradient of the
# logits is rounded, and so is the result of its product with the head.
LOSS = {"float32": 1e-5, "bfloat16": 1e-5, "float16": 1e-5}
GRADIENT = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-3}
FACTOR = 0.37  # the loss is never what is differentiated alone: a step divides it by the tokens
FLOATING = ("x_BTD", "weight_VD", "weights_BT")


def inputs(
    B: int = 3, T: int = 11, D: int = 24, V: int = 53, dtype: str = "float32"
) -> dict[str, Array]:
    rng = np.random.default_rng([B, T, D, V])
    return {
        "x_BTD": jnp.asarray(rng.standard_normal((B, T, D)), dtype),
        # Rounded, so that in 16 bits casting it changes nothing and the oracle has the same rows.
        "weight_VD": jnp.asarray(rng.standard_normal((V, D)), dtype).astype(jnp.float32),
        "targets_BT": jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32),
        "weights_BT": jnp.asarray(rng.uniform(-1, 2, (B, T)), jnp.float32),
    }


def likely(margin: float | tuple[float, float], dtype: str, *, far: bool) -> dict[str, Array]:
    """Inputs whose targets' logits are about `margin` above all others, or some uniform number
    between two; `far` adds a token 90 below, without weight to speak of: all is done again."""
    arrays = inputs(2, 64, 64, 256, dtype)
    rng = np.random.default_rng(0)
    weight_VD = np.asarray(0.2 * arrays["weight_VD"].astype(dtype), np.float64)
    rows_BTD = weight_VD[np.asarray(arrays["targets_BT"])]
    margin_BT = rng.uniform(*margin, (2, 64)) if isinstance(margin, tuple) else margin
    x_BTD = np.asarray(arrays["x_BTD"], np.float64)
    lengths_BT = np.linalg.norm(rows_BTD, axis=-1)
    x_BTD += np.expand_dims((margin_BT + np.log(256)) / lengths_BT**2, -1) * rows_BTD
    weights_BT = 1 + 0.5 * np.abs(np.asarray(arrays["weights_BT"]))
    if far:
        x_BTD[0, 0] = -90 * rows_BTD[0, 0] / lengths_BT[0, 0] ** 2
        weights_BT[0, 0] = 1e-30
    return arrays | {
        "x_BTD": jnp.asarray(x_BTD, dtype),
        "weight_VD": jnp.asarray(weight_VD, jnp.float32),
        "weights_BT": jnp.asarray(weights_BT, jnp.float32),
    }


def check_likely(
    arrays: dict[str, Array], *, far: bool, impl: str = "xla", **kwargs: object
) -> None:
    """Nothing is lost in a difference: each token's nats are as exact as large ones, and gradients
    as close as one rounding or two allow, as a whole and of the worst token and row."""
    wants = oracle.linear_cross_entropy(**{k: np.asarray(v) for k, v in arrays.items()})
    gots = ours(arrays, impl, **kwargs)
    assert (wants["nats"].max() > 60) == far
    _, without_gradients_BT = linear_cross_entropy(**arrays, impl=impl, **kwargs)
    for nats_BT in (gots["nats"], without_gradients_BT):
        np.testing.assert_allclose(nats_BT, wants["nats"], rtol=1e-5)
    assert error(gots["loss"], wants["loss"]) <= 1e-5
    dtype = arrays["x_BTD"].dtype
    eps = 1e-5 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
    smallest = float(jnp.finfo(dtype).smallest_subnormal)  # which is not so small in float16
    for name in ("x_BTD", "weight_VD"):
        want = FACTOR * wants[name]
        wrong = np.linalg.norm(np.asarray(gots[name], np.float64) - want, axis=-1)
        size = np.linalg.norm(want, axis=-1)
        assert np.linalg.norm(wrong) <= 0.5 * eps * np.linalg.norm(size), name
        assert np.all(wrong <= eps * size + smallest * want.shape[-1] ** 0.5), name


def bytes_for(tokens: int, arrays: dict[str, Array]) -> int:
    """`max_bytes` that makes chunks of so many tokens."""
    return tokens * arrays["weight_VD"].shape[0] * (4 + arrays["x_BTD"].dtype.itemsize)


def ours(arrays: dict[str, Array], impl: str = "xla", **kwargs: object) -> dict[str, Array]:
    """What the oracle returns, but all gradients FACTOR times as large."""

    def scaled(arrays: dict[str, Array]) -> tuple[Array, tuple[Array, Array]]:
        loss, nats_BT = linear_cross_entropy(**arrays, impl=impl, **kwargs)
        return FACTOR * loss, (loss, nats_BT)

    @jax.jit
    def both(arrays: dict[str, Array]) -> tuple[dict[str, Array], tuple[Array, Array]]:
        return jax.grad(scaled, has_aux=True, allow_int=True)(arrays)

    grads, (loss, nats_BT) = both(arrays)
    return {"loss": loss, "nats": nats_BT} | {name: grads[name] for name in FLOATING}


def error(got: Array, want: np.ndarray) -> float:
    scale = np.abs(want).max()
    return float(np.abs(np.asarray(got, np.float64) - want).max() / (scale or 1.0))


def check(arrays: dict[str, Array], impl: str = "xla", **kwargs: object) -> None:
    options = {name: kwargs[name] for name in ("ignore_index", "z_loss") if name in kwargs}
    wants = oracle.linear_cross_entropy(**{k: np.asarray(v) for k, v in arrays.items()}, **options)
    dtype = arrays["x_BTD"].dtype.name
    for name, got in ours(arrays, impl, **kwargs).items():
        if name in ("loss", "nats"):
            assert got.dtype == jnp.float32
            assert error(got, wants[name]) <= LOSS[dtype], name
        else:
            assert got.dtype == arrays[name].dtype
            assert error(got, FACTOR * wants[name]) <= GRADIENT[dtype], name
    # Without gradients the loss comes another way, to the same.
    loss, nats_BT = linear_cross_entropy(**arrays, impl=impl, **kwargs)
    assert error(loss, wants["loss"]) <= LOSS[dtype]
    assert error(nats_BT, wants["nats"]) <= LOSS[dtype]


@pytest.mark.parametrize("dtype", LOSS)
@pytest.mark.parametrize(("tokens", "z_loss"), [(1, 0.0), (8, 0.1), (33, 0.0)])
def test_loss_and_gradients(tokens: int, z_loss: float, dtype: str) -> None:
    """Chunks of one token; ragged ones; all tokens in one."""
    arrays = inputs(dtype=dtype)
    check(arrays, max_bytes=bytes_for(tokens, arrays), z_loss=z_loss)


@pytest.mark.parametrize(("B", "T", "V"), [(1, 1, 53), (1, 1, 1), (2, 1, 7), (1, 300, 131)])
def test_shapes(B: int, T: int, V: int) -> None:
    arrays = inputs(B, T, V=V)
    check(arrays, max_bytes=bytes_for(129, arrays))


@pytest.mark.parametrize(
    ("dtype", "far"),
    [("float32", False), ("bfloat16", False), ("bfloat16", True), ("float16", False)],
)
@pytest.mark.parametrize("margin", [12, (-6, 13)])
def test_likely_targets(margin: float | tuple[float, float], dtype: str, far: bool) -> None:
    arrays = likely(margin, dtype, far=far)
    check_likely(arrays, far=far, max_bytes=bytes_for(64, arrays))


def test_numpy_arrays() -> None:
    arrays = inputs()
    loss, nats_BT = linear_cross_entropy(**jax.tree.map(np.asarray, arrays), impl="xla")
    want, want_BT = linear_cross_entropy(**arrays, impl="xla")
    np.testing.assert_array_equal(loss, want)
    np.testing.assert_array_equal(nats_BT, want_BT)


def test_ignored_targets() -> None:
    arrays = inputs()
    arrays["targets_BT"] = arrays["targets_BT"].at[1, 2:9].set(-100)
    check(arrays, max_bytes=bytes_for(8, arrays), ignore_index=-100, z_loss=0.1)
    some_id = int(arrays["targets_BT"][0, 0])
    check(arrays | {"targets_BT": jnp.maximum(arrays["targets_BT"], 0)}, ignore_index=some_id)


def test_all_targets_ignored() -> None:
    arrays = inputs()
    arrays["targets_BT"] = jnp.full_like(arrays["targets_BT"], -100)
    for name, got in ours(arrays, ignore_index=-100).items():
        if name != "weights_BT":
            assert not np.any(got), name


def test_no_weights_are_ones() -> None:
    arrays = inputs()
    ones = arrays | {"weights_BT": jnp.ones_like(arrays["weights_BT"])}
    del arrays["weights_BT"]
    given, implied = (linear_cross_entropy(**a, impl="xla") for a in (ones, arrays))
    for got, want in zip(implied, given, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_large_logits_do_not_overflow(scale: float) -> None:
    arrays = inputs()
    check(arrays | {"x_BTD": scale * arrays["x_BTD"]}, max_bytes=bytes_for(8, arrays))


@pytest.mark.parametrize("weight_dtype", ["bfloat16", "float16"])
def test_a_head_in_16_bits_gets_its_gradient_in_16_bits(weight_dtype: str) -> None:
    arrays = inputs()
    arrays["weight_VD"] = arrays["weight_VD"].astype(weight_dtype)
    got = ours(arrays, max_bytes=bytes_for(8, arrays))["weight_VD"]
    want = oracle.linear_cross_entropy(**{k: np.asarray(v) for k, v in arrays.items()})
    assert got.dtype == jnp.dtype(weight_dtype)
    # One rounding of a sum that was kept in float32.
    assert error(got, FACTOR * want["weight_VD"]) <= jnp.finfo(weight_dtype).eps


@pytest.mark.parametrize("target", [53, -1, -(2**31)])
def test_a_target_without_row_gives_nan(target: int) -> None:
    arrays = inputs()
    arrays["targets_BT"] = arrays["targets_BT"].at[2, 4].set(target)
    found = ours(arrays, max_bytes=bytes_for(8, arrays))
    assert np.isnan(found["loss"])
    assert np.argwhere(np.isnan(found["nats"])).tolist() == [[2, 4]]


def test_what_has_no_weight_is_not_in_the_sum() -> None:
    arrays = inputs()
    arrays["weights_BT"] = arrays["weights_BT"].at[2, 4].set(0)
    want = ours(arrays, max_bytes=bytes_for(8, arrays))
    arrays["targets_BT"] = arrays["targets_BT"].at[2, 4].set(53)
    found = ours(arrays, max_bytes=bytes_for(8, arrays))
    for name in ("loss", "x_BTD", "weight_VD"):
        np.testing.assert_array_equal(found[name], want[name])


def test_what_has_no_weight_is_not_in_gradients() -> None:
    arrays = inputs()
    arrays["weights_BT"] = arrays["weights_BT"].at[2, 4].set(0)
    arrays["targets_BT"] = arrays["targets_BT"].at[1, 3].set(-100)
    options = {"max_bytes": bytes_for(8, arrays), "ignore_index": -100}
    want = ours(arrays, **options)
    arrays["x_BTD"] = arrays["x_BTD"].at[2, 4, 0].set(jnp.nan).at[1, 3, :].set(jnp.inf)
    found = ours(arrays, **options)
    for name in ("loss", "x_BTD", "weight_VD"):
        np.testing.assert_array_equal(found[name], want[name])
    assert np.argwhere(np.isnan(found["nats"])).tolist() == [[2, 4]]


def test_no_tokens() -> None:
    found = ours(inputs(2, 0))
    assert found["loss"] == 0 and not np.any(found["weight_VD"])


def test_a_sum_that_is_too_large_for_float16() -> None:
    """Its mean is not: the rows' gradient is divided before it is rounded."""
    arrays = inputs(1, 256, V=3, dtype="float16")
    arrays["weight_VD"] = jnp.zeros_like(arrays["weight_VD"], dtype="float16")
    arrays["x_BTD"] = 512 * jnp.ones_like(arrays["x_BTD"])
    arrays["targets_BT"] = jnp.zeros_like(arrays["targets_BT"])
    arrays["weights_BT"] = jnp.ones_like(arrays["weights_BT"])

    def mean(weight_VD: Array) -> Array:
        return linear_cross_entropy(**arrays | {"weight_VD": weight_VD}, impl="xla")[0] / 256

    want = oracle.linear_cross_entropy(**{k: np.asarray(v) for k, v in arrays.items()})
    assert np.abs(want["weight_VD"]).max() > np.finfo("float16").max
    assert error(jax.grad(mean)(arrays["weight_VD"]), want["weight_VD"] / 256) <= 2e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_token_that_is_not_finite_shows(bad: float) -> None:
    arrays = inputs()
    arrays["x_BTD"] = arrays["x_BTD"].at[2, 4, 0].set(bad)
    found = ours(arrays, max_bytes=bytes_for(8, arrays))
    assert not np.isfinite(found["loss"])
    assert np.argwhere(~np.isfinite(found["nats"])).tolist() == [[2, 4]]
    assert not np.isfinite(found["x_BTD"][2, 4]).any()


@pytest.mark.parametrize("dtype", LOSS)
def test_reference(dtype: str) -> None:
    """The plain reference is held against the same oracle."""
    arrays = inputs(dtype=dtype)
    wants = oracle.linear_cross_entropy(**{k: np.asarray(v) for k, v in arrays.items()}, z_loss=0.1)
    differentiate = jax.value_and_grad(linear_cross_entropy_whole, (0, 1, 3), has_aux=True)
    (loss, nats_BT), grads = differentiate(*arrays.values(), z_loss=0.1)
    assert error(loss, wants["loss"]) <= LOSS[dtype]
    assert error(nats_BT, wants["nats"]) <= LOSS[dtype]
    for name, got in zip(FLOATING, grads, strict=True):
        assert error(got, wants[name]) <= GRADIENT[dtype], name


def test_nats_have_no_gradient() -> None:
    arrays = inputs()

    def nats(x_BTD: Array) -> Array:
        return linear_cross_entropy(**arrays | {"x_BTD": x_BTD}, impl="xla")[1].sum()

    assert not np.any(jax.grad(nats)(arrays["x_BTD"]))


def test_memory_is_that_of_a_chunk() -> None:
    """No array of the compiled step, forward and backward, is as large as all logits."""
    shapes = {"x_BTD": (4, 512, 16), "weight_VD": (4096, 16)}
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in shapes.items()}
    targets_BT = jax.ShapeDtypeStruct((4, 512), jnp.int32)

    def temporary_bytes(max_bytes: int) -> int:
        def loss(x_BTD: Array, weight_VD: Array, targets_BT: Array) -> Array:
            arrays = (x_BTD, weight_VD, targets_BT)
            return linear_cross_entropy(*arrays, max_bytes=max_bytes, impl="xla")[0]

        step = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arrays.values(), targets_BT)
        return step.compile().memory_analysis().temp_size_in_bytes

    whole = 4 * 512 * 4096 * 6
    assert temporary_bytes(whole) >= whole / 2
    assert temporary_bytes(whole // 32) <= whole / 8


def test_eval_multiplies_by_the_head_once() -> None:
    arrays = inputs()
    flops = [
        jax.jit(f).lower(arrays).compile().cost_analysis()["flops"]
        for f in (
            lambda arrays: linear_cross_entropy(**arrays, impl="xla"),
            lambda arrays: ours(arrays),
        )
    ]
    assert flops[0] < 0.5 * flops[1]


REFUSED = {
    "rank of x": (ValueError, "x needs the axes", {"x_BTD": (33, 24)}),
    "rank of weight": (ValueError, "x needs the axes", {"weight_VD": (1, 53, 24)}),
    "model size": (ValueError, "differ in the size of the model", {"weight_VD": (53, 23)}),
    "targets": (ValueError, "one value for each token", {"targets_BT": (3, 10)}),
    "weights": (ValueError, "one value for each token", {"weights_BT": (3, 1)}),
    "dtype of x": (TypeError, "not int32", {"x_BTD": "int32"}),
    "dtype of weight": (TypeError, "weight must be floating, not int8", {"weight_VD": "int8"}),
    "dtype of targets": (
        TypeError,
        "targets must be int32, not float32",
        {"targets_BT": "float32"},
    ),
    "dtype of weights": (TypeError, "weights must be float32, not bool", {"weights_BT": "bool"}),
    "no rows": (ValueError, "weight needs at least one row", {"weight_VD": (0, 24)}),
    "a list": (TypeError, "targets must be an array, not list", {"targets_BT": [[0] * 11] * 3}),
    "max_bytes not an integer": (TypeError, "must be an integer, not 10000.0", {"max_bytes": 1e4}),
    "negative z_loss": (ValueError, "z_loss=-1.0 must be", {"z_loss": -1.0}),
    "z_loss in words": (TypeError, "z_loss must be a number, not '0.1'", {"z_loss": "0.1"}),
    "ignore_index in words": (
        TypeError,
        "ignore_index must be an integer or None, not '-100'",
        {"ignore_index": "-100"},
    ),
    "z_loss not finite": (ValueError, "z_loss=nan must be", {"z_loss": float("nan")}),
    "memory for no token": (ValueError, "holds 0 tokens, impl='xla' needs 1", {"max_bytes": 423}),
    "unknown impl": (ValueError, "impl='mosaic' is not one of 'pallas', 'xla'", {"impl": "mosaic"}),
    "pallas off GPUs": (NotImplementedError, "needs a GPU of the Hopper", {"impl": "pallas"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    error_type, message, changes = REFUSED[case]
    arrays = inputs()
    kwargs = {"impl": "xla"}
    for name, change in changes.items():
        if name not in arrays:
            kwargs[name] = change
        elif isinstance(change, list):
            arrays[name] = change
        elif isinstance(change, tuple):
            arrays[name] = jnp.zeros(change, arrays[name].dtype)
        else:
            arrays[name] = arrays[name].astype(change)
    with pytest.raises(error_type, match=message):
        linear_cross_entropy(**arrays, **kwargs)


def test_refuses_a_traced_z_loss() -> None:
    with pytest.raises(TypeError, match="z_loss must be a number, not traced"):
        jax.jit(lambda z: linear_cross_entropy(**inputs(), z_loss=z, impl="xla"))(0.1)
