"""On four devices the loss is cut by tokens, however the devices get their parts."""

import pytest

from tests.kernels import four_devices

BY_TOKENS = """
    import re, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from kernels.loss import linear_cross_entropy

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 6, 8)).astype(np.float32)
    weight = rng.standard_normal((40, 8)).astype(np.float32)
    targets = rng.integers(0, 40, (8, 6)).astype(np.int32)
    weights = rng.uniform(0, 1, (8, 6)).astype(np.float32)

    def step(x, weight, targets, weights):
        # Three chunks of four tokens on each device.
        loss = lambda x, weight: linear_cross_entropy(
            x, weight, targets, weights, max_bytes=4 * 40 * 8, impl="xla"
        )[0]
        loss, grads = jax.value_and_grad(loss, (0, 1))(x, weight)
        return (jax.lax.psum(loss, "data") if way == "shard_map" else loss), *grads

    way, arrays = sys.argv[1], (x, weight, targets, weights)
    specs = (P("data"), P(), P("data"), P("data"))
    if way == "shard_map":
        run = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(P(), P("data"), P()))
    else:
        arrays = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs)]
        run = step
    compiled = jax.jit(run).lower(*arrays).compile()
    found = compiled(*arrays)
    way = None
    for got, want in zip(found, jax.jit(step)(x, weight, targets, weights), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    text = compiled.as_text()
    assert not re.search("all-(?:gather|to-all)", text)
    calls = re.findall(r"= .*all-reduce(?:-start)?[(]", text)
    assert len([call for call in calls if "f32[40,8]" in call]) == 1, calls
    bodies = [body for body in text.split("\\n\\n") if "all-reduce" in body]
    assert all("ENTRY" in body for body in bodies), "in a loop"
"""

HOWEVER_CUT = """
    import sys
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from kernels.loss import linear_cross_entropy
    from kernels.loss.reference import linear_cross_entropy_whole

    def ours(x, weight, targets, weights):
        # Chunks of four tokens.
        return linear_cross_entropy(
            x, weight, targets, weights, z_loss=0.1, max_bytes=4 * 40 * 8, impl="xla"
        )

    def plain(x, weight, targets, weights):
        return linear_cross_entropy_whole(x, weight, targets, weights, z_loss=0.1)

    def together(function, *arrays):
        return jax.value_and_grad(function, (0, 1, 3), has_aux=True)(*arrays)

    def by_rows(function, *arrays):
        def total(x, weight, targets, weights):
            row = lambda x, *more: function(x[None], weight, *(array[None] for array in more))
            losses, nats = jax.vmap(row)(x, targets, weights)
            return losses.sum(), nats[:, 0]

        return together(total, *arrays)

    def inputs(B, T):
        rng = np.random.default_rng([B, T])
        x = rng.standard_normal((B, T, 8)).astype(np.float32)
        weight = rng.standard_normal((40, 8)).astype(np.float32)
        targets = rng.integers(0, 40, (B, T)).astype(np.int32)
        return x, weight, targets, rng.uniform(0, 1, (B, T)).astype(np.float32)

    kind = getattr(AxisType, sys.argv[1])
    mesh = jax.make_mesh((4,), ("a",), axis_types=(kind,))
    ALL, FIRST, SECOND, THIRD = P(), P("a"), P(None, "a"), P(None, None, "a")
    ALL, (FIRST, SECOND, THIRD) = P(), (P(*[None] * n, "a") for n in range(3))
    for step, tokens, *specs in (
        (together, (4, 8), ALL, FIRST),
        (together, (4, 8), FIRST, FIRST),
        (together, (3, 6), THIRD, SECOND),  # no number of tokens that four devices could share
        (by_rows, (4, 8), ALL, SECOND),
        (together, (4, 8), None, None),
    ):
        arrays = inputs(*tokens)
        with jax.set_mesh(mesh):
            places = [s and NamedSharding(mesh, s) for s in specs]
            placed = *map(jax.device_put, arrays[:2], places), *arrays[2:]
            # The head's gradient is to come cut as the head is.
            wish = ((None, None), (None, places[1], None))
            run = jax.jit(step, static_argnums=0, out_shardings=wish)
            found = run(ours, *(arrays if specs[0] is None else placed))
        wanted = jax.jit(together, static_argnums=0)(plain, *arrays)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            message = f"{step.__name__} {tokens} {specs}"
            np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-5, err_msg=message)
"""


@pytest.mark.parametrize("way", ["jit", "shard_map"])
def test_the_rows_gradient_is_summed_once(way: str) -> None:
    four_devices.run(BY_TOKENS, way)


@pytest.mark.parametrize("mesh", ["Auto", "Explicit"])
def test_results_are_those_of_one_device_however_arrays_come_cut(mesh: str) -> None:
    four_devices.run(HOWEVER_CUT, mesh)
