"""Gates: questions with a number, a threshold and an answer, all three in the report.

A gate that was not asked is not in the list; the report says which and why.
"""

import dataclasses
import math
from typing import Any

from apr_jax.files import finite
from apr_jax.train.config import TrainConfig

_RELOAD_TOLERANCE = 0.01
_HEALTHY = 2.5


@dataclasses.dataclass(frozen=True)
class Gate:
    """One answer. None stands for a number that is not finite."""

    id: str
    passed: bool
    value: float | None
    threshold: float | None
    says: str

    def to_json(self) -> dict[str, Any]:
        """The gate as plain values."""
        return dataclasses.asdict(self)


def held_out(documents: int, config: TrainConfig) -> Gate:
    """No held-out document is trained on."""
    return _at_most(
        "HELD-OUT", documents, config.max_overlap, "held-out documents found in the training shards"
    )


def initial_loss(loss: float, cap: float) -> Gate:
    """A pretrained model knows its own language before the first step."""
    return _at_most("INIT-VAL-LOSS", loss, cap, "held-out loss before the first step")


def first_loss(loss: float, cap: float) -> Gate:
    """The first evaluation after training began is not lost."""
    return _at_most("GATE-TRAIN-005", loss, cap, "held-out loss at the first evaluation")


def no_divergence(loss: float, before: float) -> Gate:
    """The held-out loss has not doubled since the evaluation before."""
    return _at_most(
        "GATE-TRAIN-005", loss, 2 * before, "held-out loss, against twice the one before"
    )


def all_finite(bad_values: int) -> Gate:
    """Every loss and gradient was a number."""
    return _at_most("GATE-TRAIN-007", bad_values, 0, "losses or gradients that are not finite")


def target(loss: float, wanted: float) -> Gate:
    """The final held-out loss is what was asked for."""
    return _at_most("GATE-TRAIN-003", loss, wanted, "final held-out loss")


def improved(loss: float, initial: float) -> Gate:
    """Training made the held-out loss smaller."""
    return dataclasses.replace(
        _at_most("GATE-TRAIN-004", loss, initial, "final held-out loss, against the initial one"),
        passed=loss < initial,
    )


def floor(loss: float, least: float) -> Gate:
    """The held-out loss is not too good to be true."""
    gate = _at_most(
        "VAL-LOSS-FLOOR", loss, least, "final held-out loss; below: leakage or a degenerate corpus"
    )
    return dataclasses.replace(gate, passed=loss >= least)


def below_uniform(loss: float, uniform: float) -> Gate:
    """The model knows more than nothing."""
    gate = _at_most("BELOW-UNIFORM", loss, uniform, "held-out loss, against a uniform guess")
    return dataclasses.replace(gate, passed=loss < uniform)


def reload(reloaded: float, reported: float) -> Gate:
    """The model file that was written scores what the trainer reported."""
    return _at_most(
        "RELOAD",
        abs(reloaded - reported),
        _RELOAD_TOLERANCE,
        "written file's loss minus the trainer's",
    )


def likely_cause(loss: float, uniform: float) -> str | None:
    """What the loss of an untouched pretrained model most likely means, if not healthy."""
    if loss <= _HEALTHY:
        return None
    if not math.isfinite(loss):
        cause = "logits that overflow, or a mislabelled dtype"
    elif loss > uniform + 1:
        cause = "scrambled weights or a wrong layout (worse than knowing nothing)"
    elif loss > uniform - 1:
        cause = "flat logits: a zeroed head or norm"
    elif loss > 4:
        cause = (
            "a forward defect such as RoPE pairing or missing biases, or ids of another tokenizer"
        )
    else:
        cause = "text unlike what the model was trained on, or a wrong eps or rope_theta"
    return f"held-out loss is {loss:.3f} nats, a uniform guess has {uniform:.3f}: likely {cause}"


def _at_most(gate_id: str, value: float, threshold: float, says: str) -> Gate:
    return Gate(gate_id, bool(value <= threshold), finite(value), finite(threshold), says)
