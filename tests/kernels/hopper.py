"""A Hopper GPU that is not there."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh


def present(num_cores: int) -> Any:
    """For kernels that are to be lowered, or asked whether they could run."""
    device = AbstractDevice("NVIDIA H100 80GB HBM3", platform="gpu", num_cores=num_cores)
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Kernels are interpreted and races looked for, on two multiprocessors: more tiles go round."""
    interpreter = plgpu.InterpretGPUParams(detect_races=True)
    with present(num_cores=2), plgpu.force_gpu_interpret_mode(interpreter):
        yield
