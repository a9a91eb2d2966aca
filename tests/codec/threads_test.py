"""The pool serves a process that was forked from one which has used it."""

import multiprocessing
import os
import warnings

import numpy as np
import pytest

from apr_jax.codec.compare import same_bytes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_threads_of_its_own():
    data = np.arange(1000, dtype=np.uint8)
    assert same_bytes(data, data)
    child = multiprocessing.get_context("fork").Process(target=same_bytes, args=(data, data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child.start()
    child.join(20)
    alive = child.is_alive()
    child.kill()
    assert not alive and child.exitcode == 0
