"""Cross-entropy of a linear head, some tokens at a time, its gradients along with it.

Let l = x @ W.T be a token's logits, z = log(sum(exp(l))) and y its target. Its nats are z - l[y],
and the gradient of weight * (nats + z_loss * z²) with respect to l is

    weight * ((1 + 2 * z_loss * z) * exp(l - z) - onehot(y)).

All of that is known as soon as l is, but for the one factor that the sum is multiplied by later.
So each chunk of tokens goes through the head once: logits, loss, their gradient, and that
gradient's products with W and x. The backward pass has nothing left but to multiply by the factor.

Letters in shapes: M tokens, N chunks, C tokens of a chunk, D model, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.loss.tile_softmax import COLUMNS, tile_softmax


class Scores(NamedTuple):
    """What the head says of a chunk of tokens."""

    log_z_C: jax.Array
    target_C: jax.Array
    """Logit of the target, or of some row if the target is none."""
    gradient: Callable[[jax.Array, jax.Array], jax.Array]
    """From a factor C and weights C to factor * softmax - weight * onehot(target), CV in the
    compute dtype, as every other factor of a matrix product: in float32 it would be a slow one."""


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
    head_VD = weight_VD.astype(x_MD.dtype)

    def of_chunk(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x_CD, targets_C = chunk
        scores = _SCORES[impl](x_CD, head_VD, targets_C, probabilities=False)
        return scores.log_z_C, _nats(scores, targets_C, len(head_VD))

    log_z_NC, nats_NC = jax.lax.map(of_chunk, _cut(chunk_size, x_MD, targets_M))
    log_z_M, nats_M = _glue(len(x_MD), log_z_NC, nats_NC)
    return jnp.sum(weights_M * _objective(log_z_M, nats_M, z_loss)), nats_M


def _forward(
    x_MD: jax.Array,
    weight_VD: jax.Array,
    targets_M: jax.Array,
    weights_M: jax.Array,
    z_loss: float,
    chunk_size: int,
    impl: str,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    head_VD, precision = weight_VD.astype(x_MD.dtype), _precision(x_MD)

    def of_chunk(grad_VD: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        x_CD, targets_C, weights_C = chunk
        scores = _SCORES[impl](x_CD, head_VD, targets_C, probabilities=True)
        log_z_C, nats_C = scores.log_z_C, _nats(scores, targets_C, len(head_VD))
        grad_CV = scores.gradient(weights_C * (1 + 2 * z_loss * log_z_C), weights_C)
        grad_CD = jnp.einsum("CV,VD->CD", grad_CV, head_VD, precision=precision)
        # Summed over chunks in float32, in the loop's own buffer.
        grad_VD += jnp.einsum(
            "CV,CD->VD", grad_CV, x_CD, precision=precision, preferred_element_type=jnp.float32
        )
        return grad_VD, (log_z_C, nats_C, grad_CD)

    grad_VD, found = jax.lax.scan(
        of_chunk,
        jnp.zeros(weight_VD.shape, jnp.float32),
        _cut(chunk_size, x_MD, targets_M, weights_M),
    )
    log_z_M, nats_M, grad_MD = _glue(len(x_MD), *found)
    objective_M = _objective(log_z_M, nats_M, z_loss)
    saved = grad_MD, grad_VD.astype(weight_VD.dtype), objective_M
    return (jnp.sum(weights_M * objective_M), nats_M), saved


def _backward(
    z_loss: float, chunk_size: int, impl: str, saved: Any, factors: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, jax.Array]:
    factor, _ = factors
    grad_MD, grad_VD, grad_M = ((factor * grad).astype(grad.dtype) for grad in saved)
    return grad_MD, grad_VD, None, grad_M


chunked_cross_entropy.defvjp(_forward, _backward)


def _by_logits(
    x_CD: jax.Array, head_VD: jax.Array, targets_C: jax.Array, *, probabilities: bool
) -> Scores:
    """Through all of the chunk's logits in float32: nats subtract large ones, almost equal."""
    logits_CV = jnp.einsum(
        "CD,VD->CV",
        x_CD,
        head_VD,
        precision=_precision(x_CD),
        preferred_element_type=jnp.float32,
    )
    log_z_C = jax.nn.logsumexp(logits_CV, axis=-1)
    target_C = jnp.take_along_axis(logits_CV, targets_C[:, None], axis=-1, mode="clip")[:, 0]

    def gradient(factor_C: jax.Array, weights_C: jax.Array) -> jax.Array:
        softmax_CV = factor_C[:, None] * jnp.exp(logits_CV - log_z_C[:, None])
        return _less_target(softmax_CV, targets_C, weights_C).astype(x_CD.dtype)

    return Scores(log_z_C, target_C, gradient)


