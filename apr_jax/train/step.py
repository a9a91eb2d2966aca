"""One optimiser step and one evaluation step, as pure functions that know of no devices.

B sequences, T positions, V vocabulary rows, A micro-batches.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from apr_jax.train.optimizer import used_learning_rate

Batch = Mapping[str, jax.Array]
"""`ids_BT`, `targets_BT` (int32), `weights_BT` (float32) and, if documents are masked,
`segment_start_BT` (int32)."""
Total = Callable[[Any], Any]
"""Sums a tree over the data-parallel peers."""


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes. Parameters are float32 masters."""

    step: jax.Array
    params: Any
    opt_state: Any


def alone(tree: Any) -> Any:
    """The `Total` of a program that sees the whole batch."""
    return tree


def loss_sum(model: Any, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy in nats and the number of targets it is summed over, float32."""
    logits_BTV = model.apply(
        {"params": params}, batch["ids_BT"], segment_start_BT=batch.get("segment_start_BT")
    )
    with jax.named_scope("loss"):
        nats_BT = cross_entropy(logits_BTV, batch["targets_BT"])
        return jnp.sum(nats_BT * batch["weights_BT"]), jnp.sum(batch["weights_BT"])


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target in nats, BT in float32."""
    # A sum over a mask, not an index: its gradient is a mask again, where an index's is a scatter
    # into another array as large as the logits.
    is_target_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])[None, None]
    target_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0.0), axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT


def train_step(
    state: TrainState,
    batch_ABT: Batch,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    total: Total = alone,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Update the parameters by the gradient of the mean loss over every target of the batch.

    Args:
      state: before the step.
      batch_ABT: the batch's arrays with a leading axis of micro-batches.
      model: a Flax module, `optimizer`: as made by `make_optimizer`. Both static.
      total: sums over peers that hold other parts of the batch.

    Returns:
      The state after the step, and `loss` (nats per token, before the step), `grad_norm` (global,
      before clipping), `lr` (that this update used), `tokens`, and `leaf_norms`: the gradient's
      norm per parameter in tree order, to name the leaf when one is not finite.
    """
    grads, (loss, tokens) = total(_summed_gradients(model, state.params, batch_ABT))
    # One division by the global count: a mean of per-device or per-micro-batch means would weigh
    # the tokens of short parts more.
    count = jnp.maximum(tokens, 1.0)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    with jax.named_scope("optimizer"):
        leaf_norms = jnp.stack([jnp.linalg.norm(g.ravel()) for g in jax.tree.leaves(grads)])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    metrics = {
        "loss": loss / count,
        "grad_norm": jnp.linalg.norm(leaf_norms),
        "lr": used_learning_rate(opt_state),
        "tokens": tokens,
        "leaf_norms": leaf_norms,
    }
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics


def eval_step(
    params: Any, batch: Batch, *, model: Any, total: Total = alone
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy in nats over the batch, and its number of targets."""
    return total(loss_sum(model, params, batch))


def _summed_gradients(
    model: Any, params: Any, batch_ABT: Batch
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Gradient of the summed loss, the summed loss and the count, over all micro-batches."""

    def of_one(micro_BT: Batch) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            loss, tokens = loss_sum(model, params, micro_BT)
            return loss, (loss, tokens)

        return jax.grad(objective, has_aux=True)(params)

    if next(iter(batch_ABT.values())).shape[0] == 1:
        return of_one({name: array[0] for name, array in batch_ABT.items()})
    zeros = (jax.tree.map(jnp.zeros_like, params), (jnp.float32(0), jnp.float32(0)))
    return jax.lax.scan(
        lambda sums, micro_BT: (jax.tree.map(jnp.add, sums, of_one(micro_BT)), None),
        zeros,
        dict(batch_ABT),
    )[0]
