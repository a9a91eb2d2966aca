"""Blocks of 256 elements in two levels of scales, the same as GGML's: Q4_K and Q6_K.

A block has one float16 scale, and its sub-blocks have small integer multiples of it. Suffixes:
N blocks, S sub-blocks, E elements of a sub-block, B bytes.
"""

import numpy as np

from apr_jax.codec import dtypes

# The largest magnitudes that the encoders take: what a float16 scale can still express.
Q4_K_LIMIT = 4.0e6
Q6_K_LIMIT = 2.6e8

_Q4_K_BYTES = dtypes.BY_NAME["Q4_K"].block_bytes
_Q6_K_BYTES = dtypes.BY_NAME["Q6_K"].block_bytes
_HALF_MAX = float(np.finfo(np.float16).max)
_HALF_EXPONENT = 0x7C00
# Where the outermost level of a sub-block may fall; the best of them in squared error is taken.
_Q4_K_LEVELS = np.arange(13.6, 16.9, 0.4, dtype=np.float32)
_Q6_K_LEVELS = np.arange(29.5, 34.0, 0.5, dtype=np.float32)


def decode_q4_k(blocks_NB: np.ndarray, out_NE: np.ndarray) -> None:
    """Decode uint8 blocks of 144 bytes into float32 rows of 256.

    value = (d * scale) * q - dmin * minimum, which only the subtraction rounds. A `d` or `dmin`
    that is not finite counts as zero, as in the format's reference reader; GGML keeps it.
    """
    half_N2 = _finite_halves(blocks_NB[:, :4])
    factors_N2S = _unpack_factors(blocks_NB[:, 4:16]) * half_N2[:, :, None]
    scale, minimum = np.moveaxis(factors_N2S.reshape(-1, 2, 4, 2, 1), 1, 0)
    pairs = blocks_NB[:, 16:].reshape(-1, 4, 32)
    out = out_NE.reshape(-1, 4, 2, 32)
    out[:, :, 0] = pairs & 15
    out[:, :, 1] = pairs >> 4
    out *= scale
    out -= minimum


def decode_q6_k(blocks_NB: np.ndarray, out_NE: np.ndarray) -> None:
    """Decode uint8 blocks of 210 bytes into float32 rows of 256.

    value = (d * scale) * q, which is exact. A `d` that is not finite counts as zero, as in the
    format's reference reader; GGML keeps it.
    """
    scale_NS = blocks_NB[:, 192:208].view(np.int8) * _finite_halves(blocks_NB[:, 208:])
    # The four groups that share the bytes of `high` stand first: long runs are what is fast.
    low = np.ascontiguousarray(np.moveaxis(blocks_NB[:, :128].reshape(-1, 2, 2, 32), 2, 0))
    high = np.ascontiguousarray(blocks_NB[:, 128:192]).reshape(-1, 2, 32)
    q = np.empty((4, len(blocks_NB), 2, 32), np.uint8)
    np.bitwise_and(low, 15, out=q[:2])
    np.right_shift(low, 4, out=q[2:])
    q[0] |= high << 4 & 48
    q[1] |= high << 2 & 48
    q[2] |= high & 48
    q[3] |= high >> 2 & 48
    q -= 32
    out_NE.reshape(-1, 2, 4, 32)[...] = np.moveaxis(q.view(np.int8), 0, 2)
    out_NSE = out_NE.reshape(-1, 16, 16)
    out_NSE *= scale_NS[:, :, None]


