"""The CRC of a whole from those of its parts is that of zlib."""

import zlib

import numpy as np
import pytest

from apr_jax.codec.crc import combine


@pytest.mark.parametrize("second_bytes", [0, 1, 7, 64, 4097, 1_000_003])
@pytest.mark.parametrize("first_bytes", [0, 1, 128])
def test_two_parts(first_bytes, second_bytes):
    rng = np.random.default_rng(second_bytes)
    first, second = rng.bytes(first_bytes), rng.bytes(second_bytes)
    whole = combine(zlib.crc32(first), zlib.crc32(second), second_bytes)
    assert whole == zlib.crc32(first + second)
