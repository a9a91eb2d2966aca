"""Four devices cut attention by batch and heads; what comes cut otherwise is gathered."""

import pytest

from tests.kernels import four_devices

BY_BATCH_AND_HEADS = """
    import functools, re
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from kernels.attention.partition import partitioned_backward, partitioned_forward
    from kernels.attention.reference import attention_xla

    def forward(q, k, v, start):
        out = attention_xla(q, k, v, segment_start_BT=start, causal=True, q_offset=0, scale=0.1)
        return out, jnp.sum(out, axis=-1).transpose(0, 2, 1)

    def backward(q, k, v, start, out, do, lse, dlse):
        return jax.vjp(lambda q, k, v: forward(q, k, v, start), q, k, v)[1]((do, dlse))

    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    q, k, v, do = (rng.standard_normal((4, 24, n, 8)).astype(np.float32) for n in (6, 2, 2, 6))
    start = np.tile(np.arange(24, dtype=np.int32) // 9 * 9, (4, 1))
    out, lse = forward(q, k, v, start)
    heads = NamedSharding(mesh, P("data", None, "model"))
    rows = NamedSharding(mesh, P("data"))
    places = {4: heads, 3: NamedSharding(mesh, P("data", "model")), 2: rows}
    for function, make, arrays in (
        (forward, partitioned_forward, (q, k, v, start)),
        (
            backward,
            functools.partial(partitioned_backward, dlse=True),
            (q, k, v, start, out, do, np.asarray(lse), np.asarray(lse)),
        ),
    ):
        placed = [jax.device_put(x, places[x.ndim]) for x in arrays]
        compiled = jax.jit(make(function, packed=True)).lower(*placed).compile()
        found = compiled(*placed)
        for x, y in zip(found, function(*arrays), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
            assert x.sharding.is_equivalent_to(places[x.ndim], x.ndim), x.sharding
        assert not re.search("all-(?:gather|reduce|to-all)", compiled.as_text())
"""

HOWEVER_CUT = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from kernels.attention import attention_and_lse, fused
    from kernels.attention.tiles import LOG2_E

    # In place of the kernels, which need a GPU; all that is around them is as it is.
    def forward(q, k, v, start, problem, sizes):
        keys = k[:, :problem.keys], v[:, :problem.keys]
        out, lse = attention_and_lse(q, *keys, segment_start_BT=start, scale=0.3, impl="xla")
        return out, jnp.pad(lse.swapaxes(1, 2), ((0, 0), (0, 0), (0, 5))) * LOG2_E

    def backward(q, k, v, start, out, do, lse, dlse, problem, *sizes):
        run = lambda *qkv: forward(*qkv, start, problem, None)
        return jax.vjp(run, q, k, v)[1]((do, dlse / LOG2_E))

    fused.forward, fused.backward = forward, backward

    def ours(q, k, v, start):
        return fused.attention_pallas(
            q, k, v, segment_start_BT=start, causal=True, scale=0.3, return_lse=True
        )

    def plain(q, k, v, start):
        return attention_and_lse(q, k, v, segment_start_BT=start, scale=0.3, impl="xla")

    def step(function, q, k, v, start, do, dlse):
        results, pullback = jax.vjp(lambda *qkv: function(*qkv, start), q, k, v)
        return *results, *pullback((do, dlse))

    def inputs(N, K):
        rng = np.random.default_rng([N, K])
        shapes = *((4, 16, n, 8) for n in (N, K, K, N)), (4, 16, N)
        q, k, v, do, dlse = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        return q, k, v, np.tile(np.arange(16, dtype=np.int32) // 5 * 5, (4, 1)), do, dlse

    ALL, (BATCH, PLACE, HEAD, CHANNEL) = P(), (P(*[None] * n, "a") for n in range(4))
    kind = getattr(AxisType, sys.argv[1])
    mesh = jax.make_mesh((4,), ("a",), axis_types=(kind,))
    cases = {
        AxisType.Auto: (
            (4, 4, HEAD, HEAD, HEAD),
            (4, 1, PLACE, ALL, CHANNEL),
            (8, 2, HEAD, BATCH, PLACE),
        ),
        AxisType.Explicit: ((4, 4, CHANNEL, PLACE, BATCH), (4, 1, BATCH, BATCH, BATCH)),
    }
    for N, K, *specs in cases[kind]:
        arrays = inputs(N, K)
        wanted = jax.jit(step, static_argnums=0)(plain, *arrays)
        placed = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs)]
        with jax.set_mesh(mesh):
            found = jax.jit(step, static_argnums=0)(ours, *placed, *arrays[3:])
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5, err_msg=f"{N} {K} {specs}")
"""

LAYERS = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from kernels.attention import attention_and_lse, fused
    from kernels.attention.tiles import LOG2_E

    lowered = []

    def forward(q, k, v, start, problem, sizes):
        lowered.append(q.shape)
        out, lse = attention_and_lse(q, k, v, scale=problem.scale, impl="xla")
        return out, lse.swapaxes(1, 2) * LOG2_E

    fused.forward = forward

    def layers(scale, x):
        for _ in range(3):
            x = fused.attention_pallas(x, x, x, segment_start_BT=None, causal=True, scale=scale)
        return x

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = np.random.default_rng(0).standard_normal((4, 16, 2, 64)).astype(np.float32)
    placed = jax.device_put(x, NamedSharding(mesh, P("data")))
    for scale in 0.1, 0.2:
        found = jax.jit(layers, static_argnums=0)(scale, placed)
        assert sorted(lowered) == [(1, 16, 2, 64), (4, 16, 2, 64)], lowered
        lowered.clear()
        for _ in range(3):
            x = attention_and_lse(x, x, x, scale=scale, impl="xla")[0]
        np.testing.assert_allclose(found, x, atol=1e-5)
        x = np.asarray(placed)
"""


def test_layers_that_are_alike_are_lowered_once() -> None:
    four_devices.run(LAYERS)


def test_by_batch_and_heads_nothing_is_gathered() -> None:
    four_devices.run(BY_BATCH_AND_HEADS)


@pytest.mark.parametrize("mesh", ["Auto", "Explicit"])
def test_results_are_those_of_one_device_however_arrays_come_cut(mesh: str) -> None:
    four_devices.run(HOWEVER_CUT, mesh)
