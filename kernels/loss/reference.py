"""Cross-entropy of a linear head in plain jax.numpy: all logits in memory, gradients by JAX.

Letters in shapes: B batch, T position, D model, V vocabulary.
"""

import jax
import jax.numpy as jnp


def linear_cross_entropy_whole(
    x_BTD: jax.Array,
    weight_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    z_loss: float,
) -> tuple[jax.Array, jax.Array]:
    """As `kernels.loss.linear_cross_entropy`, with every weight given."""
    logits_BTV = jnp.einsum(
        "BTD,VD->BTV",
        x_BTD,
        weight_VD.astype(x_BTD.dtype),
        # float32 inputs are meant: without this, GPUs would multiply them in TF32.
        precision=jax.lax.Precision.HIGHEST if x_BTD.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(
        logits_BTV, jnp.maximum(targets_BT, 0)[..., None], axis=-1, mode="fill", fill_value=jnp.nan
    )[..., 0]
    nats_BT = jnp.where(targets_BT >= 0, log_z_BT - target_BT, jnp.nan)
    loss = jnp.sum(weights_BT * (nats_BT + z_loss * jnp.square(log_z_BT)))
    return loss, jax.lax.stop_gradient(nats_BT)
