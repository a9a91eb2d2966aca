"""CRC32, as zlib's, of bytes that lie one after the other, also from the CRCs of the parts."""

import functools

from isal.isal_zlib import crc32 as crc32  # seven times faster than zlib's, on x86 and Arm

# Polynomials over the bits: the highest bit is x^0, the lowest x^31, and x^32 is this sum.
_X32 = 0xEDB88320
_ONE = 1 << 31
_X8 = 1 << 23


def combine(first: int, second: int, second_bytes: int) -> int:
    """The CRC32 of two parts from that of each and the length of the second, in bytes."""
    return _product(first, _shift(second_bytes)) ^ second


@functools.lru_cache(1024)
def _shift(nbytes: int) -> int:
    """What the CRC of a part is multiplied by when so many bytes follow it: x^(8 nbytes)."""
    shift, square = _ONE, _X8
    while nbytes:
        if nbytes & 1:
            shift = _product(shift, square)
        square = _product(square, square)
        nbytes >>= 1
    return shift


def _product(left: int, right: int) -> int:
    """Of two polynomials, modulo that of CRC32."""
    product = 0
    for power in range(31, -1, -1):
        if left >> power & 1:
            product ^= right
        right = right >> 1 ^ (_X32 if right & 1 else 0)
    return product
