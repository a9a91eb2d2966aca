"""The pool serves a process that was forked from one which has used it."""

import os
import subprocess
import sys

import pytest

# In a process of its own: JAX, which other tests have imported, warns of every fork.
PROGRAM = """
import multiprocessing

import numpy as np

from apr_jax.codec.compare import same_bytes

data = np.arange(1000, dtype=np.uint8)
assert same_bytes(data, data)
child = multiprocessing.get_context("fork").Process(target=same_bytes, args=(data, data))
child.start()
child.join(20)
alive = child.is_alive()
child.kill()
assert not alive and child.exitcode == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_threads_of_its_own():
    subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], check=True)
