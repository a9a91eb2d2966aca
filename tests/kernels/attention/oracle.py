"""Attention in NumPy float64, one query at a time, straight from the definition."""

import numpy as np


def attention(
    q_BTNH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    *,
    segment_start_BT: np.ndarray | None = None,
    causal: bool = True,
    q_offset: int = 0,
    scale: float | None = None,
) -> np.ndarray:
    """As `kernels.attention.attention`, whatever the inputs' dtype."""
    q_BTNH, k_BSKH, v_BSKH = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH))
    (_, _, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    scale = H**-0.5 if scale is None else scale
    out_BTNH = np.empty_like(q_BTNH)
    for b, t, n in np.ndindex(*q_BTNH.shape[:3]):
        first = 0 if segment_start_BT is None else segment_start_BT[b, t]
        seen = slice(first, q_offset + t + 1 if causal else S)
        scores_S = scale * k_BSKH[b, seen, n // (N // K)] @ q_BTNH[b, t, n]
        weights_S = np.exp(scores_S - scores_S.max())
        out_BTNH[b, t, n] = weights_S @ v_BSKH[b, seen, n // (N // K)] / weights_S.sum()
    return out_BTNH
