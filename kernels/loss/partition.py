"""Lets the compiler cut the loss over the devices of a mesh: by tokens.

Left to itself it cannot look into a kernel, and sums the rows' gradient over devices once a chunk.
Where `jax.pmap` or `jax.shard_map` has cut the arrays, and on one device, nothing of this is in the
program.

Letters in shapes: M tokens, D model, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning

from kernels.varying import differs


def partitioned_scores(function: Callable) -> Callable:
    """`function(x_MD, head_VD, targets_M) -> (M, M)`, over devices."""
    return _over_devices(function, "m d, v d, m -> m, m", summed=0)


def partitioned_gradients(function: Callable) -> Callable:
    """`function(x_MD, head_VD, targets_M, weights_M) -> (M, M, MD, VD)`, over devices; the last is
    summed over them."""
    return _over_devices(function, "m d, v d, m, m -> m, m, m d, v d", summed=1)


def _over_devices(function: Callable, rule: str, summed: int) -> Callable:
    """`summed`: of so many of the last results each device has a part."""

    def partition(mesh: Any, inputs: Any, outputs: Any) -> tuple[Any, Callable, Any, Any]:
        inputs, outputs = jax.tree.map(lambda x: x.sharding, (inputs, outputs))
        axes = inputs[0].spec[0]

        def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            found = function(*arrays)
            kept = len(found) - (summed if axes else 0)
            return *found[:kept], *(jax.lax.psum(x, axes) for x in found[kept:])

        return mesh, local, outputs, inputs

    wrapped = custom_partitioning(function)
    # In the order in which they appear, as the compiler wants them.
    wrapped.def_partition(partition, sharding_rule=rule, need_replication_factors=("d", "v"))

    def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        whole = jax.device_count() == 1 or differs(*arrays)
        return function(*arrays) if whole else wrapped(*arrays)

    return run
