"""What every kernel needs to know of several devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning


def over_devices(
    function: Callable, rule: str, *, whole: tuple[str, ...], parts: int = 0, **sizes: int
) -> Callable:
    """`function`, such that the compiler can cut it over the devices of a mesh.

    It cannot look into a kernel, and would gather whole arrays on every device. Where `jax.pmap` or
    `jax.shard_map` has cut the arrays, and on one device, nothing of this is in the program.

    Args:
      rule: the axes of arguments and results by name, as "m d, v d -> m v"; those along which both
        may be cut have the same name in both.
      whole: names of the axes that are not cut, in the order in which `rule` has them.
      parts: each device has a part of so many of the last results, by how the first axis of the
        first argument is cut; they are summed.
      sizes: of axes that `rule` has only within others, as "(k g)".
    """

    def partition(mesh: Any, inputs: Any, outputs: Any) -> tuple[Any, Callable, Any, Any]:
        inputs, outputs = jax.tree.map(lambda x: x.sharding, (inputs, outputs))
        axes = inputs[0].spec[0] if parts else None

        def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            found = function(*arrays)
            if not axes:
                return found
            return *found[:-parts], *(jax.lax.psum(x, axes) for x in found[-parts:])

        return mesh, local, outputs, inputs

    wrapped = custom_partitioning(function)
    wrapped.def_partition(partition, sharding_rule=rule, need_replication_factors=whole, **sizes)

    def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        is_cut = jax.device_count() == 1 or any(map(_axes, arrays))
        return (function if is_cut else wrapped)(*arrays)

    return run


def alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """`arrays`, all differing along the mesh's axes along which one of them does.

    Their types say so in `jax.shard_map`. The transpose sums over the axes that were added: so a
    weight that all devices share gets the sum of their gradients.
    """
    axes = [_axes(array) for array in arrays]
    every = frozenset().union(*axes)
    return tuple(
        jax.lax.pcast(array, tuple(sorted(every - own)), to="varying")
        for array, own in zip(arrays, axes, strict=True)
    )


def _axes(array: jax.Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying
