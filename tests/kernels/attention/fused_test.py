"""The Pallas kernels against the definition: on a CPU, watched for races, and on a GPU."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import (
    reset_gpu_interpret_mode_state,
)

from kernels.attention import attention, attention_and_lse, fastest, tiles
from kernels.attention.fused import attention_pallas
from kernels.attention.tuning import BackwardSizes, ForwardSizes, Sizes, sizes
from tests.kernels.attention import oracle
from tests.kernels.hopper import present

# Norm of the error over that of the float64 result; inputs are standard normal.
TOLERANCE = {"bfloat16": 4e-3, "float16": 6e-4}


def inputs(T: int, S: int, N: int, K: int, H: int, dtype: str, B: int = 1) -> list[Array]:
    """q, k, v and the gradient of the output."""
    rng = np.random.default_rng([T, S, N, K, H])
    shapes = ((T, N, H), (S, K, H), (S, K, H), (T, N, H))
    return [jnp.asarray(rng.standard_normal((B, *shape)), dtype) for shape in shapes]


def packed(B: int, T: int, longest: int) -> np.ndarray:
    """Rows of documents of random length, some of one token."""
    rng = np.random.default_rng([B, T, longest])
    cuts_BT = rng.random((B, T)) < 2 / longest
    cuts_BT[:, [0, -1]] = True
    return np.maximum.accumulate(np.where(cuts_BT, np.arange(T), 0), axis=1).astype(np.int32)


def with_gradients(function, q, k, v, do) -> tuple[Array, ...]:
    out, pullback = jax.vjp(function, q, k, v)
    return out, *pullback(do)


def errors(found: tuple[Array, ...], wanted: tuple[np.ndarray, ...]) -> list[float]:
    return [
        # Where every query sees one key, the gradients of q and k are 0: then the error itself.
        np.linalg.norm(np.asarray(x, np.float64) - y) / max(np.linalg.norm(y), 1)
        for x, y in zip(found, wanted, strict=True)
    ]


SMALL = Sizes(ForwardSizes(64, 2, 2, 2), BackwardSizes(64, 1, 2), BackwardSizes(64, 2, 2))
WIDE = Sizes(ForwardSizes(128, 1, 2), BackwardSizes(128, 2, 2), BackwardSizes(128, 1, 3))
INTERPRETED = {
    # T, S, N, K, H, causal, longest document, dtype, sizes
    "causal, group of 3": (100, 100, 3, 1, 64, True, None, "bfloat16", SMALL),
    "causal, slots used again": (200, 200, 2, 1, 64, True, None, "float16", SMALL),
    "packed, ragged": (150, 150, 1, 1, 64, True, 60, "float16", SMALL),
    "packed, heads in turn": (70, 70, 3, 1, 64, True, 30, "bfloat16", SMALL),
    "packed, short documents": (200, 200, 1, 1, 64, True, 20, "bfloat16", WIDE),
    "full, fewer keys": (130, 75, 1, 1, 128, False, None, "bfloat16", SMALL),
    "causal, more queries than keys": (130, 70, 1, 1, 128, True, None, "float16", SMALL),
    "small heads, as tuned": (100, 100, 1, 1, 40, True, None, "bfloat16", sizes(64)),
}


NARROW = Sizes(ForwardSizes(64, 1, 2), BackwardSizes(64, 1, 2), BackwardSizes(64, 1, 2))


def interpreted(*qkv: Array, **options: object) -> Array | tuple[Array, Array]:
    options = {"segment_start_BT": None, "causal": True, "scale": 0.2} | options
    return attention_pallas(*qkv, interpret=True, **options)


@pytest.fixture
def no_race(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.parametrize("case", INTERPRETED)
def test_interpreted(case: str, no_race: None) -> None:
    T, S, N, K, H, causal, longest, dtype, fields = INTERPRETED[case]
    q, k, v, do = inputs(T, S, N, K, H, dtype)
    start = None if longest is None else packed(1, T, longest)

    def function(q: Array, k: Array, v: Array) -> Array:
        return interpreted(q, k, v, segment_start_BT=start, causal=causal, sizes=fields)

    found = with_gradients(function, q, k, v, do)
    wanted = oracle.with_gradients(q, k, v, do, segment_start_BT=start, causal=causal, scale=0.2)
    assert [x.dtype for x in found] == [q.dtype] * 4
    assert max(errors(found, wanted)) <= TOLERANCE[dtype]


def test_log_sum_exp(no_race: None) -> None:
    """Packed, of a length that no tile divides, with a gradient of its own."""
    q, k, v, do = inputs(75, 75, 1, 1, 64, "bfloat16")
    start, dlse = packed(1, 75, 30), np.random.default_rng(0).standard_normal((1, 75, 1))

    def function(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        return interpreted(q, k, v, segment_start_BT=start, return_lse=True, sizes=NARROW)

    (out, lse), pullback = jax.vjp(function, q, k, v)
    found = out, lse, *pullback((do, jnp.asarray(dlse, jnp.float32)))
    wanted = oracle.with_gradients(q, k, v, do, segment_start_BT=start, scale=0.2, dlse_BTN=dlse)
    assert lse.dtype == jnp.float32
    assert max(errors(found, wanted)) <= TOLERANCE["bfloat16"]


def test_first_keys_in_any_order(no_race: None) -> None:
    """Each query's is its own affair; a block's bounds hold all the same."""
    arrays = inputs(130, 130, 1, 1, 64, "bfloat16")
    start = np.random.default_rng(0).integers(0, np.arange(130) + 1)[None].astype(np.int32)

    def function(q: Array, k: Array, v: Array) -> Array:
        return interpreted(q, k, v, segment_start_BT=start, sizes=NARROW)

    found = with_gradients(function, *arrays)
    wanted = oracle.with_gradients(*arrays, segment_start_BT=start, scale=0.2)
    assert max(errors(found, wanted)) <= TOLERANCE["bfloat16"]


def test_a_mapped_axis_joins_the_batch(no_race: None) -> None:
    q, k, v, do = inputs(64, 64, 1, 1, 64, "bfloat16", B=2)

    def function(q: Array, k: Array, v: Array) -> Array:
        return interpreted(q, k, v, sizes=NARROW)

    wanted = with_gradients(function, q, k, v, do)
    found = jax.vmap(lambda *arrays: with_gradients(function, *arrays))(
        *(x[:, None] for x in (q, k, v, do))
    )
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x[:, 0], y)


def test_a_slot_that_is_filled_before_it_was_used_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above can fail."""
    monkeypatch.setattr(tiles, "until_used", lambda *_: None)
    q, k, v, _ = inputs(64, 256, 1, 1, 64, "bfloat16")
    try:
        with pytest.raises(
            jax.errors.JaxRuntimeError, match=r"observed (phase|barrier)|RACE DETECTED"
        ):
            jax.block_until_ready(interpreted(q, k, v, causal=False, sizes=NARROW))
    finally:
        reset_gpu_interpret_mode_state()


