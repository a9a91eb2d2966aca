"""Attention and its gradients in NumPy float64, straight from the definition."""

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


def with_gradients(
    q_BTNH: np.ndarray,
    k_BSKH: np.ndarray,
    v_BSKH: np.ndarray,
    do_BTNH: np.ndarray,
    *,
    segment_start_BT: np.ndarray | None = None,
    causal: bool = True,
    scale: float | None = None,
    dlse_BTN: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """The output, and the gradients of q, k and v where that of the output is `do_BTNH`.

    With `dlse_BTN`, the gradient of the log-sum-exp, this comes after the output.
    """
    q_BTNH, k_BSKH, v_BSKH, do_BTNH = (
        np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH, do_BTNH)
    )
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    scale = H**-0.5 if scale is None else scale
    out_BTNH, dq_BTNH = np.empty_like(q_BTNH), np.empty_like(q_BTNH)
    dk_BSKH, dv_BSKH = np.zeros_like(k_BSKH), np.zeros_like(v_BSKH)
    lse_BTN = np.empty((B, T, N))
    key_S, query_T1 = np.arange(S), np.arange(T)[:, None]
    for b, n in np.ndindex(B, N):
        q_TH, do_TH = q_BTNH[b, :, n], do_BTNH[b, :, n]
        k_SH, v_SH = k_BSKH[b, :, n // (N // K)], v_BSKH[b, :, n // (N // K)]
        seen_TS = (key_S <= query_T1) | (not causal)
        if segment_start_BT is not None:
            seen_TS &= key_S >= np.asarray(segment_start_BT)[b][:, None]
        scores_TS = np.where(seen_TS, scale * q_TH @ k_SH.T, -np.inf)
        lse_BTN[b, :, n] = np.logaddexp.reduce(scores_TS, axis=1)
        weights_TS = np.exp(scores_TS - lse_BTN[b, :, n, None])
        out_BTNH[b, :, n] = weights_TS @ v_SH
        dweights_TS = do_TH @ v_SH.T
        mean_T1 = (weights_TS * dweights_TS).sum(axis=1, keepdims=True)
        if dlse_BTN is not None:
            mean_T1 = mean_T1 - np.asarray(dlse_BTN, np.float64)[b, :, n, None]
        dscores_TS = scale * weights_TS * (dweights_TS - mean_T1)
        dq_BTNH[b, :, n] = dscores_TS @ k_SH
        dk_BSKH[b, :, n // (N // K)] += dscores_TS.T @ q_TH
        dv_BSKH[b, :, n // (N // K)] += weights_TS.T @ do_TH
    lse = () if dlse_BTN is None else (lse_BTN,)
    return out_BTNH, *lse, dq_BTNH, dk_BSKH, dv_BSKH
