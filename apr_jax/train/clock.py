"""The time of each step, when results are fetched late and other work comes in between."""

import time


class Clock:
    """Times steps one after the other. The first of a process includes compilation."""

    def __init__(self) -> None:
        self.warm = False
        self._since: float | None = None

    def start(self) -> None:
        """A step was asked for; counts only if nothing is being timed already."""
        if self._since is None:
            self._since = time.perf_counter()

    def finish(self) -> tuple[float, bool]:
        """A step's result is here. Returns its seconds, and whether compilation is among them."""
        assert self._since is not None, "finish() without start()"
        now = time.perf_counter()
        seconds, compiled = now - self._since, not self.warm
        self._since, self.warm = now, True
        return seconds, compiled

    def pause(self) -> None:
        """What follows is no training."""
        self._since = None
