"""The public function: refuses what an implementation cannot run, then runs exactly that one.

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, H head size.
"""

import math
import numbers
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention.fused import attention_pallas
from kernels.attention.reference import attention_xla
from kernels.attention.tuning import HEAD_SIZES
from kernels.devices import is_hopper

IMPLEMENTATIONS = ("cudnn", "pallas", "xla")


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_start_BT: jax.Array | None = None,
    causal: bool = True,
    q_offset: int | jax.Array = 0,
    scale: float | jax.Array | None = None,
    impl: str,
) -> jax.Array:
    """Softmax attention with grouped queries: query head n reads key-value head n // (N // K).

    Args:
      q_BTNH, k_BSKH, v_BSKH: float32, bfloat16 or float16, all three alike.
      segment_start_BT: int32. For packed rows: the first key of the query's own document; a later
        one than the query's own place counts as that. Key s is visible to query t iff
        segment_start[t] <= s <= t.
      causal: query t sees no key after its own place.
      q_offset: the place of the first query among the keys, for queries that continue a cache; at
        least 0, and in packed rows such that the last query has a key at its place.
      scale: factor on the scores; None is 1/sqrt(H). An array, traced or not, only by "xla".
      impl: "xla" runs everywhere; "pallas" is fused, on Hopper GPUs in 16 bits, its gradient the
        same bits every time; "cudnn" is fused, on CUDA GPUs in 16 bits, without packed rows. Only
        "xla" has second derivatives.

    Returns:
      BTNH in the dtype of `q_BTNH`. The softmax is in float32.

    Raises:
      ValueError, TypeError: shapes, dtypes or arguments that do not go together.
      NotImplementedError: `impl` cannot run this here. Nothing falls back to another one.
    """
    return _run(
        q_BTNH, k_BSKH, v_BSKH, segment_start_BT, causal, q_offset, scale, impl, return_lse=False
    )


def attention_and_lse(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segment_start_BT: jax.Array | None = None,
    causal: bool = True,
    q_offset: int | jax.Array = 0,
    scale: float | jax.Array | None = None,
    impl: str,
) -> tuple[jax.Array, jax.Array]:
    """As `attention`, and with it the log-sum-exp of each query's scores, in nats: BTN in float32.

    Both have gradients. Not by "cudnn". With it attention over parts of the keys can be joined:
    a part's share is exp(its lse - logaddexp of all).
    """
    return _run(
        q_BTNH, k_BSKH, v_BSKH, segment_start_BT, causal, q_offset, scale, impl, return_lse=True
    )


def _run(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segment_start_BT: jax.Array | None,
    causal: bool,
    q_offset: int | jax.Array,
    scale: float | jax.Array | None,
    impl: str,
    *,
    return_lse: bool,
) -> Any:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    _check_arrays(q_BTNH, k_BSKH, v_BSKH)
    _check_visibility(q_BTNH, k_BSKH, segment_start_BT, causal, q_offset)
    if not (scale is None or isinstance(scale, numbers.Real) or _is_one(scale)):
        raise TypeError(f"scale must be a number or an array of one, not {scale!r}")
    scale = 1 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
    if impl != "xla":
        _check_fused(impl, q_BTNH, segment_start_BT is not None, q_offset, scale, return_lse)
    if impl == "pallas":
        return attention_pallas(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            segment_start_BT=segment_start_BT,
            causal=causal,
            scale=float(scale),
            return_lse=return_lse,
        )
    if impl == "cudnn":
        return jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, scale=float(scale), is_causal=causal, implementation="cudnn"
        )
    return attention_xla(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        segment_start_BT=segment_start_BT,
        causal=causal,
        q_offset=q_offset,
        scale=scale,
        return_lse=return_lse,
    )


