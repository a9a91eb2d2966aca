"""Attention against the definition in float64, and everything that it refuses."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from kernels.attention import attention, attention_and_lse
from tests.kernels.attention import oracle

# Largest error over the largest value of the float64 result, for standard normal inputs.
TOLERANCE = {"float32": 1e-6, "bfloat16": 6e-3, "float16": 8e-4}
GROUPS = (1, 2, 6, 7, 8)
HEAD_DIMS = (64, 128)


def inputs(T: int, S: int, N: int, K: int, H: int, dtype: str = "float32") -> list[Array]:
    rng = np.random.default_rng([T, S, N, K, H])
    return [
        jnp.asarray(rng.standard_normal((2, *shape)), dtype)
        for shape in ((T, N, H), (S, K, H), (S, K, H))
    ]


def check(qkv: list[Array], impl: str = "xla", **kwargs: object) -> None:
    out_BTNH = attention(*qkv, impl=impl, **kwargs)
    assert out_BTNH.dtype == qkv[0].dtype
    want_BTNH = oracle.attention(*qkv, **kwargs)
    error = np.abs(np.asarray(out_BTNH, np.float64) - want_BTNH).max() / np.abs(want_BTNH).max()
    assert error <= TOLERANCE[out_BTNH.dtype.name]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("H", HEAD_DIMS)
@pytest.mark.parametrize("group", GROUPS)
def test_groups_head_sizes_and_dtypes(group: int, H: int, dtype: str) -> None:
    check(inputs(37, 37, 2 * group, 2, H, dtype))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
def test_ragged_lengths(length: int) -> None:
    check(inputs(length, length, 4, 2, 64))


def test_packed_rows_see_their_own_document() -> None:
    segment_start_BT = np.repeat([[0, 5, 6, 20], [0, 1, 2, 3]], [5, 1, 14, 13], axis=1)
    check(inputs(33, 33, 4, 2, 64), segment_start_BT=segment_start_BT.astype(np.int32))


def test_a_document_starts_at_the_latest_with_the_query() -> None:
    qkv = inputs(9, 9, 4, 2, 64)
    own_BT = np.tile(np.arange(9, dtype=np.int32), (2, 1))
    late, own = (attention(*qkv, segment_start_BT=x, impl="xla") for x in (own_BT + 3, own_BT))
    np.testing.assert_array_equal(late, own)


def test_full_attention_between_other_lengths() -> None:
    check(inputs(9, 23, 4, 2, 64), causal=False)


def test_queries_that_continue_a_cache() -> None:
    check(inputs(3, 23, 4, 2, 64), q_offset=11)


def test_scale() -> None:
    check(inputs(9, 9, 4, 2, 64), scale=0.5)


def test_large_scores_do_not_overflow() -> None:
    q_BTNH, k_BSKH, v_BSKH = inputs(9, 9, 4, 2, 64)
    check([30 * q_BTNH, 30 * k_BSKH, v_BSKH])


def test_gradients_stay_in_document_and_past() -> None:
    """Output t of document d has no gradient to keys and values outside [start of d, t]."""
    q_BTNH, k_BSKH, v_BSKH = (x[:1] for x in inputs(8, 8, 2, 1, 64))
    starts_T = np.array([0, 0, 0, 3, 3, 3, 3, 7], np.int32)

    def output_T(k_BSKH: Array, v_BSKH: Array) -> Array:
        out_BTNH = attention(
            q_BTNH, k_BSKH, v_BSKH, segment_start_BT=jnp.asarray(starts_T)[None], impl="xla"
        )
        return jnp.sum(jnp.square(out_BTNH), axis=(0, 2, 3))

    for jacobian_T1S1H in jax.jacobian(output_T, argnums=(0, 1))(k_BSKH, v_BSKH):
        reached_TS = np.any(np.asarray(jacobian_T1S1H)[:, 0, :, 0] != 0, axis=-1)
        place = np.arange(8)
        visible_TS = (starts_T[:, None] <= place) & (place <= place[:, None])
        # A query that sees one key only is not moved by it: its weight is 1.
        alone_T = visible_TS.sum(axis=1) == 1
        np.testing.assert_array_equal(reached_TS[~alone_T], visible_TS[~alone_T])
        assert not np.any(reached_TS[alone_T] & ~visible_TS[alone_T])


def test_parts_of_the_keys_are_joined_by_their_log_sum_exp() -> None:
    q_BTNH, k_BSKH, v_BSKH = inputs(9, 30, 4, 2, 64)

    def joined(k_BSKH: Array, v_BSKH: Array) -> Array:
        outs, lses = zip(
            *(
                attention_and_lse(q_BTNH, k_BSKH[:, s], v_BSKH[:, s], causal=False, impl="xla")
                for s in (slice(0, 7), slice(7, 30))
            ),
            strict=True,
        )
        shares = jax.nn.softmax(jnp.stack(lses), axis=0)
        return jnp.sum(shares[..., None] * jnp.stack(outs), axis=0)

    def whole(k_BSKH: Array, v_BSKH: Array) -> Array:
        return attention(q_BTNH, k_BSKH, v_BSKH, causal=False, impl="xla")

    found, wanted = (jax.vjp(f, k_BSKH, v_BSKH) for f in (joined, whole))
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
    for x, y in zip(found[1](q_BTNH), wanted[1](q_BTNH), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


REFUSED = {
    "unknown impl": (ValueError, "impl='flash' is not one of", {"impl": "flash"}),
    "heads": (ValueError, "4 query heads cannot be grouped over 3", {"k": (2, 9, 3, 64)}),
    "head size": (ValueError, "differ in batch or head size", {"k": (2, 9, 2, 32)}),
    "batch": (ValueError, "differ in batch or head size", {"k": (1, 9, 2, 64)}),
    "no queries": (ValueError, "nothing to attend to", {"q": (2, 0, 4, 64)}),
    "k and v": (ValueError, "k and v differ in shape", {"v": (2, 8, 2, 64)}),
    "rank": (ValueError, "four axes", {"q": (9, 4, 64)}),
    "mixed dtypes": (TypeError, "not bfloat16, float32, float32", {"q_dtype": "bfloat16"}),
    "integers": (TypeError, "not int32", {"dtype": "int32"}),
    "segments without causal": (
        ValueError,
        "needs causal=True",
        {"segment_start_BT": np.zeros((2, 9), np.int32), "causal": False},
    ),
    "offset without causal": (ValueError, "needs causal=True", {"q_offset": 1, "causal": False}),
    "offset before the first key": (ValueError, "must be at least 0", {"q_offset": -1}),
    "offset before the first key, an array": (
        ValueError,
        "must be at least 0",
        {"q_offset": np.array(-1)},
    ),
    "offset not an integer": (TypeError, "q_offset must be an integer", {"q_offset": 1.5}),
    "offset of every row": (TypeError, "an array of one", {"q_offset": np.array([1, 2])}),
    "scale": (TypeError, "scale must be a number or an array of one, not '1'", {"scale": "1"}),
    "scale of every key": (TypeError, "an array of one", {"scale": np.ones(9)}),
    "segments of places after all keys": (
        ValueError,
        "each of the 9 queries, from 5 on, there are 9",
        {"segment_start_BT": np.zeros((2, 9), np.int32), "q_offset": 5},
    ),
    "segments in a list": (
        TypeError,
        "segment_start_BT must be an array, not list",
        {"segment_start_BT": [[0] * 9] * 2},
    ),
    "segment shape": (
        ValueError,
        r"shape \(2, 8\), the queries need \(2, 9\)",
        {"segment_start_BT": np.zeros((2, 8), np.int32)},
    ),
    "segment dtype": (
        TypeError,
        "must be int32, not int64",
        {"segment_start_BT": np.zeros((2, 9), np.int64)},
    ),
    "pallas off GPUs": (NotImplementedError, "JAX computes on 'cpu' here", {"impl": "pallas"}),
    "cudnn off GPUs": (NotImplementedError, "JAX computes on 'cpu' here", {"impl": "cudnn"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, message, changes = REFUSED[case]
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    kwargs = {"impl": "xla"} | changes
    dtype = kwargs.pop("dtype", "float32")
    q = np.ones(kwargs.pop("q", (2, 9, 4, 64)), jnp.dtype(kwargs.pop("q_dtype", dtype)))
    k_shape = kwargs.pop("k", (2, 9, 2, 64))
    k, v = np.ones(k_shape, dtype), np.ones(kwargs.pop("v", k_shape), dtype)
    with pytest.raises(error, match=message):
        attention(q, k, v, **kwargs)


def test_refuses_a_list() -> None:
    x = np.ones((2, 9, 2, 64), np.float32)
    with pytest.raises(TypeError, match="k must be an array, not list"):
        attention(x, x.tolist(), x, impl="xla")


REFUSED_ON_A_GPU = {
    "cudnn, float32": ("not in float32", {"dtype": "float32"}),
    "cudnn, packed rows": (
        "documents would see each other; use impl='xla'",
        {"segment_start_BT": np.zeros((2, 9), np.int32)},
    ),
    "cudnn, a cache": ("cannot continue a cache", {"q_offset": 2}),
    "cudnn, head size": ("multiple of 8 up to 256, not 36", {"H": 36}),
    "pallas, float32": ("not in float32", {"dtype": "float32"}),
    "pallas, a cache": ("cannot continue a cache", {"q_offset": 2}),
    "pallas, head size": ("up to 128, not 136", {"H": 136}),
    "pallas, scale": ("positive scale, not -1", {"scale": -1.0}),
    "pallas, scale of an array": ("must be a number and not an array", {"scale": np.ones(())}),
    "pallas, other GPU": ("needs a Hopper GPU .*, not 'NVIDIA A100'", {"device": "8.0"}),
}


@pytest.mark.parametrize("case", REFUSED_ON_A_GPU)
def test_refuses_on_a_gpu(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message, changes = REFUSED_ON_A_GPU[case]
    kwargs = dict(changes)
    device = types.SimpleNamespace(
        device_kind="NVIDIA A100", compute_capability=kwargs.pop("device", "9.0")
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    qkv = inputs(9, 9, 4, 2, kwargs.pop("H", 64), kwargs.pop("dtype", "bfloat16"))
    with pytest.raises(NotImplementedError, match=message):
        attention(*qkv, impl=case.split(",")[0], **kwargs)


def test_cudnn_gives_no_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(NotImplementedError, match="no log-sum-exp that has gradients; use"):
        attention_and_lse(*inputs(9, 9, 4, 2, 64, "bfloat16"), impl="cudnn")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("H", HEAD_DIMS)
@pytest.mark.parametrize("group", GROUPS)
def test_cudnn(group: int, H: int, dtype: str) -> None:
    check(inputs(65, 65, 2 * group, 2, H, dtype), impl="cudnn")
