"""A bar on a terminal, lines elsewhere."""

import io

import pytest

from apr_jax import progress
from apr_jax.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_elsewhere_a_line_now_and_then_and_one_at_the_end(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    stream = io.StringIO()
    with Progress("work", 1000, "steps", stream=stream) as bar:
        bar.update(400, "loss 2.5")
        bar.update(600)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["work: 400/1,000 steps, loss 2.5", "work: 1,000/1,000 steps, loss 2.5"]
    assert lines[2].startswith("work: 1,000/1,000 steps, loss 2.5 in ")
    assert "\r" not in stream.getvalue()


def test_bytes_are_told_with_rate_and_time_left(monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    times = iter([100.0, *[102.0] * 9])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    stream = io.StringIO()
    with Progress("reading", 10_000_000, "B", stream=stream) as bar:
        bar.update(4_000_000)
        bar.update(6_000_000)
    assert stream.getvalue().splitlines() == [
        "reading: 4.0/10.0 MB, 2.0 MB/s, 3 s left",
        "reading: 10.0/10.0 MB, 5.0 MB/s",
        "reading: 10.0/10.0 MB, 5.0 MB/s in 2.0 s",
    ]


def test_lines_are_rare():
    stream = io.StringIO()
    with Progress("work", None, "files", stream=stream) as bar:
        for _ in range(1000):
            bar.update()
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("work: 1,000 files in ")


def test_on_a_terminal_a_live_bar():
    stream = _Terminal()
    with Progress("work", 10, "steps", stream=stream) as bar:
        bar.update(10, "loss 2.5")
    assert "\r" in stream.getvalue()
    assert "work: 100%" in stream.getvalue() and "loss 2.5" in stream.getvalue()


def test_work_that_failed_is_not_told_as_done():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress("work", 10, "steps", stream=stream):
        raise RuntimeError
    assert stream.getvalue() == ""