def _check_arrays(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> None:
    _check_type(q=q_BTNH, k=k_BSKH, v=v_BSKH)
    shapes = f"q {q_BTNH.shape}, k {k_BSKH.shape}, v {v_BSKH.shape}"
    if not q_BTNH.ndim == k_BSKH.ndim == 4:
        raise ValueError(f"q, k and v need four axes [batch, position, head, channel]: {shapes}")
    if k_BSKH.shape != v_BSKH.shape:
        raise ValueError(f"k and v differ in shape: {shapes}")
    (B, _, N, H), (B_k, _, K, H_k) = q_BTNH.shape, k_BSKH.shape
    if B != B_k or H != H_k:
        raise ValueError(f"q and k differ in batch or head size: {shapes}")
    if not all(q_BTNH.shape) or not all(k_BSKH.shape):
        raise ValueError(f"there is nothing to attend to in an empty array: {shapes}")
    if N % K:
        raise ValueError(f"{N} query heads cannot be grouped over {K} key-value heads: {shapes}")
    dtypes = {str(x.dtype) for x in (q_BTNH, k_BSKH, v_BSKH)}
    if len(dtypes) > 1 or not dtypes <= {"float32", "bfloat16", "float16"}:
        raise TypeError(
            "q, k and v must all be float32, bfloat16 or float16, "
            f"not {q_BTNH.dtype}, {k_BSKH.dtype}, {v_BSKH.dtype}"
        )


def _check_visibility(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    segment_start_BT: jax.Array | None,
    causal: bool,
    q_offset: int | jax.Array,
) -> None:
    is_number = isinstance(q_offset, numbers.Integral)
    if not (is_number or (_is_one(q_offset) and jnp.issubdtype(q_offset.dtype, jnp.integer))):
        raise TypeError(f"q_offset must be an integer or an array of one, not {q_offset!r}")
    if not causal and not _is_zero(q_offset):
        raise ValueError("q_offset places queries under the causal mask: it needs causal=True")
    known = int(q_offset) if is_number or isinstance(q_offset, np.ndarray) else 0
    if known < 0:
        raise ValueError(f"q_offset={q_offset} is before the first key: it must be at least 0")
    if segment_start_BT is None:
        return
    _check_type(segment_start_BT=segment_start_BT)
    if not causal:
        raise ValueError(
            "segment_start_BT needs causal=True: alone it does not end a document, "
            "so queries would see the documents after their own"
        )
    if segment_start_BT.shape != q_BTNH.shape[:2]:
        raise ValueError(
            f"segment_start_BT has shape {segment_start_BT.shape}, "
            f"the queries need {q_BTNH.shape[:2]}"
        )
    if k_BSKH.shape[1] < known + q_BTNH.shape[1]:
        raise ValueError(
            f"segment_start_BT needs a key at the place of each of the {q_BTNH.shape[1]} queries, "
            f"from {known} on, there are {k_BSKH.shape[1]}: a document could have none"
        )
    if segment_start_BT.dtype != jnp.int32:
        raise TypeError(f"segment_start_BT must be int32, not {segment_start_BT.dtype}")


def _check_type(**arrays: Any) -> None:
    for name, array in arrays.items():
        if not isinstance(array, jax.Array | np.ndarray):
            raise TypeError(f"{name} must be an array, not {type(array).__name__}")


def _is_one(x: Any) -> TypeGuard[jax.Array]:
    """Whether `x` is an array of one number; of more, it could fit some axis of the scores."""
    return isinstance(x, jax.Array | np.ndarray) and x.shape == ()


def fastest(dtype: jnp.dtype, head_size: int, *, packed: bool) -> str:
    """The `impl` that is fastest alone on the devices at hand, by bench/results.md."""
    for impl in ("pallas", "cudnn"):
        if unsupported(impl, dtype, head_size, packed=packed) is None:
            return impl
    return "xla"


def unsupported(impl: str, dtype: jnp.dtype, head_size: int, *, packed: bool) -> str | None:
    """Why an implementation cannot run here, as the end of a sentence; None if it can."""
    if impl == "xla":
        return None
    if jax.default_backend() != "gpu":
        return f"needs a CUDA GPU, and JAX computes on {jax.default_backend()!r} here"
    if jnp.dtype(dtype) == jnp.float32:
        return "computes in bfloat16 or float16, not in float32"
    if impl == "cudnn":
        if packed:
            return "has no mask for packed rows: documents would see each other"
        if head_size % 8 or head_size > 256:
            return f"needs a head size that is a multiple of 8 up to 256, not {head_size}"
        return None
    if not is_hopper():
        return f"needs a Hopper GPU (H100, H200), not {jax.devices()[0].device_kind!r}"
    if head_size > HEAD_SIZES[-1]:
        return f"takes head sizes up to {HEAD_SIZES[-1]}, not {head_size}"
    return None


def _check_fused(
    impl: str,
    q_BTNH: jax.Array,
    packed: bool,
    q_offset: int | jax.Array,
    scale: float | jax.Array,
    return_lse: bool,
) -> None:
    obstacle = unsupported(impl, q_BTNH.dtype, q_BTNH.shape[-1], packed=packed)
    if obstacle is None and not _is_zero(q_offset):
        obstacle = "counts queries from the first key, so it cannot continue a cache"
    if obstacle is None and not isinstance(scale, numbers.Real):
        obstacle = "is compiled for its scale, which must be a number and not an array"
    if obstacle is None and impl == "cudnn" and return_lse:
        obstacle = "gives no log-sum-exp that has gradients"
    if obstacle is None and impl == "pallas" and not scale > 0:
        obstacle = f"takes a positive scale, not {scale}"
    if obstacle is not None:
        raise NotImplementedError(f"impl={impl!r} {obstacle}; use impl='xla'")


def _is_zero(q_offset: int | jax.Array) -> bool:
    return isinstance(q_offset, int) and q_offset == 0
