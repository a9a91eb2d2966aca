"""Cross-entropy of a linear head, some tokens at a time, its gradients along with it.

Let l = x @ W.T be a token's logits, z = log(sum(exp(l))) and y its target. Its nats are z - l[y],
and the gradient of weight * (nats + z_loss * z²) with respect to l is

    weight * ((1 + 2 * z_loss * z) * exp(l - z) - onehot(y)).

z is known only when all of l is, exp(l - shift) for some shift as soon as l is. So each chunk of
tokens goes through the head once: exponentials e = exp(l - shift), but 0 at the target, and z; and
with the factor f = weight * (1 + 2 * z_loss * z) * exp(shift - z) of a token, the gradients

    dx = f * (e @ W) + g * W[y],  dW = e.T @ (f * x) + g * x at row y.

g, the gradient at the target's logit, stays out of the products, in float32, where 16 bits would
round 1 - exp(-nats) of a likely target to 0. It is weight * (2 * z_loss * z * exp(l[y] - z) - r),
with r = 1 - exp(l[y] - z) from the sum of e: a difference would have few digits left. So would
the nats, which are log(1 + exp(o - l[y])) with the log-normaliser o of the other logits.

The shift is the target's logit, which is cheap to know before. Should it be so far below z that e
could overflow, which takes nats that no sound model has, everything is done again with a shift
close to the log-normaliser of the other logits. The backward pass has nothing left but to multiply
by the factor of the sum.

Letters in shapes: M tokens, N chunks, C tokens of a chunk, D model, V vocabulary.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.devices import alike
from kernels.loss.exponentials import exponentials, log_normalisers
from kernels.loss.partition import partitioned_gradients, partitioned_scores

_FURTHEST = 60.0  # nats between shift and z: e^60 times any sum of ours is far below 3e38
_SMALLEST = 1e-3  # share of others than the target that a safe shift takes for what it is


class Found(NamedTuple):
    """Of every token, and of the head's rows."""

    log_z_M: jax.Array
    nats_M: jax.Array
    """Of some row if the target is none."""
    grad_MD: jax.Array
    grad_VD: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def chunked_cross_entropy(
    x_MD: jax.Array,
    weight_VD: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
    z_loss: float,
    chunk_size: int,
    impl: str,
) -> tuple[jax.Array, jax.Array]:
    """The weighted sum over tokens, which has gradients, and each token's nats, which have none."""
    score = partitioned_scores(functools.partial(_scores, chunk_size, impl))
    log_z_M, nats_M = score(x_MD, weight_VD.astype(x_MD.dtype), targets_M)
    nats_M = jnp.where(_is_row(targets_M, len(weight_VD)), nats_M, jnp.nan)
    return _weighted(weights_M, _objective(log_z_M, nats_M, z_loss)), nats_M


