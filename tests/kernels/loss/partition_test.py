"""On four devices the loss is cut by tokens, however the devices get their parts."""

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import functools, re, sys
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


@pytest.mark.parametrize("way", ["jit", "shard_map"])
def test_the_rows_gradient_is_summed_once(way: str) -> None:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), way]
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
