"""An oracle: quantised types decoded one element at a time, as the format's description reads."""

import struct

import numpy as np


def _half(data, at):
    return struct.unpack_from("<e", data, at)[0]


def q4_k(block):
    """144 bytes to 256 values."""
    d, dmin = (x if np.isfinite(x) else 0.0 for x in (_half(block, 0), _half(block, 2)))
    s, qs = block[4:16], block[16:]
    sc = [s[j] & 63 for j in range(4)] + [(s[j + 8] & 15) | (s[j] >> 6) << 4 for j in range(4)]
    m = [s[j + 4] & 63 for j in range(4)] + [
        (s[j + 8] >> 4) | (s[j + 4] >> 6) << 4 for j in range(4)
    ]
    values = []
    for c in range(4):
        for j, shift in ((2 * c, 0), (2 * c + 1, 4)):
            scale = np.float32(d) * np.float32(sc[j])
            minimum = np.float32(dmin) * np.float32(m[j])
            for byte in qs[32 * c : 32 * c + 32]:
                values.append(scale * np.float32(byte >> shift & 15) - minimum)
    return values


def q6_k(block):
    """210 bytes to 256 values."""
    ql, qh, scales = block[:128], block[128:192], struct.unpack_from("<16b", block, 192)
    d = _half(block, 208)
    d = np.float32(d if np.isfinite(d) else 0.0)
    values = []
    for h in range(2):
        for g in range(4):
            for place in range(32):
                byte = ql[64 * h + 32 * (g % 2) + place]
                low = byte & 15 if g < 2 else byte >> 4
                top = qh[32 * h + place] >> 2 * g & 3
                scale = d * np.float32(scales[8 * h + 2 * g + place // 16])
                values.append(scale * np.float32((low | top << 4) - 32))
    return values


def q4(block):
    """18 bytes to 32 values."""
    scale = _half(block, 0)
    if not np.isfinite(scale) or abs(scale) < 6.1e-5:
        scale = 0.0
    nibbles = [block[2 + i // 2] >> 4 * (i % 2) & 15 for i in range(32)]
    return [np.float32(nibble - 8) * np.float32(scale) for nibble in nibbles]


def q8(stored):
    """A whole tensor."""
    (scale,) = struct.unpack_from("<f", stored)
    with np.errstate(invalid="ignore", over="ignore"):
        return [
            np.float32(byte) * np.float32(scale)
            for byte in struct.unpack_from(f"<{len(stored) - 4}b", stored, 4)
        ]
