"""What XLA marks is what NumPy marks, and so are the bounds of words."""

import numpy as np
import pytest

from apr_jax.text.compiled_cutting import CompiledCutter
from apr_jax.text.cutting import Cutter
from apr_jax.text.pretokenizers import PRETOKENIZERS
from tests.text.both_ways import bounds
from tests.text.hostile import FRAGMENTS, random_texts

CUTTERS = {
    name: (Cutter(rule), CompiledCutter(rule)) for name, rule in PRETOKENIZERS.items() if rule.joins
}
ROOM = 1 << 16


def data():
    pairs = ["".join(f"{a}{b}" for b in FRAGMENTS[::7]) for a in FRAGMENTS]
    return b"\xff".join(text.encode() for text in [*random_texts(5, 400), *pairs])


@pytest.mark.parametrize("name", CUTTERS)
def test_bounds_are_the_same(name):
    plain, compiled = CUTTERS[name]
    text = data()
    whole = text[: text.rindex(b"\xff", 0, ROOM - 16)]
    for piece in (whole, b"", b"a", b"\n \n", "\u3000x\u2003".encode()):
        found = bounds(compiled, piece, capacity=ROOM)
        np.testing.assert_array_equal(found, bounds(plain, piece))


@pytest.mark.parametrize("name", CUTTERS)
def test_bytes_of_all_kinds_side_by_side(name):
    plain, compiled = CUTTERS[name]
    kinds = np.array([*b"aZ09' \n\r\t\v!_\xff", 0xC3, 0xF5, 0xF6, 0xF7, 0xF8, 0], np.uint8)
    octets = np.random.default_rng(0).choice(kinds, ROOM)
    np.testing.assert_array_equal(compiled._marks(octets, ROOM), plain._marks(octets, ROOM))
