"""The kernel for Hopper, interpreted on any machine, and run where there is such a GPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.loss import exponentials, linear_cross_entropy, unsupported
from kernels.loss.reference import linear_cross_entropy_whole
from tests.kernels.hopper import interpreted, present
from tests.kernels.loss.api_test import check, check_likely, error, inputs, likely

# Three tiles on two multiprocessors, and more steps along D than there are buffers.
C, D, V = 256, 320, 384


def chunk(dtype: str) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    x_CD, head_VD = rng.standard_normal((C, D)), 0.3 * rng.standard_normal((V, D))
    return jnp.asarray(x_CD, dtype), jnp.asarray(head_VD, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tiles(dtype: str) -> None:
    x_CD, head_VD = chunk(dtype)
    logits_CV = np.asarray(x_CD, np.float64) @ np.asarray(head_VD, np.float64).T
    log_z_C = np.log(np.exp(logits_CV).sum(axis=1))
    targets_C = np.random.default_rng(1).integers(0, V, C)
    target_C = logits_CV[np.arange(C), targets_C]
    shift_C = log_z_C if dtype == "float16" else target_C
    with interpreted():
        powers_CV, rest_C = jax.block_until_ready(
            exponentials.exponentials(
                x_CD, head_VD, jnp.asarray(shift_C, jnp.float32), jnp.asarray(targets_C)
            )
        )
        assert not get_races().races_found
    want_CV, smallest = np.exp(logits_CV - shift_C[:, None]), float(jnp.finfo(dtype).tiny)
    want_CV[np.arange(C), targets_C] = 0
    assert error(rest_C / want_CV.sum(axis=1), np.ones(C)) <= 1e-5
    assert powers_CV.dtype == x_CD.dtype
    np.testing.assert_allclose(
        np.asarray(powers_CV, np.float64), want_CV, rtol=jnp.finfo(dtype).eps, atol=smallest
    )


def test_log_normalisers_of_large_logits() -> None:
    x_CD, head_VD = chunk("bfloat16")
    x_CD = 64 * x_CD
    logits_CV = np.asarray(x_CD, np.float64) @ np.asarray(head_VD, np.float64).T
    targets_C = logits_CV.argmax(axis=1)
    with interpreted():
        log_rest_C = jax.block_until_ready(
            exponentials.log_normalisers(x_CD, head_VD, jnp.asarray(targets_C))
        )
        assert not get_races().races_found
    logits_CV[np.arange(C), targets_C] = -np.inf
    assert error(log_rest_C, np.logaddexp.reduce(logits_CV, axis=1)) <= 1e-6


def test_a_slot_that_is_not_waited_for_is_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above can fail."""
    wait = plgpu.wait_smem_to_gmem

    def wait_for_none_of_the_last_nine(n: int, **kwargs: bool) -> None:
        wait(9 * n, **kwargs)

    monkeypatch.setattr(plgpu, "wait_smem_to_gmem", wait_for_none_of_the_last_nine)
    with interpreted():
        zeros_C = jnp.zeros(C)
        targets_C = jnp.zeros(C, jnp.int32)
        jax.block_until_ready(exponentials.exponentials(*chunk("bfloat16"), zeros_C, targets_C))
        assert get_races().races_found


@pytest.mark.parametrize(("dtype", "scale"), [("bfloat16", 1), ("bfloat16", 64), ("float16", 1)])
def test_loss_and_gradients(dtype: str, scale: int) -> None:
    """The chunk is filled up to what the kernel takes, two tiles share each sum, and some targets
    are so unlikely that everything is done again."""
    arrays = inputs(2, 70, 64, 256, dtype)
    with interpreted():
        check(arrays | {"x_BTD": scale * arrays["x_BTD"]}, impl="pallas", z_loss=0.1)


