"""Bounds of words by both ways that `cutting` has."""

from unittest import mock

import numpy as np

from apr_jax.text import cutting
from apr_jax.text.word_table import Text


def bounds(cutter: cutting.Cutter, data: bytes, *, capacity: int = 0) -> np.ndarray:
    """The bounds by the bytes of the text, which are the same by its characters."""
    found = []
    for by_characters in (False, True):
        with mock.patch.object(cutting, "_is_dense", return_value=by_characters):
            found.append(cutter.bounds(Text(data, capacity=capacity)))
    np.testing.assert_array_equal(*found)
    assert found[0].dtype == found[1].dtype == np.intp
    return found[0]