def _by_tiles(
    x_CD: jax.Array, head_VD: jax.Array, targets_C: jax.Array, *, probabilities: bool
) -> Scores:
    """Through softmaxes of 128 logits each. R counts them along the vocabulary."""
    tiles_CV, log_z_RC = tile_softmax(x_CD, head_VD, probabilities=probabilities)
    log_z_C = jax.nn.logsumexp(log_z_RC, axis=0)
    target_CD = jnp.take(head_VD, targets_C, axis=0, mode="clip").astype(jnp.float32)
    target_C = jnp.sum(x_CD.astype(jnp.float32) * target_CD, axis=-1)

    def gradient(factor_C: jax.Array, weights_C: jax.Array) -> jax.Array:
        factor_CR = (factor_C[None] * jnp.exp(log_z_RC - log_z_C[None])).T
        size = len(x_CD) // 2

        def of_half(half: jax.Array, grad_CV: jax.Array) -> jax.Array:
            start = half * size
            take = functools.partial(
                jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size
            )
            softmax_CV = jnp.repeat(take(factor_CR), COLUMNS, axis=1) * take(grad_CV)
            half_CV = _less_target(softmax_CV, take(targets_C), take(weights_C))
            half_CV = half_CV.astype(grad_CV.dtype)
            return jax.lax.dynamic_update_slice_in_dim(grad_CV, half_CV, start, axis=0)

        # By halves, because XLA writes a part of an array in place, but a whole one anew.
        return jax.lax.fori_loop(0, 2, of_half, tiles_CV)

    return Scores(log_z_C, target_C, gradient)


def _less_target(softmax_CV: jax.Array, targets_C: jax.Array, weights_C: jax.Array) -> jax.Array:
    is_target_CV = targets_C[:, None] == jnp.arange(softmax_CV.shape[1])[None]
    return softmax_CV - weights_C[:, None] * is_target_CV


_SCORES = {"pallas": _by_tiles, "xla": _by_logits}


def _nats(scores: Scores, targets_C: jax.Array, num_rows: int) -> jax.Array:
    """NaN for a target that is no row of the head."""
    is_row_C = (targets_C >= 0) & (targets_C < num_rows)
    return jnp.where(is_row_C, scores.log_z_C - scores.target_C, jnp.nan)


def _objective(log_z_M: jax.Array, nats_M: jax.Array, z_loss: float) -> jax.Array:
    return nats_M + z_loss * jnp.square(log_z_M) if z_loss else nats_M


def _cut(chunk_size: int, *arrays_M: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays NC..., the last chunk filled up with zeros. Chunk n has tokens n, n + N, n + 2N, ...:
    tokens that are sharded over devices stay sharded in every chunk."""
    num_chunks = -(-len(arrays_M[0]) // chunk_size)

    def cut(array_M: jax.Array) -> jax.Array:
        missing = num_chunks * chunk_size - len(array_M)
        padded_M = jnp.pad(array_M, ((0, missing), *[(0, 0)] * (array_M.ndim - 1)))
        return jnp.swapaxes(padded_M.reshape(chunk_size, num_chunks, *array_M.shape[1:]), 0, 1)

    return tuple(map(cut, arrays_M))


def _glue(num_tokens: int, *arrays_NC: jax.Array) -> tuple[jax.Array, ...]:
    """What `_cut` was given."""
    return tuple(
        jnp.swapaxes(array_NC, 0, 1).reshape(-1, *array_NC.shape[2:])[:num_tokens]
        for array_NC in arrays_NC
    )


def _precision(x: jax.Array) -> jax.lax.Precision | None:
    """float32 is meant when asked for: by default GPUs would multiply it in TF32."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
