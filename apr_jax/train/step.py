"""One optimiser step and one evaluation step, as pure functions that know of no devices.

B sequences, T positions, A micro-batches.
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


def train_step(
    state: TrainState,
    batch_ABT: Batch,
    *,
    model: Any,
    optimizer: optax.GradientTransformation,
    z_loss: float = 0.0,
    total: Total = alone,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Update the parameters by the gradient of the mean loss over every target of the batch.

    Args:
      state: before the step.
      batch_ABT: the batch's arrays with a leading axis of micro-batches.
      model: a Flax module, `optimizer`: as made by `make_optimizer`. Both static.
      z_loss: factor of the squared log-normaliser that is minimised beside the loss.
      total: sums over peers that hold other parts of the batch.

    Returns:
      The state after the step, and `loss` (nats per token, before the step), `grad_norm` (global,
      before clipping), `lr` (that this update used), `tokens`, and `leaf_norms`: the gradient's
      norm per parameter in tree order, to name the leaf when one is not finite.
    """
    grads, (loss, tokens) = total(_summed_gradients(model, state.params, batch_ABT, z_loss))
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
    _, nats = model.apply({"params": params}, **batch, method="cross_entropy")
    return total((nats, jnp.sum(batch["weights_BT"])))


def _summed_gradients(
    model: Any, params: Any, batch_ABT: Batch, z_loss: float
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Gradient of the summed loss, the summed loss and the count, over all micro-batches."""

    def of_one(micro_BT: Batch) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            objective, nats = model.apply(
                {"params": params}, **micro_BT, z_loss=z_loss, method="cross_entropy"
            )
            return objective, (nats, jnp.sum(micro_BT["weights_BT"]))

        return jax.grad(objective, has_aux=True)(params)

    if next(iter(batch_ABT.values())).shape[0] == 1:
        return of_one({name: array[0] for name, array in batch_ABT.items()})
    zeros = (jax.tree.map(jnp.zeros_like, params), (jnp.float32(0), jnp.float32(0)))
    return jax.lax.scan(
        lambda sums, micro_BT: (jax.tree.map(jnp.add, sums, of_one(micro_BT)), None),
        zeros,
        dict(batch_ABT),
    )[0]
