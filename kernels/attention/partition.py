"""Lets the compiler cut the kernels over the devices of a mesh: by batch and by key-value head.

It cannot look into a kernel, and would gather whole arrays on every device. Under `jax.pmap` and in
`jax.shard_map`, which cut arrays themselves, and on one device, nothing of this is in the program.

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, H head size,
L queries rounded up to whole blocks.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning

# N is K groups of G heads: a device has all heads of its groups.
_Q, _KV, _START, _LSE = "b t (k g) h", "b s k h", "b t", "b (k g) l"


def partitioned_forward(function: Callable, packed: bool, group: int) -> Callable:
    """`function(q_BTNH, k_BSKH, v_BSKH[, start_BT]) -> (out_BTNH, lse_BNL)`, over devices."""
    rule = f"{_inputs(packed)} -> {_Q}, {_LSE}"
    return _over_devices(function, rule, group)


def partitioned_backward(function: Callable, packed: bool, group: int) -> Callable:
    """`function(q, k, v[, start], out_BTNH, lse_BNL, do_BTNH) -> (dq, dk, dv)`, over devices."""
    rule = f"{_inputs(packed)}, {_Q}, {_LSE}, {_Q} -> {_Q}, {_KV}, {_KV}"
    return _over_devices(function, rule, group)


def _inputs(packed: bool) -> str:
    return ", ".join([_Q, _KV, _KV, *([_START] if packed else [])])


def _over_devices(function: Callable, rule: str, group: int) -> Callable:
    def partition(mesh: Any, inputs: Any, outputs: Any) -> tuple[Any, Callable, Any, Any]:
        inputs, outputs = jax.tree.map(lambda x: x.sharding, (inputs, outputs))
        return mesh, function, outputs, inputs

    wrapped = custom_partitioning(function)
    # In the order in which they appear, as the compiler wants them.
    wrapped.def_partition(
        partition,
        sharding_rule=rule,
        need_replication_factors=("t", "g", "h", "s", "l"),
        g=group,
    )
    return wrapped
