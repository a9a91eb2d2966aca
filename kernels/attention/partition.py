"""How attention is cut over the devices of a mesh: by batch and by key-value head.

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, H head size,
L queries rounded up to whole blocks.
"""

from collections.abc import Callable

from kernels.devices import over_devices

# N is K groups of heads: a device has all heads of its groups.
_Q, _KV, _START, _LSE = "b t k h", "b s k h", "b t", "b k l"


def partitioned_forward(function: Callable, packed: bool) -> Callable:
    """`function(q_BTNH, k_BSKH, v_BSKH[, start_BT]) -> (out_BTNH, lse_BNL)`, over devices."""
    return _over_devices(function, f"{_inputs(packed)} -> {_Q}, {_LSE}")


def partitioned_backward(function: Callable, packed: bool, dlse: bool) -> Callable:
    """`function(q, k, v[, start], out_BTNH, do_BTNH, lse_BNL[, dlse_BNL]) -> (dq, dk, dv)`."""
    kept = ", ".join([_inputs(packed), _Q, _Q, *[_LSE] * (1 + dlse)])
    return _over_devices(function, f"{kept} -> {_Q}, {_KV}, {_KV}")


def _inputs(packed: bool) -> str:
    return ", ".join([_Q, _KV, _KV, *([_START] if packed else [])])


def _over_devices(function: Callable, rule: str) -> Callable:
    return over_devices(function, rule, cut=("b", "k"))
