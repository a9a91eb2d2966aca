"""Attention in plain jax.numpy: the whole score matrix in memory, every step in sight.

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, G query heads per
key-value head (N = K * G), H head size.
"""

import jax
import jax.numpy as jnp


def attention_xla(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_start_BT: jax.Array | None,
    causal: bool,
    q_offset: int | jax.Array,
    scale: float | jax.Array,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `kernels.attention.attention`; the arguments are checked there."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    # float32 inputs are meant: without this, GPUs would multiply them in TF32.
    precision = jax.lax.Precision.HIGHEST if q_BTNH.dtype == jnp.float32 else None
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = scale * jnp.einsum(
        "BTKGH,BSKH->BKGTS",
        q_BTKGH,
        k_BSKH,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    if causal:
        visible_BTS = _visible(T, S, segment_start_BT, q_offset)
        scores_BKGTS = jnp.where(visible_BTS[:, None, None], scores_BKGTS, -jnp.inf)
    # In float32: sums of thousands of exponentials need more than 8 bits.
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH, precision=precision)
    out_BTNH = out_BTKGH.reshape(B, T, N, H)
    if not return_lse:
        return out_BTNH
    lse_BKGT = jax.nn.logsumexp(scores_BKGTS, axis=-1)
    return out_BTNH, lse_BKGT.reshape(B, N, T).swapaxes(1, 2)


def _visible(
    T: int, S: int, segment_start_BT: jax.Array | None, q_offset: int | jax.Array
) -> jax.Array:
    """Whether query t may see key s; the leading axis is 1 without segments."""
    key_11S = jnp.arange(S)[None, None, :]
    query_1T1 = q_offset + jnp.arange(T)[None, :, None]
    visible_BTS = key_11S <= query_1T1
    if segment_start_BT is not None:
        # Whatever the caller says, a query sees the key at its own place.
        visible_BTS &= jnp.minimum(segment_start_BT[:, :, None], query_1T1) <= key_11S
    return visible_BTS
