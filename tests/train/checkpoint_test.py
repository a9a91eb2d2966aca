"""What a failed save prints, and when; saving and resuming are tested with whole runs."""

import logging
import sys
import types

import pytest

from apr_jax.train import checkpoint


def test_threads_of_a_failed_save_are_silent_and_others_are_not(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", False)
    with pytest.raises(OSError, match="full"), checkpoint._told_once():
        raise OSError("full")
    late, other = RuntimeError("Event loop is closed"), RuntimeError("other")
    for error in (late, other):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [unraisable.exc_value for unraisable in told] == [other]