@pytest.mark.parametrize(("H", "kind"), [(64, "packed"), (128, "causal"), (64, "full")])
def test_lowers_for_a_gpu_at_real_sizes(H: int, kind: str) -> None:
    """The compiler takes less than the interpreter does."""
    q, k = (jax.ShapeDtypeStruct((2, 4096, heads, H), "bfloat16") for heads in (14, 2))
    start = jnp.zeros((2, 4096), jnp.int32) if kind == "packed" else None

    def total(q: Array, k: Array, v: Array) -> Array:
        options = {"segment_start_BT": start, "causal": kind != "full", "scale": 0.1}
        return attention_pallas(q, k, v, **options).astype(jnp.float32).sum()

    with present(num_cores=132):
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(q, k, k)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call @mosaic_gpu") == 3


on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        fastest(jnp.bfloat16, 64, packed=True) != "pallas",
        reason="the Pallas kernels need a Hopper GPU",
    ),
]


def on_device(inputs: list[Array], impl: str, **kwargs: object) -> tuple[Array, ...]:
    """Output and gradients."""

    @jax.jit
    def run(q: Array, k: Array, v: Array, do: Array) -> tuple[Array, ...]:
        return with_gradients(lambda *qkv: attention(*qkv, impl=impl, **kwargs), q, k, v, do)

    return run(*inputs)


@pytest.mark.parametrize("H", [64, 128])
@pytest.mark.parametrize("group", [1, 2, 6, 7, 8])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
class TestAgainstCudnn:
    pytestmark = on_gpu

    def test_error_is_no_larger(self, causal: bool, group: int, H: int) -> None:
        check_against_cudnn(inputs(640, 640, 2 * group, 2, H, "bfloat16", B=2), causal)


