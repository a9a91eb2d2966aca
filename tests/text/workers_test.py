"""Processes that call one function: order, errors, death of either side."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from apr_jax.errors import UserError
from apr_jax.text.workers import WorkerError, Workers


class Square:
    """What the workers call; picklable, as it has a name in a module."""

    def __call__(self, task):
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "bad":
            raise UserError("bad input")
        if task == "print":
            print("noise between answers")
            return os.getpid()
        if task == "environment":
            return [os.environ.get(name) for name in ("NPROC", "JAX_PLATFORMS")]
        time.sleep(0.001 * (task % 3))
        return np.full(1000, task * task)


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_tasks(count):
    taken = []

    def tasks():
        for number in range(40):
            taken.append(number)
            yield number

    with Workers(count, Square()) as workers:
        for number, (task, result) in enumerate(workers.ordered(tasks())):
            assert task == number and result[-1] == number * number
            assert len(taken) <= number + count + 3  # no more than are needed soon
        assert workers(7)[0] == 49
        assert (workers("print") == os.getpid()) == (count == 1)


def test_workers_leave_the_gpu_alone_and_take_one_core_each(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with Workers(2, Square()) as workers:
        assert workers("environment") == ["1", "cpu"]


def test_an_error_is_raised_where_its_result_would_come():
    with pytest.raises(UserError, match="bad input"), Workers(2, Square()) as workers:
        for task, _ in workers.ordered([1, 2, "bad", 3]):
            assert task in (1, 2)


def test_the_death_of_a_worker_is_told():
    with pytest.raises(WorkerError, match=r"ended with SIGKILL.*run the same command again"):
        with Workers(2, Square()) as workers:
            list(workers.ordered([1, "die", 2, 3]))


def test_pipes_stay_as_they_are_where_they_may_not_hold_more(monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(fcntl, "fcntl", refused)  # as where a user's pipes have 64 MB already
    with Workers(2, Square()) as workers:
        assert [result[0] for _, result in workers.ordered(range(9))] == [i * i for i in range(9)]


def test_processes_that_cannot_be_started_are_told_and_not_waited_for(monkeypatch):
    def refused(*_, **__):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(WorkerError, match=r"could not be started \(Resource .*: use fewer"):
        with Workers(2, Square()) as workers:
            list(workers.ordered([1] * 9))


PARENT = """
import sys, time
from apr_jax.text.workers import Workers
from tests.text.workers_test import Square
workers = Workers(2, Square())
list(workers.ordered([2] * 8))
print(*[process.pid for process in workers._processes], flush=True)
time.sleep(60)
"""


def test_workers_do_not_outlive_their_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, pids))


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