def encode_q4_k(values_NE: np.ndarray) -> np.ndarray:
    """Encode float32 rows of 256, no magnitude above `Q4_K_LIMIT`, to uint8 blocks [N, 144].

    A sub-block's line `scale * q + offset` is the best in squared error of a few. Offsets are at
    most zero, except in a block whose every sub-block is positive: there `dmin` is negative, so
    that values far from zero keep their precision.
    """
    x_NSE = values_NE.reshape(-1, 8, 32)
    scale_NS, offset_NS = _fit_lines(x_NSE)
    d_N1 = _half(scale_NS.max(axis=1, keepdims=True) / 63)
    least = np.take_along_axis(offset_NS, np.abs(offset_NS).argmax(axis=1, keepdims=True), 1)
    # Offsets alone, of a block too small for its float16 scale, would be worse than zeros.
    lost_N1 = (d_N1 == 0) & scale_NS.any(axis=1, keepdims=True)
    dmin_N1 = np.where(lost_N1, np.float32(0), _half(-least / 63))
    sc_NS = np.rint(_over(scale_NS, d_N1)).clip(0, 63).astype(np.uint8)
    m_NS = np.rint(_over(-offset_NS, dmin_N1)).clip(0, 63).astype(np.uint8)
    levels_NSE = x_NSE + (dmin_N1 * m_NS)[:, :, None]
    levels_NSE *= _over(np.float32(1), d_N1 * sc_NS)[:, :, None]
    q = np.rint(levels_NSE, out=levels_NSE).clip(0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    blocks_NB = np.empty((len(x_NSE), _Q4_K_BYTES), np.uint8)
    blocks_NB[:, :2] = d_N1.astype(np.float16).view(np.uint8)
    blocks_NB[:, 2:4] = dmin_N1.astype(np.float16).view(np.uint8)
    blocks_NB[:, 4:16] = _pack_factors(sc_NS, m_NS)
    blocks_NB[:, 16:] = (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)
    return blocks_NB


def encode_q6_k(values_NE: np.ndarray) -> np.ndarray:
    """Encode float32 rows of 256, no magnitude above `Q6_K_LIMIT`, to uint8 blocks [N, 210].

    A sub-block's scale is the best in squared error of a few.
    """
    x_NSE = values_NE.reshape(-1, 16, 16)
    scale_NS = _fit_scales(x_NSE)
    peak_N1 = np.take_along_axis(scale_NS, np.abs(scale_NS).argmax(axis=1, keepdims=True), 1)
    d_N1 = _half(peak_N1 / -128)
    sc_NS = np.rint(_over(scale_NS, d_N1)).clip(-128, 127).astype(np.int8)
    levels_NSE = x_NSE * _over(np.float32(1), d_N1 * sc_NS)[:, :, None]
    q = np.rint(levels_NSE, out=levels_NSE).clip(-32, 31).astype(np.int8).view(np.uint8)
    q = (q + np.uint8(32)).reshape(-1, 2, 4, 32)
    blocks_NB = np.empty((len(x_NSE), _Q6_K_BYTES), np.uint8)
    blocks_NB[:, :128] = (q[:, :, :2] & 15 | q[:, :, 2:] << 4).reshape(-1, 128)
    top = q >> 4
    top = top[:, :, 0] | top[:, :, 1] << 2 | top[:, :, 2] << 4 | top[:, :, 3] << 6
    blocks_NB[:, 128:192] = top.reshape(-1, 64)
    blocks_NB[:, 192:208] = sc_NS.view(np.uint8)
    blocks_NB[:, 208:] = d_N1.astype(np.float16).view(np.uint8)
    return blocks_NB


def _finite_halves(bytes_NB: np.ndarray) -> np.ndarray:
    """Stored float16 as float32, those that are not finite as zero."""
    bits = np.ascontiguousarray(bytes_NB).view(np.uint16)
    finite = bits & _HALF_EXPONENT != _HALF_EXPONENT
    return np.where(finite, bits, np.uint16(0)).view(np.float16).astype(np.float32)


def _unpack_factors(packed_NB: np.ndarray) -> np.ndarray:
    """The 6-bit multiples of `d` and of `dmin` [N, 2, 8] in Q4_K's twelve bytes."""
    factors = np.empty((len(packed_NB), 2, 8), np.uint8)
    first, last = packed_NB[:, :8].reshape(-1, 2, 4), packed_NB[:, 8:]
    np.bitwise_and(first, 63, out=factors[:, :, :4])
    np.left_shift(first >> 6, 4, out=factors[:, :, 4:])
    factors[:, 0, 4:] |= last & 15
    factors[:, 1, 4:] |= last >> 4
    return factors


def _pack_factors(sc_NS: np.ndarray, m_NS: np.ndarray) -> np.ndarray:
    """The inverse of `_unpack_factors`."""
    return np.concatenate(
        (
            sc_NS[:, :4] | sc_NS[:, 4:] >> 4 << 6,
            m_NS[:, :4] | m_NS[:, 4:] >> 4 << 6,
            sc_NS[:, 4:] & 15 | m_NS[:, 4:] << 4,
        ),
        axis=1,
    )


def _fit_lines(x_NSE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset [N, S] of the lines through 16 levels that come nearest to the elements."""
    low_NS, high_NS = x_NSE.min(axis=2), x_NSE.max(axis=2)
    positive_N1 = (low_NS > 0).all(axis=1, keepdims=True)
    low_NS = np.where(positive_N1, low_NS, np.minimum(low_NS, 0))
    y_NSE = x_NSE - low_NS[:, :, None]
    elements, span_NS, sum_y = x_NSE.shape[2], high_NS - low_NS, y_NSE.sum(axis=2)
    scale_NS, offset_NS = span_NS / 15, low_NS
    # How much of the sum of squares a line explains, so the greatest is the nearest line.
    best_NS = np.full(low_NS.shape, -np.inf, np.float32)
    for levels in _Q4_K_LEVELS:
        q_NSE = y_NSE * _over(levels, span_NS)[:, :, None]
        np.minimum(np.rint(q_NSE, out=q_NSE), 15, out=q_NSE)
        sum_q = q_NSE.sum(axis=2)
        sum_qq = np.einsum("nse,nse->ns", q_NSE, q_NSE)
        sum_yq = np.einsum("nse,nse->ns", y_NSE, q_NSE)
        slope = _over(elements * sum_yq - sum_y * sum_q, elements * sum_qq - sum_q * sum_q)
        shift = (sum_y - slope * sum_q) / elements
        # The stored offset has one sign in a block; where the best has the other, it is zero.
        outside = np.where(positive_N1, low_NS + shift < 0, low_NS + shift > 0)
        shift = np.where(outside, -low_NS, shift)
        slope = np.where(outside, _over(sum_yq - shift * sum_q, sum_qq), slope)
        gain = slope * (2 * (sum_yq - shift * sum_q) - slope * sum_qq)
        gain += shift * (2 * sum_y - shift * elements)
        better = gain > best_NS
        best_NS = np.where(better, gain, best_NS)
        scale_NS = np.where(better, slope, scale_NS)
        offset_NS = np.where(better, low_NS + shift, offset_NS)
    return scale_NS, offset_NS


def _fit_scales(x_NSE: np.ndarray) -> np.ndarray:
    """The scales [N, S] whose 64 levels come nearest to the elements; level -32 takes the peak."""
    at = np.abs(x_NSE).argmax(axis=2, keepdims=True)
    peak_NS = np.take_along_axis(x_NSE, at, axis=2)[:, :, 0]
    scale_NS = np.zeros_like(peak_NS)
    best_NS = np.zeros_like(peak_NS)
    for levels in _Q6_K_LEVELS:
        q_NSE = x_NSE * _over(-levels, peak_NS)[:, :, None]
        np.rint(q_NSE, out=q_NSE).clip(-32, 31, out=q_NSE)
        sum_qq = np.einsum("nse,nse->ns", q_NSE, q_NSE)
        sum_xq = np.einsum("nse,nse->ns", x_NSE, q_NSE)
        slope = _over(sum_xq, sum_qq)
        gain = slope * sum_xq
        better = gain > best_NS
        best_NS = np.where(better, gain, best_NS)
        scale_NS = np.where(better, slope, scale_NS)
    return scale_NS


def _half(x: np.ndarray) -> np.ndarray:
    """Rounded to float16, kept in its range, as float32."""
    return x.clip(-_HALF_MAX, _HALF_MAX).astype(np.float16).astype(np.float32)


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def _over(x: np.ndarray | np.float32, y: np.ndarray) -> np.ndarray:
    """x / y in float32, and 0 where that is not finite, which is where nothing is to be scaled."""
    ratio = x / y
    return np.where(np.isfinite(ratio), ratio, np.float32(0))