@pytest.mark.parametrize(
    ("dtype", "far"), [("bfloat16", False), ("bfloat16", True), ("float16", False)]
)
def test_likely_targets(dtype: str, far: bool) -> None:
    with interpreted():
        check_likely(likely((-6, 13), dtype, far=far), far=far, impl="pallas")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lowers_for_a_gpu_at_real_sizes(dtype: str) -> None:
    """Which fails when, say, a tile's buffers are more than the shared memory."""
    x_BTD = jax.ShapeDtypeStruct((8, 2048, 896), dtype)
    weight_VD = jax.ShapeDtypeStruct((151_936, 896), "float32")
    targets_BT = jax.ShapeDtypeStruct((8, 2048), "int32")

    def loss(x_BTD: Array, weight_VD: Array, targets_BT: Array) -> Array:
        return linear_cross_entropy(x_BTD, weight_VD, targets_BT, impl="pallas")[0]

    with present(num_cores=132):
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(x_BTD, weight_VD, targets_BT)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # In float16 the shift comes first; in bfloat16 it may have to be taken again.
    kernels = {"bfloat16": 3, "float16": 2}
    assert text.count("stablehlo.custom_call @mosaic_gpu") == kernels[dtype]


@pytest.mark.parametrize(
    ("dtype", "rows", "model", "reason"),
    [
        ("float32", 256, 64, "in bfloat16 or float16, not in float32"),
        ("bfloat16", 257, 64, "a multiple of 128 rows of the head, not 257"),
        ("bfloat16", 256, 72, "a multiple of 64, not 72"),
        ("bfloat16", 256, 64, None),
    ],
)
def test_what_is_unsupported_on_a_hopper(
    dtype: str, rows: int, model: int, reason: str | None
) -> None:
    with present(num_cores=132):
        found = unsupported(jnp.dtype(dtype), rows, model)
        assert found is reason is None or reason in found
        if reason:
            with pytest.raises(NotImplementedError, match=reason):
                linear_cross_entropy(**inputs(1, 2, model, rows, dtype), impl="pallas")


def test_other_devices_are_unsupported() -> None:
    assert "compute capability 9.0" in unsupported(jnp.bfloat16, 256, 64)


@pytest.mark.gpu
@pytest.mark.skipif(unsupported(jnp.bfloat16, 256, 64) is not None, reason="needs a Hopper GPU")
@pytest.mark.parametrize(("T", "model", "rows"), [(1, 64, 128), (4000, 896, 151_936)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_a_hopper(dtype: str, T: int, model: int, rows: int) -> None:
    """At real sizes, its errors are not above those of the path through logits."""
    arrays = inputs(1, T, model, rows, dtype)
    arrays["weight_VD"] = 0.05 * arrays["weight_VD"]
    exact = {"x_BTD": arrays["x_BTD"].astype(jnp.float32)}
    exact["weight_VD"] = arrays["weight_VD"].astype(dtype).astype(jnp.float32)
    wants = gradients(arrays | exact, linear_cross_entropy_whole, z_loss=0.0)

    def errors(impl: str) -> list[float]:
        pairs = zip(gradients(arrays, linear_cross_entropy, impl=impl), wants, strict=True)
        return [float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) for got, want in pairs]

    by_tiles, by_logits = errors("pallas"), errors("xla")
    assert by_tiles[0] <= 1e-5
    assert all(a <= 1.5 * b + 1e-6 for a, b in zip(by_tiles[1:], by_logits[1:], strict=True))


def gradients(
    arrays: dict[str, Array], loss: Callable[..., tuple[Array, Array]], **kwargs: object
) -> list[Array]:
    """The loss and its gradients by x and weight, for some cotangent."""

    def scaled(x_BTD: Array, weight_VD: Array) -> Array:
        return 0.37 * loss(**arrays | {"x_BTD": x_BTD, "weight_VD": weight_VD}, **kwargs)[0]

    differentiate = jax.jit(jax.value_and_grad(scaled, (0, 1)))
    value, grads = differentiate(arrays["x_BTD"], arrays["weight_VD"])
    return [value, *(grad.astype(jnp.float32).ravel() for grad in grads)]
