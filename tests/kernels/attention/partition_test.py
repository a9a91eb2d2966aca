"""A mesh of four devices cuts attention by batch and heads, and gathers nothing."""

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import functools, re, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from kernels.attention.partition import partitioned_backward, partitioned_forward
    from kernels.attention.reference import attention_xla

    def forward(q, k, v, start):
        out = attention_xla(q, k, v, segment_start_BT=start, causal=True, q_offset=0, scale=0.1)
        return out, jnp.sum(out, axis=-1).transpose(0, 2, 1)

    def backward(q, k, v, start, out, do, lse, dlse):
        return jax.vjp(lambda q, k, v: forward(q, k, v, start), q, k, v)[1]((do, dlse))

    data, model = map(int, sys.argv[1:])
    mesh = jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
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
        compiled = jax.jit(make(function, packed=True, group=3)).lower(*placed).compile()
        found = compiled(*placed)
        for x, y in zip(found, function(*arrays), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
            assert x.sharding.is_equivalent_to(places[x.ndim], x.ndim), x.sharding
        assert not re.search("all-(?:gather|reduce|to-all)", compiled.as_text())
"""


@pytest.mark.parametrize(("data", "model"), [(2, 2)])
def test_nothing_is_gathered(data: int, model: int) -> None:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(data), str(model)]
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
