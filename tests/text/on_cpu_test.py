"""Compiling for one core leaves every thread the cores that it had."""

import os
import subprocess
import sys

import pytest

from apr_jax.text import on_cpu

ONE_CORE = len(os.sched_getaffinity(0)) == 1 if hasattr(os, "sched_getaffinity") else True
PROGRAM = """
import os, threading
from apr_jax.text.on_cpu import for_one_core

def cores():
    return {tuple(sorted(os.sched_getaffinity(int(t)))) for t in os.listdir("/proc/self/task")}

before, wait = cores(), threading.Event()
with for_one_core():
    inside = os.sched_getaffinity(0)
    thread = threading.Thread(target=wait.wait)  # starts with what its parent has
    thread.start()
assert len(inside) == 1, inside
assert cores() == before, cores()
wait.set()
import jax
jax.numpy.ones(9).sum().block_until_ready()
try:
    with for_one_core():
        raise KeyError
except KeyError:
    pass
assert cores() == before, cores()
"""


@pytest.mark.skipif(ONE_CORE, reason="there is one core, or no way to tell")
def test_threads_get_their_cores_back():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment.pop("NPROC", None)
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, timeout=60)


def test_a_system_that_refuses_is_no_error(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    with on_cpu.for_one_core():
        pass


def test_nothing_is_done_where_jax_knows_of_one_core(monkeypatch):
    monkeypatch.setenv("NPROC", "1")
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: 1 / 0, raising=False)
    with on_cpu.for_one_core():
        pass
