"""The forward pass against its float64 replay, operator by operator; and what logits tell."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.diagnose.faults import Fault
from apr_jax.files import finite
from apr_jax.model import Qwen2, intermediates, to_tree

# Relative L2 error of a float32 operator that is right stays far under this.
_TOLERANCE = 1e-4


def check_forward(
    config: Qwen2Config,
    named: Mapping[str, Any],
    ids_BT: np.ndarray,
    replayed: Mapping[str, np.ndarray],
) -> tuple[Fault | None, float]:
    """Our float32 forward pass against `replayed` on the same parameters.

    Returns:
      The first operator whose relative L2 error is beyond rounding, and the error of the logits.
    """
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), to_tree(named))
    ours = intermediates(Qwen2(config), params, jnp.asarray(ids_BT))
    errors = {name: relative_error(np.asarray(ours[name]), replayed[name]) for name in replayed}
    for name, error in errors.items():
        if not error < _TOLERANCE:
            says = (
                f"first operator that differs from its float64 replay: relative error {error:.3g}"
            )
            return Fault("FORWARD", name, says), errors["logits"]
    return None, errors["logits"]


def compare_logits(ours_BTV: np.ndarray, reference_BTV: np.ndarray) -> dict[str, float | None]:
    """How two models answer the same ids: `relative_error`, `argmax_agreement`, `kl` (nats).

    None stands for a number that is not finite.
    """
    log_p_BTV, log_q_BTV = _log_softmax(reference_BTV), _log_softmax(ours_BTV)
    same = ours_BTV.argmax(-1) == reference_BTV.argmax(-1)
    kl_BT = (np.exp(log_p_BTV) * (log_p_BTV - log_q_BTV)).sum(-1)
    return {
        "relative_error": finite(relative_error(ours_BTV, reference_BTV)),
        "argmax_agreement": float(same.mean()),
        "kl": finite(float(kl_BT.mean())),
    }


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """L2 norm of the difference over that of the reference."""
    with np.errstate(over="ignore", invalid="ignore"):  # the result says it
        difference = np.linalg.norm((ours.astype(np.float64) - reference).ravel())
        return float(difference / max(float(np.linalg.norm(reference.ravel())), 1e-30))


def _log_softmax(logits_BTV: np.ndarray) -> np.ndarray:
    shifted_BTV = logits_BTV - logits_BTV.max(-1, keepdims=True)
    return shifted_BTV - np.log(np.exp(shifted_BTV).sum(-1, keepdims=True))