@pytest.mark.parametrize("H", [64, 128])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
class TestLargeScores:
    """One key has nearly all the weight: gradients of scores are what rounding left."""

    pytestmark = on_gpu

    def test_error_is_no_larger(self, causal: bool, H: int) -> None:
        q, *others = inputs(640, 640, 14, 2, H, "bfloat16", B=2)
        check_against_cudnn([8 * q, *others], causal)


def check_against_cudnn(arrays: list[Array], causal: bool) -> None:
    wanted = oracle.with_gradients(*arrays, causal=causal)
    ours = errors(on_device(arrays, "pallas", causal=causal), wanted)
    cudnn = errors(on_device(arrays, "cudnn", causal=causal), wanted)
    assert all(x <= 1.5 * y for x, y in zip(ours, cudnn, strict=True)), (ours, cudnn)


ON_A_GPU = {
    # T, S, N, K, H, causal, longest document, dtype
    "packed": (2048, 2048, 7, 1, 64, True, 700, "bfloat16"),
    "packed, wide heads": (1500, 1500, 6, 1, 128, True, 400, "bfloat16"),
    "short documents": (1000, 1000, 2, 1, 64, True, 30, "bfloat16"),
    "ragged, float16": (777, 777, 7, 1, 128, True, None, "float16"),
    "one token": (1, 1, 2, 1, 64, True, None, "bfloat16"),
    "full, fewer keys": (1030, 333, 2, 1, 64, False, None, "float16"),
    "more queries than keys": (700, 130, 2, 1, 128, True, None, "bfloat16"),
    "odd head size": (300, 300, 2, 2, 80, True, None, "bfloat16"),
}


class TestOnAGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize("case", ON_A_GPU)
    def test_is_right_and_the_same_every_time(self, case: str) -> None:
        T, S, N, K, H, causal, longest, dtype = ON_A_GPU[case]
        arrays = inputs(T, S, N, K, H, dtype, B=2)
        kwargs = {"causal": causal}
        if longest is not None:
            kwargs["segment_start_BT"] = packed(2, T, longest)
        found = on_device(arrays, "pallas", **kwargs)
        assert max(errors(found, oracle.with_gradients(*arrays, **kwargs))) <= TOLERANCE[dtype]
        for once, again in zip(found, on_device(arrays, "pallas", **kwargs), strict=True):
            np.testing.assert_array_equal(once, again)

    def test_log_sum_exp(self) -> None:
        q, k, v, do = inputs(777, 777, 7, 1, 64, "bfloat16", B=2)
        start = packed(2, 777, 300)
        dlse = np.random.default_rng(0).standard_normal((2, 777, 7)).astype(np.float32)

        @jax.jit
        def run(*arrays: Array) -> tuple[Array, ...]:
            def function(*qkv: Array) -> tuple[Array, Array]:
                return attention_and_lse(*qkv, segment_start_BT=start, impl="pallas")

            results, pullback = jax.vjp(function, *arrays)
            return *results, *pullback((do, dlse))

        wanted = oracle.with_gradients(q, k, v, do, segment_start_BT=start, dlse_BTN=dlse)
        assert max(errors(run(q, k, v), wanted)) <= TOLERANCE["bfloat16"]

    def test_in_shard_map_and_under_vmap(self) -> None:
        arrays = inputs(200, 200, 2, 1, 64, "bfloat16", B=4)
        wanted = on_device(arrays, "pallas")
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        rows = jax.sharding.PartitionSpec("data")
        run = functools.partial(with_gradients, functools.partial(attention, impl="pallas"))
        sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows))(*arrays)
        mapped = jax.jit(jax.vmap(run))(*(x.reshape(2, 2, *x.shape[1:]) for x in arrays))
        for x, y, z in zip(sharded, mapped, wanted, strict=True):
            np.testing.assert_array_equal(x, z)
            np.testing.assert_array_equal(y.reshape(z.shape), z)

    def test_documents_that_start_after_the_query_do_not_hang(self) -> None:
        arrays = inputs(256, 256, 2, 1, 64, "bfloat16", B=2)
        start = np.full((2, 256), 255, np.int32)
        found = on_device(arrays, "pallas", segment_start_BT=start)
        own_BT = np.tile(np.arange(256, dtype=np.int32), (2, 1))
        own = on_device(arrays, "pallas", segment_start_BT=own_BT)
        np.testing.assert_array_equal(found[0], own[0])
