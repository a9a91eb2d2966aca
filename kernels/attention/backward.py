"""The fused backward pass on Hopper: one kernel for dq, one for dk and dv, both without atomics.

With p and lse of the forward pass, do and dlse the gradients of its output and log-sum-exp, and
delta = rowsum(do * out) - dlse:

    p = 2^(s - lse),  dp = do v',  ds = p * (dp - delta)
    dv = p' do,  dk = scale * ds' q,  dq = scale * ds k

Each order of summation is fixed: the result is the same bits every time. `out` has been rounded to
16 bits, and with it delta: where scores are large, so that one key has all the weight, dp - delta
should vanish and keeps an error of that size. cuDNN's does too, and is no more exact.

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, H head size,
L queries rounded up to whole blocks.
"""

import functools

import jax

from kernels.attention import tiles
from kernels.attention.grad_kv import grad_kv
from kernels.attention.grad_q import grad_q
from kernels.attention.tiles import Problem
from kernels.attention.tuning import BackwardSizes


@functools.partial(jax.jit, static_argnames=("problem", "q_sizes", "kv_sizes"))
def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    start_BT: jax.Array | None,
    out_BTNH: jax.Array,
    do_BTNH: jax.Array,
    lse_BNL: jax.Array,
    dlse_BNL: jax.Array | None,
    problem: Problem,
    q_sizes: BackwardSizes,
    kv_sizes: BackwardSizes,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of q, k and v.

    Args:
      lse_BNL, dlse_BNL: in base 2, as the forward pass gives it, and the gradient of the natural
        one, None if that is 0; of any length from T on.
    """
    with tiles.interpreted(problem.interpret):
        dq_BTNH, delta_BNL = grad_q(
            q_BTNH, k_BSKH, v_BSKH, start_BT, out_BTNH, do_BTNH, lse_BNL, dlse_BNL, problem, q_sizes
        )
        dk_BSKH, dv_BSKH = grad_kv(
            q_BTNH, k_BSKH, v_BSKH, start_BT, do_BTNH, lse_BNL, delta_BNL, problem, kv_sizes
        )
    return dq_BTNH, dk_BSKH, dv_BSKH
