"""Data parallelism: the same step on every device, each with its part of the batch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apr_jax.train.config import TrainError

_AXIS = "data"


class DataParallel:
    """Runs steps over `devices` by `jax.pmap`, or by `jit` with the batch sharded.

    A step is `f(replicated, batch, total=...)`; its results are replicated. Both ways compute the
    same: under pmap `total` is a sum over devices, under jit the step sees the whole batch and the
    compiler adds the sums.
    """

    def __init__(
        self, mode: Literal["pmap", "jit"], devices: Sequence[jax.Device] | None = None
    ) -> None:
        if jax.process_count() > 1:
            raise TrainError(
                f"{jax.process_count()} processes: several hosts are not supported yet, run one"
            )
        self.mode = mode
        self.devices = list(devices if devices is not None else jax.devices())
        self._mesh = Mesh(np.asarray(self.devices), (_AXIS,))

    @property
    def num_devices(self) -> int:
        """How many parts a batch is cut into."""
        return len(self.devices)

    def check_batch(self, sequences: int, what: str) -> None:
        """Refuse a batch that does not divide among the devices."""
        if sequences % self.num_devices:
            raise TrainError(
                f"{what}={sequences} does not divide among {self.num_devices} devices; "
                f"use a multiple of {self.num_devices}"
            )

    def compile(self, step: Callable[..., Any], *, donate: bool) -> Callable[..., Any]:
        """`step` for all devices; `donate` gives its first argument's memory to the result."""
        donated = (0,) if donate else ()
        if self.mode == "jit":
            return jax.jit(step, donate_argnums=donated)
        return jax.pmap(
            functools.partial(step, total=lambda tree: jax.lax.psum(tree, _AXIS)),
            axis_name=_AXIS,
            in_axes=(None, 0),
            out_axes=None,
            donate_argnums=donated,
            devices=self.devices,
        )

    def replicate(self, tree: Any) -> Any:
        """Put a copy of `tree` on every device, in memory of its own, so that it can be donated."""
        sharding = NamedSharding(self._mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding, may_alias=False), tree)

    def split(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, Any]:
        """Cut the arrays' `axis` of sequences among the devices, as the compiled step wants it."""
        if self.mode == "jit":
            sharding = NamedSharding(self._mesh, PartitionSpec(*[None] * axis, _AXIS))
            return {name: jax.device_put(array, sharding) for name, array in batch.items()}
        return {
            name: np.stack(np.split(array, self.num_devices, axis)) for name, array in batch.items()
        }
