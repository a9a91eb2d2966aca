"""The format's own quantised types: Q4 in blocks of 32, Q8 with one scale for the whole tensor."""

import numpy as np

from apr_jax.codec import dtypes

# The largest magnitude that the encoder takes: what a float16 scale can still express.
Q4_LIMIT = 7 * float(np.finfo(np.float16).max)

_Q4 = dtypes.BY_NAME["Q4"]
_HALF_EXPONENT = 0x7C00
_SCALE = np.dtype("<f4")
_ELEMENTS_AT_ONCE = 1 << 18


def decode_q4(blocks_NB: np.ndarray, out_NE: np.ndarray) -> None:
    """Decode uint8 blocks of 18 bytes into float32 rows of 32: value = (nibble - 8) * scale.

    The low nibble comes first. A scale that is subnormal or not finite counts as zero, as in the
    format's reference reader; other readers keep it.
    """
    bits_N1 = np.ascontiguousarray(blocks_NB[:, :2]).view(np.uint16)
    exponent = bits_N1 & _HALF_EXPONENT
    normal = (exponent != 0) & (exponent != _HALF_EXPONENT)
    scale_N1 = np.where(normal, bits_N1, np.uint16(0)).view(np.float16).astype(np.float32)
    pairs = blocks_NB[:, 2:]
    out_NE[:, ::2] = pairs & 15
    out_NE[:, 1::2] = pairs >> 4
    out_NE -= 8
    out_NE *= scale_N1


def encode_q4(values_NE: np.ndarray) -> np.ndarray:
    """Encode float32 rows of 32, no magnitude above `Q4_LIMIT`, to uint8 blocks [N, 18].

    The reference writer's rule: scale = max|x| / 7, or 1; levels are taken before it is rounded.
    """
    scale_N1 = np.abs(values_NE).max(axis=1, keepdims=True) / np.float32(7)
    scale_N1[scale_N1 == 0] = 1
    q = (_round(values_NE / scale_N1).clip(-8, 7) + 8).astype(np.uint8)
    blocks_NB = np.empty((len(values_NE), _Q4.block_bytes), np.uint8)
    blocks_NB[:, :2] = scale_N1.astype(np.float16).view(np.uint8)
    blocks_NB[:, 2:] = q[:, ::2] | q[:, 1::2] << 4
    return blocks_NB


def clear_padding_q4(stored: np.ndarray, elements: int) -> None:
    """Zero the nibbles after the last element, as the reference writer does, in place."""
    if used := elements % _Q4.block:
        pairs = stored[-_Q4.block // 2 :]
        pairs[-(-used // 2) :] = 0
        pairs[used // 2] &= 15 if used % 2 else 0


def decode_q8(stored: np.ndarray) -> np.ndarray:
    """Decode a stored tensor, uint8, to flat float32: value = byte * scale, whatever the scale.

    Without a whole scale there are no values.
    """
    if stored.size < _SCALE.itemsize:
        return np.empty(0, np.float32)
    scale = stored[: _SCALE.itemsize].view(_SCALE)
    with np.errstate(invalid="ignore", over="ignore"):
        return stored[_SCALE.itemsize :].view(np.int8) * scale


def encode_q8(flat: np.ndarray, peak: np.float32) -> np.ndarray:
    """Encode numbers of any float type, flat, to the stored bytes, uint8.

    The reference writer's rule: scale = peak / 127, or 1, where `peak` is the largest magnitude.
    """
    scale = peak / np.float32(127) or np.float32(1)
    stored = np.empty(_SCALE.itemsize + flat.size, np.uint8)
    stored[: _SCALE.itemsize].view(_SCALE)[:] = scale
    bytes_out = stored[_SCALE.itemsize :].view(np.int8)
    for at in range(0, flat.size, _ELEMENTS_AT_ONCE):
        part = flat[at : at + _ELEMENTS_AT_ONCE].astype(np.float32)
        bytes_out[at : at + part.size] = _round(part / scale).clip(-127, 127)
    return stored


def _round(x: np.ndarray) -> np.ndarray:
    """To the nearest integer, halves away from zero; in float64, where adding a half is exact."""
    return np.trunc(x.astype(np.float64) + np.copysign(0.5, x))
