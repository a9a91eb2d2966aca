"""Fused attention with its gradient: pads to what the kernels take, and picks their sizes.

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, H head size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention import tuning
from kernels.attention.backward import backward
from kernels.attention.forward import forward
from kernels.attention.partition import partitioned_backward, partitioned_forward
from kernels.attention.tiles import Problem

_ROWS = 8  # TMA moves rows by eights


def attention_pallas(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_start_BT: jax.Array | None,
    causal: bool,
    scale: float,
    sizes: tuning.Sizes | None = None,
    interpret: bool = False,
) -> jax.Array:
    """See `kernels.attention.attention`; the arguments are checked there.

    `interpret` runs the same kernels on a CPU, slowly, and prints what races it sees.
    """
    T, S, H = q_BTNH.shape[1], k_BSKH.shape[1], q_BTNH.shape[-1]
    width = next(size for size in tuning.HEAD_SIZES if size >= H)
    q_BTNH, k_BSKH, v_BSKH = (
        jnp.pad(x, ((0, 0), (0, -x.shape[1] % _ROWS), (0, 0), (0, width - H)))
        for x in (q_BTNH, k_BSKH, v_BSKH)
    )
    if segment_start_BT is not None:
        # A query that saw no key would have no tile to go through, and the kernels would wait for
        # one for ever: whatever the caller says, a query sees the key at its own place.
        places_1T = jnp.minimum(jnp.arange(T, dtype=jnp.int32), S - 1)[None]
        segment_start_BT = jnp.clip(segment_start_BT, 0, places_1T)
        segment_start_BT = jnp.pad(segment_start_BT, ((0, 0), (0, -T % _ROWS)), mode="edge")
    problem = Problem(causal=causal, scale=scale, keys=S, interpret=interpret)
    sizes = tuning.sizes(width) if sizes is None else sizes
    out_BTNH = _attention(q_BTNH, k_BSKH, v_BSKH, segment_start_BT, problem, sizes)
    return out_BTNH[:, :T, :, :H]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    start_BT: jax.Array | None,
    problem: Problem,
    sizes: tuning.Sizes,
) -> jax.Array:
    return _attention_forward(q_BTNH, k_BSKH, v_BSKH, start_BT, problem, sizes)[0]


def _attention_forward(q_BTNH, k_BSKH, v_BSKH, start_BT, problem, sizes):
    packed, group = start_BT is not None, q_BTNH.shape[2] // k_BSKH.shape[2]

    def run(q_BTNH, k_BSKH, v_BSKH, start_BT=None):
        return forward(q_BTNH, k_BSKH, v_BSKH, start_BT, problem, sizes.forward)

    inputs = (q_BTNH, k_BSKH, v_BSKH, *([start_BT] if packed else []))
    out_BTNH, lse_BNL = partitioned_forward(run, packed, group)(*inputs)
    return out_BTNH, (inputs, out_BTNH, lse_BNL)


def _attention_backward(problem, sizes, kept, do_BTNH):
    inputs, out_BTNH, lse_BNL = kept
    (q_BTNH, k_BSKH, _), start = inputs[:3], inputs[3:]
    packed, group = bool(start), q_BTNH.shape[2] // k_BSKH.shape[2]

    def run(q_BTNH, k_BSKH, v_BSKH, *more):
        start_BT = more[0] if packed else None
        return backward(
            q_BTNH, k_BSKH, v_BSKH, start_BT, *more[-3:], problem, sizes.grad_q, sizes.grad_kv
        )

    grads = partitioned_backward(run, packed, group)(*inputs, out_BTNH, lse_BNL, do_BTNH)
    none = np.zeros(start[0].shape, jax.dtypes.float0) if packed else None
    return *grads, none


_attention.defvjp(_attention_forward, _attention_backward)
