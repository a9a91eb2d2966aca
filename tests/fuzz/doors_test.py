"""Doors let through their seeds and what a fuzzer once found; what is no refusal is noticed."""

import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from apr_jax.codec.reader import AprFile
from tests.fuzz.doors import DOORS
from tests.fuzz.seeds import DATA, seeds

some_bytes = hypothesis.settings(derandomize=True, deadline=None, database=None, max_examples=150)


@pytest.mark.parametrize("door", DOORS)
def test_seeds_and_findings(tmp_path, door):
    inputs = list(seeds(door, tmp_path))
    assert inputs
    for data in inputs:
        DOORS[door](data, tmp_path)


@pytest.mark.parametrize("door", DOORS)
def test_seeds_that_were_changed_anywhere(tmp_path_factory, door):
    folder = tmp_path_factory.mktemp(door)
    inputs = list(seeds(door, folder))

    @some_bytes
    @hypothesis.given(st.sampled_from(inputs), st.floats(0, 1), st.integers(0, 9), st.binary())
    def change(data, place, cut, put):
        at = int(place * len(data))
        DOORS[door](data[:at] + put[:9] + data[at + cut :], folder)

    change()


def test_another_exception_is_a_finding(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("by accident")

    monkeypatch.setattr(AprFile, "read", fail)
    with pytest.raises(ValueError, match="by accident"):
        DOORS["apr"](_tiny(), tmp_path)


def test_an_array_beyond_its_file_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(AprFile, "read", lambda *_: np.empty(1 << 20))
    with pytest.raises(AssertionError, match="has 8388608 bytes"):
        DOORS["apr"](_tiny(), tmp_path)


def _tiny() -> bytes:
    return pathlib.Path(DATA / "apr" / "f32_tiny.apr").read_bytes()
