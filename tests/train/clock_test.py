"""A step's time ends when its result is there, however late it is asked for."""

import threading

import pytest

from apr_jax.train import clock as clock_module
from apr_jax.train.clock import Clock


class Result:
    """What a device will have done some time."""

    def __init__(self):
        self._done = threading.Event()

    def block_until_ready(self):
        self._done.wait()
        return self

    def finish(self, clock):
        self._done.set()
        clock._ends[-1].result()  # the thread has read the time


@pytest.fixture
def now(monkeypatch):
    """The time, as a list of one number to be set."""
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    return now


def test_a_host_that_looks_late_changes_no_time(now):
    clock, first, second = Clock(), Result(), Result()
    clock.start()
    clock.watch(first)
    now[0] = 10.0
    first.finish(clock)
    now[0] = 15.0  # the second one is half done before the host can go on
    clock.start()
    clock.watch(second)
    assert clock.finish() == (10.0, True)
    now[0] = 20.0
    second.finish(clock)
    assert clock.finish() == (10.0, False)
    clock.close()


def test_pauses_do_not_count(now):
    clock = Clock()
    for start in (0.0, 100.0):
        result = Result()
        now[0] = start
        clock.start()
        clock.watch(result)
        now[0] = start + 3.0
        result.finish(clock)
        assert clock.finish()[0] == 3.0
        clock.pause()
    clock.close()


def test_a_step_that_fails_says_so():
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    clock = Clock()
    clock.start()
    clock.watch(Broken())
    with pytest.raises(RuntimeError, match="out of memory"):
        clock.finish()
    clock.close()
