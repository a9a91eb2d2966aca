"""What `jax.shard_map` wants to know of arrays: along which axes of the mesh they differ."""

import jax


def alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """`arrays`, all differing along the axes along which one of them does.

    The transpose sums over the axes that were added: so a weight that all devices share gets the
    sum of their gradients. Outside of `jax.shard_map` nothing happens.
    """
    axes = [_axes(array) for array in arrays]
    every = frozenset().union(*axes)
    return tuple(
        jax.lax.pcast(array, tuple(sorted(every - own)), to="varying")
        for array, own in zip(arrays, axes, strict=True)
    )


def differs(*arrays: jax.Array) -> bool:
    """Whether one of them does."""
    return any(map(_axes, arrays))


def _axes(array: jax.Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying
