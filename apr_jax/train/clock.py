"""The time of each step, when results are fetched late and other work comes in between."""

import collections
import time
from concurrent.futures import Future, ThreadPoolExecutor

import jax


class Clock:
    """Times steps one after the other. The first of a process includes compilation.

    A thread waits for the results, because asking for the next step can take until that one is
    half done: a GPU's queue is shorter than a step.
    Steps of few milliseconds may be noted late, one too long and the next too short, as Python's
    threads wait for each other; the sum is right.
    """

    def __init__(self) -> None:
        self.warm = False
        self._since: float | None = None
        self._ends: collections.deque[Future[float]] = collections.deque()
        self._thread = ThreadPoolExecutor(1, "clock")

    def start(self) -> None:
        """A step is asked for; counts only if nothing is being timed already."""
        if self._since is None:
            self._since = time.perf_counter()

    def watch(self, result: jax.Array) -> None:
        """The step that was asked for ends when `result` is there."""
        self._ends.append(self._thread.submit(_end, result))

    def finish(self) -> tuple[float, bool]:
        """Wait for the first of the steps; its seconds, and whether compilation is among them."""
        assert self._since is not None, "finish() without start()"
        end = self._ends.popleft().result()
        seconds, compiled = end - self._since, not self.warm
        self._since, self.warm = end, True
        return seconds, compiled

    def pause(self) -> None:
        """What follows is no training."""
        self._since = None

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _end(result: jax.Array) -> float:
    jax.block_until_ready(result)
    return time.perf_counter()