def _forward(
    x_MD: jax.Array,
    weight_VD: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
    z_loss: float,
    chunk_size: int,
    impl: str,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    differentiate = partitioned_gradients(functools.partial(_safely, z_loss, chunk_size, impl))
    head_VD = weight_VD.astype(x_MD.dtype)
    found = Found(*differentiate(x_MD, head_VD, targets_M, weights_M))
    nats_M = jnp.where(_is_row(targets_M, len(weight_VD)), found.nats_M, jnp.nan)
    objective_M = _objective(found.log_z_M, nats_M, z_loss)
    # The rows' gradient stays in float32 until it is multiplied: a sum may not fit in 16 bits.
    dtype = jnp.zeros((), weight_VD.dtype)
    saved = found.grad_MD, found.grad_VD, objective_M, dtype
    return (_weighted(weights_M, objective_M), nats_M), saved


def _backward(
    z_loss: float, chunk_size: int, impl: str, saved: Any, factors: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, jax.Array]:
    grad_MD, grad_VD, grad_M, dtype = saved
    factor, _ = factors
    return (
        (factor * grad_MD).astype(grad_MD.dtype),
        (factor * grad_VD).astype(dtype.dtype),
        None,
        factor * grad_M,
    )


chunked_cross_entropy.defvjp(_forward, _backward)


def _scores(
    chunk_size: int, impl: str, x_MD: jax.Array, head_VD: jax.Array, targets_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`log_z_M` and `nats_M` of `Found`."""

    def of_chunk(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x_CD, targets_C = chunk
        rows_C = _rows(targets_C, len(head_VD))
        log_rest_C = _LOG_REST[impl](x_CD, head_VD, rows_C)
        target_C, _ = _target_logits(x_CD, head_VD, rows_C)
        return jnp.logaddexp(log_rest_C, target_C), _nats(log_rest_C - target_C)

    found = jax.lax.map(of_chunk, _cut(chunk_size, x_MD, targets_M))
    log_z_M, nats_M = _glue(len(x_MD), *found)
    return log_z_M, nats_M


def _safely(
    z_loss: float,
    chunk_size: int,
    impl: str,
    x_MD: jax.Array,
    head_VD: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
) -> Found:
    # In a product, weight 0 times what is not finite would be NaN for all.
    is_void_M = (weights_M == 0) & ~jnp.all(jnp.isfinite(x_MD), axis=-1)
    x_MD = jnp.where(is_void_M[:, None], 0, x_MD)
    attempt = functools.partial(
        _gradients, z_loss, chunk_size, impl, x_MD, head_VD, targets_M, weights_M
    )
    found = attempt(safe=x_MD.dtype == jnp.float16)  # its largest number is 11 nats away
    if x_MD.dtype != jnp.float16:
        too_far = jnp.any(found.nats_M > _FURTHEST)
        # A loop of at most one turn: unlike a branch, it leaves arrays where they are.
        _, found = jax.lax.while_loop(
            lambda carry: carry[0],
            lambda carry: (~carry[0], attempt(safe=True)),
            (too_far, found),
        )
    return found._replace(nats_M=jnp.where(is_void_M, jnp.nan, found.nats_M))


def _gradients(
    z_loss: float,
    chunk_size: int,
    impl: str,
    x_MD: jax.Array,
    head_VD: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
    *,
    safe: bool,
) -> Found:
    """Everything in one pass; `safe` takes another one before, for the shift."""
    product = functools.partial(
        jnp.einsum, precision=_precision(x_MD), preferred_element_type=jnp.float32
    )

    def of_chunk(grad_VD: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        x_CD, targets_C, weights_C = chunk
        rows_C = _rows(targets_C, len(head_VD))
        target_C, target_CD = _target_logits(x_CD, head_VD, rows_C)
        shift_C = target_C
        if safe:
            shift_C = _safe_shift(_LOG_REST[impl](x_CD, head_VD, rows_C), target_C)
        power_C = jnp.exp(target_C - shift_C)
        powers_CV, rest_C = _POWERS[impl](x_CD, head_VD, shift_C, rows_C)
        sum_C = rest_C + power_C
        log_z_C = shift_C + jnp.log(sum_C)
        nats_C = _nats(jnp.log(rest_C) + (shift_C - target_C))
        of_log_z_C = 2 * z_loss * log_z_C
        factor_C = weights_C * (1 + of_log_z_C) / sum_C
        at_target_C = weights_C * (of_log_z_C * power_C - rest_C) / sum_C
        grad_CD = factor_C[:, None] * product("CV,VD->CD", powers_CV, head_VD)
        grad_CD += at_target_C[:, None] * target_CD
        scaled_CD = (factor_C[:, None] * x_CD).astype(x_CD.dtype)
        # Summed over chunks in float32, in the loop's own buffer.
        grad_VD += product("CV,CD->VD", powers_CV, scaled_CD)
        return grad_VD, (log_z_C, nats_C, at_target_C, grad_CD.astype(x_CD.dtype))

    zeros_VD, x_MD = alike(jnp.zeros(head_VD.shape, jnp.float32), x_MD)
    chunks = _cut(chunk_size, x_MD, targets_M, weights_M)
    grad_VD, found = jax.lax.scan(of_chunk, zeros_VD, chunks)
    log_z_M, nats_M, at_target_M, grad_MD = _glue(len(x_MD), *found)
    # A target that is no row is left out here, and shows as NaN in the loss.
    row_M = jnp.where(_is_row(targets_M, len(head_VD)), targets_M, len(head_VD))
    grad_VD = grad_VD.at[row_M].add(at_target_M[:, None] * x_MD.astype(jnp.float32), mode="drop")
    return Found(log_z_M, nats_M, grad_MD, grad_VD)


def _safe_shift(log_rest_C: jax.Array, target_C: jax.Array) -> jax.Array:
    """The log of the sum of all exponentials but the target's, so that 16 bits hold them: where
    the target has almost all of z, they are too small beside it for float16."""
    log_z_C = jnp.logaddexp(log_rest_C, target_C)
    return jnp.maximum(log_rest_C, log_z_C + math.log(_SMALLEST))


def _target_logits(
    x_CD: jax.Array, head_VD: jax.Array, rows_C: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """In float32: nats subtract large ones, almost equal. And the targets' rows."""
    target_CD = jnp.take(head_VD, rows_C, axis=0, mode="clip").astype(jnp.float32)
    return jnp.sum(x_CD.astype(jnp.float32) * target_CD, axis=-1), target_CD


def _nats(log_odds_C: jax.Array) -> jax.Array:
    """z - l[y], from how far the log-normaliser of all other logits is above l[y]: z itself would
    leave nothing of the nats of a likely target but rounding."""
    return jax.nn.softplus(log_odds_C)


def _log_rest_by_logits(x_CD: jax.Array, head_VD: jax.Array, targets_C: jax.Array) -> jax.Array:
    logits_CV = _logits(x_CD, head_VD)
    return jax.nn.logsumexp(jnp.where(_is_target(targets_C, logits_CV), -jnp.inf, logits_CV), -1)


def _powers_by_logits(
    x_CD: jax.Array, head_VD: jax.Array, shift_C: jax.Array, targets_C: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `exponentials`, in one pass over the logits: no maximum is looked for before."""
    powers_CV = jnp.exp(_logits(x_CD, head_VD) - shift_C[:, None])
    powers_CV = jnp.where(_is_target(targets_C, powers_CV), 0, powers_CV)
    return powers_CV.astype(x_CD.dtype), jnp.sum(powers_CV, axis=-1)


def _is_target(targets_C: jax.Array, logits_CV: jax.Array) -> jax.Array:
    return targets_C[:, None] == jnp.arange(logits_CV.shape[1])[None]


def _logits(x_CD: jax.Array, head_VD: jax.Array) -> jax.Array:
    return jnp.einsum(
        "CD,VD->CV",
        x_CD,
        head_VD,
        precision=_precision(x_CD),
        preferred_element_type=jnp.float32,
    )


_LOG_REST = {"pallas": log_normalisers, "xla": _log_rest_by_logits}
_POWERS = {"pallas": exponentials, "xla": _powers_by_logits}


def _is_row(targets_M: jax.Array, num_rows: int) -> jax.Array:
    return (targets_M >= 0) & (targets_M < num_rows)


def _rows(targets_C: jax.Array, num_rows: int) -> jax.Array:
    """Some row for a target that is none."""
    return jnp.clip(targets_C, 0, num_rows - 1)


def _objective(log_z_M: jax.Array, nats_M: jax.Array, z_loss: float) -> jax.Array:
    return nats_M + z_loss * jnp.square(log_z_M) if z_loss else nats_M


def _weighted(weights_M: jax.Array, objective_M: jax.Array) -> jax.Array:
    """What has weight 0 is not in the sum, whatever it is."""
    return jnp.sum(jnp.where(weights_M == 0, 0.0, weights_M * objective_M))


def _cut(chunk_size: int, *arrays_M: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays NC..., the last chunk filled up with zeros."""
    num_chunks = -(-len(arrays_M[0]) // chunk_size)

    def cut(array_M: jax.Array) -> jax.Array:
        missing = num_chunks * chunk_size - len(array_M)
        padded_M = jnp.pad(array_M, ((0, missing), *[(0, 0)] * (array_M.ndim - 1)))
        return padded_M.reshape(num_chunks, chunk_size, *array_M.shape[1:])

    return tuple(map(cut, arrays_M))


def _glue(num_tokens: int, *arrays_NC: jax.Array) -> tuple[jax.Array, ...]:
    """What `_cut` was given."""
    return tuple(array_NC.reshape(-1, *array_NC.shape[2:])[:num_tokens] for array_NC in arrays_NC)


def _precision(x: jax.Array) -> jax.lax.Precision | None:
    """float32 is meant when asked for: by default GPUs would multiply it in TF32."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
