"""What every kernel needs to know of several devices."""

import collections
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec


def over_devices(function: Callable, rule: str, *, cut: tuple[str, ...]) -> Callable:
    """`function`, such that the compiler can cut it over the devices of a mesh.

    It cannot look into a kernel, and would gather whole arrays on every device. Where `jax.pmap` or
    `jax.shard_map` has cut the arrays, and on one device, nothing of this is in the program.

    Args:
      rule: the axes of arguments and results by name, as "m d, v d -> m, v d". Axes of one name are
        cut alike, and may differ in size: a device then has the same share of each.
      cut: names of the axes that may be cut, where all their sizes divide by the number of parts.
        Arrays that come cut along other axes are gathered. A result that lacks an axis that is cut
        is summed over the devices.
    """
    names, result_names = ([axes.split() for axes in side.split(",")] for side in rule.split("->"))

    @functools.cache  # JAX would lower the function for every call of it, a kernel in a second
    def lowered(platform: str, *types: jax.ShapeDtypeStruct) -> jax.export.Exported:
        platform = jax.export.default_export_platform() if platform == "gpu" else platform
        return jax.export.export(jax.jit(function), platforms=[platform])(*types)

    def partition(mesh: Mesh, inputs: Any, outputs: Any) -> tuple[Any, Callable, Any, Any]:
        if mesh.empty:  # in `jax.set_mesh`, when no array was placed: each device has all of them
            mesh = Mesh(np.array(list(inputs[0].sharding.device_set)), "devices")
            places = {}
        else:
            places = _places(mesh, [*names, *result_names], [*inputs, *outputs], cut)

        def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            # A mesh that the caller has set is not for the parts.
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
                part = lowered(mesh.devices.flat[0].platform, *map(_type_of, arrays))
                found = zip(part.call(*arrays), result_names, strict=True)
                return tuple(_sum_over(places, axes, array) for array, axes in found)

        def shardings(arrays: list[list[str]]) -> tuple[NamedSharding, ...]:
            specs = (PartitionSpec(*map(places.get, axes)) for axes in arrays)
            return tuple(NamedSharding(mesh, spec) for spec in specs)

        return mesh, local, shardings(result_names), shardings(names)

    @custom_partitioning
    def wrapped(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(function(*arrays))

    # Advice for what is around: arrays come to `partition` cut along these all the same.
    whole = dict.fromkeys(name for axes in names + result_names for name in axes if name not in cut)
    wrapped.def_partition(partition, sharding_rule=rule, need_replication_factors=tuple(whole))
    one_by_one = jax.custom_batching.sequential_vmap(wrapped)

    def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        is_cut = jax.device_count() == 1 or any(map(_axes, arrays))
        return (function if is_cut else one_by_one)(*arrays)

    return run


def _type_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _places(
    mesh: Mesh, names: list[list[str]], arrays: list[Any], cut: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """The mesh's axes along which each axis is cut: as in the first array that comes cut there."""
    places: dict[str, tuple[str, ...]] = {}
    sizes = collections.defaultdict(list)
    for axes, array in zip(names, arrays, strict=True):
        for name, by, size in zip(axes, array.sharding.spec, array.shape, strict=True):
            sizes[name].append(size)
            by = (by,) if isinstance(by, str) else by or ()
            taken = itertools.chain(*places.values())
            if by and name in cut and name not in places and set(by).isdisjoint(taken):
                places[name] = by

    def divides(name: str) -> bool:
        parts = math.prod(mesh.shape[axis] for axis in places[name])
        return all(size % parts == 0 for size in sizes[name])

    return {name: places[name] for name in places if divides(name)}


def _sum_over(places: dict[str, tuple[str, ...]], axes: list[str], array: jax.Array) -> jax.Array:
    """`array`, of which each device has a part of the sum for each place that is not its own."""
    others = (places[name] for name in places if name not in axes)
    return jax.lax.psum(array, tuple(itertools.chain(*others)))


def cut_by_compiler(
    function: Callable, arrays: tuple[jax.Array, ...], specs: tuple[PartitionSpec, ...]
) -> tuple[jax.Array, ...]:
    """`function(*arrays)`, also where the arrays' types say how they are cut.

    In such an explicit mesh JAX asks at every step how the result is to be cut. Here the compiler
    finds that within `function`, and its results are cut by `specs`.
    """
    meshes = (jax.typeof(array).sharding.mesh for array in arrays)
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return function(*arrays)
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    run = jax.sharding.auto_axes(function, axes=mesh.explicit_axes, out_sharding=shardings)
    return run(*arrays)


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


def is_hopper() -> bool:
    """Whether JAX computes on Hopper GPUs, or interprets kernels for them."""
    if jax.default_backend() == "gpu":
        return getattr(jax.devices()[0], "compute_capability", None) == "9.0"
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and "H100" in device.device_kind
