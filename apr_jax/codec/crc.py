"""CRC32 of bytes that lie one after the other, from the CRCs of the parts."""

# Polynomials over the bits: the highest bit is x^0, the lowest x^31, and x^32 is this sum.
_X32 = 0xEDB88320
_ONE = 1 << 31
_X8 = 1 << 23


def combine(first: int, second: int, second_bytes: int) -> int:
    """The CRC32 of two parts from that of each and the length of the second, in bytes."""
    shift, square = _ONE, _X8
    while second_bytes:
        if second_bytes & 1:
            shift = _product(shift, square)
        square = _product(square, square)
        second_bytes >>= 1
    return _product(first, shift) ^ second


def _product(left: int, right: int) -> int:
    """Of two polynomials, modulo that of CRC32."""
    product = 0
    for power in range(31, -1, -1):
        if left >> power & 1:
            product ^= right
        right = right >> 1 ^ (_X32 if right & 1 else 0)
    return product
