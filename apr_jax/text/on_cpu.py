"""JAX on the CPU, on one core, whatever else the process does with JAX."""

import contextlib
import os
from collections.abc import Iterator

import jax


def cpu() -> jax.Device:
    """JAX raises an error where it has none."""
    return jax.local_devices(backend="cpu")[0]


@contextlib.contextmanager
def apart(device: jax.Device) -> Iterator[None]:
    """Whatever the caller does with JAX around it: 64 bits, no tracing, arrays from NumPy."""
    with (
        jax.default_device(device),
        jax.enable_x64(True),
        jax.ensure_compile_time_eval(),
        jax.transfer_guard("allow"),
    ):
        yield


@contextlib.contextmanager
def for_one_core() -> Iterator[None]:
    """What is compiled in it runs on one core.

    XLA cuts what it compiles into a part for each core that the thread may use then. What we do in
    a call is so little that handing out the parts takes longer than they save.
    """
    cpu()  # whose own threads are to start with all cores
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    with contextlib.ExitStack() as stack:
        if len(cores) > 1:
            with contextlib.suppress(OSError):  # a system may refuse it
                os.sched_setaffinity(0, {min(cores)})  # of this thread alone
                stack.callback(os.sched_setaffinity, 0, cores)
        yield
