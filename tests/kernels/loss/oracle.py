"""Cross-entropy of a linear head in NumPy float64, token by token, and its gradients."""

import numpy as np


def linear_cross_entropy(
    x_BTD: np.ndarray,
    weight_VD: np.ndarray,
    targets_BT: np.ndarray,
    weights_BT: np.ndarray | None = None,
    *,
    ignore_index: int | None = None,
    z_loss: float = 0.0,
) -> dict[str, np.ndarray]:
    """`loss` and `nats` as `kernels.loss.linear_cross_entropy`, and the loss's gradient by each
    of its floating arguments, under that argument's name."""
    x_BTD, weight_VD = np.asarray(x_BTD, np.float64), np.asarray(weight_VD, np.float64)
    if weights_BT is None:
        weights_BT = np.ones(targets_BT.shape)
    found = {
        "loss": np.float64(0),
        "nats": np.zeros(targets_BT.shape),
        "x_BTD": np.zeros_like(x_BTD),
        "weight_VD": np.zeros_like(weight_VD),
        "weights_BT": np.zeros(targets_BT.shape),
    }
    for b, t in np.ndindex(*targets_BT.shape):
        target, weight = targets_BT[b, t], np.float64(weights_BT[b, t])
        if target == ignore_index:
            continue
        logits_V = weight_VD @ x_BTD[b, t]
        log_z = logits_V.max() + np.log(np.exp(logits_V - logits_V.max()).sum())
        nats = log_z - logits_V[target]
        grad_V = (1 + 2 * z_loss * log_z) * np.exp(logits_V - log_z)
        grad_V[target] -= 1
        found["nats"][b, t] = nats
        found["weights_BT"][b, t] = nats + z_loss * log_z**2
        found["loss"] += weight * (nats + z_loss * log_z**2)
        found["x_BTD"][b, t] = weight * grad_V @ weight_VD
        found["weight_VD"] += weight * np.outer(grad_V, x_BTD[b, t])
    return found
