"""Throughput of steps that really ran, without compilation, evaluation and checkpoints."""

import time


class Clock:
    """Times steps whose results are fetched late.

    `first_step_seconds` is the wait for the first step, compilation included; it does not count
    in `tokens_per_second`. Pauses do not count anywhere.
    """

    def __init__(self) -> None:
        self.first_step_seconds: float | None = None
        self._tokens, self._seconds = 0, 0.0
        self._since: float | None = None

    def start(self) -> None:
        """A step was asked for; counts only if nothing is being timed already."""
        if self._since is None:
            self._since = time.perf_counter()

    def finish(self, tokens: int) -> float:
        """A step of `tokens` is done. Returns its seconds."""
        assert self._since is not None, "finish() without start()"
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        if self.first_step_seconds is None:
            self.first_step_seconds = seconds
        else:
            self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        return seconds

    def pause(self) -> None:
        """What follows is no training."""
        self._since = None

    @property
    def tokens_per_second(self) -> float | None:
        """Over every step but the first; None before there are two."""
        return self._tokens / self._seconds if self._seconds else None
