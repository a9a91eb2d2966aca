"""A Hopper GPU that is not there: its kernels are interpreted, and races looked for."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh

DEVICE = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", platform="gpu", num_cores=2)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Two multiprocessors, so that a grid of more tiles goes round."""
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=DEVICE)):
        with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
            yield
