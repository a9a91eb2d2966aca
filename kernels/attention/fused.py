"""Fused attention with its gradient: pads to what the kernels take, and picks their sizes.

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, H head size.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kernels.attention import tuning
from kernels.attention.backward import backward
from kernels.attention.forward import forward
from kernels.attention.partition import partitioned_backward, partitioned_forward
from kernels.attention.tiles import LOG2_E, Problem
from kernels.devices import alike, cut_by_compiler

_ROWS = 8  # TMA moves rows by eights


def attention_pallas(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_start_BT: jax.Array | None,
    causal: bool,
    scale: float,
    return_lse: bool = False,
    sizes: tuning.Sizes | None = None,
    interpret: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `kernels.attention.attention`; the arguments are checked there.

    `interpret` runs the same kernels on a CPU, slowly, and prints what races it sees.
    """
    problem = Problem(causal=causal, scale=scale, keys=k_BSKH.shape[1], interpret=interpret)
    run = functools.partial(_padded, problem=problem, sizes=sizes, with_lse=return_lse)
    arrays = (q_BTNH, k_BSKH, v_BSKH, *([] if segment_start_BT is None else [segment_start_BT]))
    spec = jax.typeof(q_BTNH).sharding.spec
    out_BTNH, *lse_BTN = cut_by_compiler(
        run, arrays, (spec, PartitionSpec(*spec[:3]))[: 1 + return_lse]
    )
    return (out_BTNH, lse_BTN[0]) if return_lse else out_BTNH


def _padded(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *start_BT: jax.Array,
    problem: Problem,
    sizes: tuning.Sizes | None,
    with_lse: bool,
) -> tuple[jax.Array, ...]:
    T, S, H = q_BTNH.shape[1], k_BSKH.shape[1], q_BTNH.shape[-1]
    width = next(size for size in tuning.HEAD_SIZES if size >= H)
    q_BTNH, k_BSKH, v_BSKH = (
        jnp.pad(x, ((0, 0), (0, -x.shape[1] % _ROWS), (0, 0), (0, width - H)))
        for x in (q_BTNH, k_BSKH, v_BSKH)
    )
    if start_BT:
        # A query that saw no key would have no tile to go through, and the kernels would wait for
        # one for ever: whatever the caller says, a query sees the key at its own place.
        places_1T = jnp.minimum(jnp.arange(T, dtype=jnp.int32), S - 1)[None]
        segment_start_BT = jnp.clip(start_BT[0], 0, places_1T)
        start_BT = (jnp.pad(segment_start_BT, ((0, 0), (0, -T % _ROWS)), mode="edge"),)
    sizes = tuning.sizes(width) if sizes is None else sizes
    arrays = alike(q_BTNH, k_BSKH, v_BSKH, *start_BT)
    out_BTNH, *lse_BTN = _attention(arrays, problem, sizes, with_lse)
    return out_BTNH[:, :T, :, :H], *(x_BTN[:, :T] for x_BTN in lse_BTN)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _attention(
    arrays: tuple[jax.Array, ...], problem: Problem, sizes: tuning.Sizes, with_lse: bool
) -> tuple[jax.Array, ...]:
    """Of q, k, v and perhaps `segment_start_BT` the output and, if wanted, the natural lse BTN."""
    return _attention_forward(arrays, problem, sizes, with_lse)[0]


def _attention_forward(arrays, problem, sizes, with_lse):
    found = _forward(problem, sizes, len(arrays) == 4)(*arrays)
    out_BTNH, lse_BNL = alike(*found, *arrays)[:2]
    results = [out_BTNH]
    if with_lse:
        results.append(lse_BNL[:, :, : out_BTNH.shape[1]].swapaxes(1, 2) / LOG2_E)
    return tuple(results), (arrays, out_BTNH, lse_BNL)


def _attention_backward(problem, sizes, with_lse, kept, gradients):
    arrays, out_BTNH, lse_BNL = kept
    do_BTNH, *dlse = gradients
    if with_lse:
        missing = lse_BNL.shape[2] - out_BTNH.shape[1]
        dlse = [jnp.pad(dlse[0].swapaxes(1, 2), ((0, 0), (0, 0), (0, missing)))]
    run = _backward(problem, sizes, len(arrays) == 4, with_lse)
    grads = alike(*run(*arrays, out_BTNH, do_BTNH, lse_BNL, *dlse), *arrays)[:3]
    none = [np.zeros(start_BT.shape, jax.dtypes.float0) for start_BT in arrays[3:]]
    return ((*grads, *none),)


_attention.defvjp(_attention_forward, _attention_backward)


@functools.cache
def _forward(problem: Problem, sizes: tuning.Sizes, packed: bool) -> Callable:
    """As `partitioned_forward` says; one function for all layers, which are alike."""

    def run(q_BTNH, k_BSKH, v_BSKH, start_BT=None):
        return forward(q_BTNH, k_BSKH, v_BSKH, start_BT, problem, sizes.forward)

    return _under_vmap(partitioned_forward(run, packed))


@functools.cache
def _backward(problem: Problem, sizes: tuning.Sizes, packed: bool, with_lse: bool) -> Callable:
    """As `partitioned_backward` says; one function for all layers."""

    def run(q_BTNH, k_BSKH, v_BSKH, *more):
        start_BT, more = (more[0], more[1:]) if packed else (None, more)
        more = more if with_lse else (*more, None)
        return backward(
            q_BTNH, k_BSKH, v_BSKH, start_BT, *more, problem, sizes.grad_q, sizes.grad_kv
        )

    return _under_vmap(partitioned_backward(run, packed, with_lse))


def _under_vmap(function: Callable) -> Callable:
    """`function`, of arrays and to arrays that begin with the batch: a further axis joins it."""

    @jax.custom_batching.custom_vmap
    def run(*arrays):
        return tuple(function(*arrays))

    @run.def_vmap
    def _joined(size, mapped, *arrays):
        both = (
            x if is_mapped else jnp.broadcast_to(x[None], (size, *x.shape))
            for x, is_mapped in zip(arrays, mapped, strict=True)
        )
        found = run(*(x.reshape(-1, *x.shape[2:]) for x in both))
        found = tuple(x.reshape(size, -1, *x.shape[1:]) for x in found)
        return found, (True,) * len(found)

    return run
