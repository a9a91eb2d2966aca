"""JAX on the CPU, on one core, whatever else the process does with JAX."""

import contextlib
import os
from collections.abc import Iterator

import jax

from apr_jax.errors import UserError

_processes: list[int] = []  # that asked for the device: this one, or one it was forked from


def cpu() -> jax.Device:
    """JAX's device.

    Raises:
      UserError: it has none, or this process was forked from one that asked for it. XLA's threads
        are not in it, and it would wait for them for ever.
    """
    if _processes not in ([], [os.getpid()]):
        raise UserError(
            "this process was forked from one that had compiled a tokenizer, and cannot compile: "
            "encode without, or start processes by spawn"
        )
    try:
        device = jax.local_devices(backend="cpu")[0]
    except (RuntimeError, AssertionError) as error:  # JAX raises either
        reason = str(error) or "it is not among them"
        raise UserError(f"JAX cannot use the CPU, see JAX_PLATFORMS: {reason}") from error
    _processes[:] = [os.getpid()]
    return device


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
    if os.environ.get("NPROC") == "1" or not hasattr(os, "sched_setaffinity"):
        yield  # JAX knows of one core, or the system of no way to tell it so
        return
    cpu()  # starts most of JAX's threads
    cores, before = os.sched_getaffinity(0), _threads()
    one = {min(cores)}
    with contextlib.suppress(OSError):  # a system may refuse it
        os.sched_setaffinity(0, one)  # of this thread alone, and of those that it starts
    try:
        yield
    finally:
        for thread in (0, *(_threads() - before)):
            with contextlib.suppress(OSError):  # or a thread has ended
                if os.sched_getaffinity(thread) == one:
                    os.sched_setaffinity(thread, cores)


def _threads() -> set[int]:
    """The threads of this process; none where the system does not list them."""
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir("/proc/self/task")}
    return set()
