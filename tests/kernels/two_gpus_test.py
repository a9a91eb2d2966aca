"""On two GPUs the kernels give what they give on one, however their arrays come cut."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kernels.attention import attention
from kernels.devices import is_hopper
from kernels.loss import linear_cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not is_hopper() or jax.device_count() < 2, reason="needs two Hopper GPUs in one host"
    ),
]

# By their names: how many of an array's axes stand before the one that is cut.
ATTENTION = {"batch": 0, "positions": 1, "heads": 2}
LOSS = {"batch": (0, None), "rows of the head": (None, 0), "model": (2, 1)}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(jax.numpy.bfloat16)


def on_two(function: Callable, arrays: list[np.ndarray], axes: list[int | None]) -> list[Array]:
    """The function's results under jit, each array cut along its axis over two GPUs, or whole."""
    mesh = jax.make_mesh((2,), ("both",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    places = (
        PartitionSpec(*[None] * axis, "both") if axis is not None else PartitionSpec()
        for axis in axes
    )
    placed = [
        jax.device_put(array, NamedSharding(mesh, place))
        for array, place in zip(arrays, places, strict=True)
    ]
    return jax.tree.leaves(jax.jit(function)(*placed))


def check(found: list[Array], wanted: list[Array], tolerance: float) -> None:
    """Within `tolerance` of the largest value; a sum in its fifth digit."""
    for got, want in zip(found, wanted, strict=True):
        got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
        if want.ndim:
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
        else:
            np.testing.assert_allclose(got, want, rtol=1e-5)


# JAX refuses to cut the positions for cuDNN.
@pytest.mark.parametrize(
    ("impl", "cut"),
    [*(("pallas", cut) for cut in ATTENTION), ("cudnn", "batch"), ("cudnn", "heads")],
)
def test_attention(impl: str, cut: str) -> None:
    def run(q: Array, k: Array, v: Array, do: Array) -> tuple[Array, ...]:
        out, pullback = jax.vjp(lambda *qkv: attention(*qkv, impl=impl), q, k, v)
        return out, *pullback(do)

    arrays = [normal(4, 320, heads, 64) for heads in (12, 2, 2, 12)]
    alone = [*jax.jit(run)(*arrays)]
    # Each sequence and group of heads is computed as it is alone; cuDNN chooses anew.
    check(on_two(run, arrays, [ATTENTION[cut]] * 4), alone, 0 if impl == "pallas" else 8e-3)


@pytest.mark.parametrize("cut", LOSS)
@pytest.mark.parametrize("impl", ["pallas", "xla"])
def test_loss(impl: str, cut: str) -> None:
    targets = np.random.default_rng(0).integers(0, 1024, (4, 320)).astype(np.int32)

    def run(x: Array, weight: Array, targets: Array) -> tuple[Array, tuple[Array, Array]]:
        def loss(x: Array, weight: Array) -> Array:
            return linear_cross_entropy(x, weight, targets, impl=impl)[0]

        return jax.value_and_grad(loss, (0, 1))(x, weight)

    arrays = [normal(4, 320, 256), normal(1024, 256).astype(np.float32), targets]
    cuts = [*LOSS[cut], 0 if cut == "batch" else None]
    alone = jax.tree.leaves(jax.jit(run)(*arrays))
    check(on_two(run, arrays, cuts), alone, 4e-3)
