"""What a training run is asked to do. Frozen, and written to the run folder as it ran."""

import dataclasses
import math
from typing import Any, Literal

from apr_jax.errors import UserError

Mode = Literal["finetune", "from_scratch"]
_THRESHOLDS = ("target_val_loss", "max_initial_val_loss", "max_first_val_loss")


class TrainError(UserError):
    """A run that cannot start or cannot go on: settings, data or devices do not fit."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of one run. Paths are text so that the whole is JSON.

    Losses are nats per token. Counts of tokens count targets, not padding.
    """

    init: str
    shards: str
    val_shards: str
    out: str
    steps: int
    mode: Mode = "finetune"
    batch_size: int = 16
    """Sequences of one optimiser step, over all devices and micro-batches."""
    accumulate: int = 1
    """Micro-batches that one step's batch is cut into, to save memory; the loss is the same."""
    seq_length: int = 1024
    lr: float | None = None
    """Peak; None takes the mode's."""
    lr_min: float | None = None
    """Of the last step; None is a hundredth of `lr`."""
    warmup_steps: int | None = None
    """Of rising rate; None takes the mode's."""
    weight_decay: float = 0.01
    """Of matrices; norms and biases do not decay."""
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    clip: float = 1.0
    """Largest global norm of the gradient; 0 leaves it as it is."""
    z_loss: float = 0.0
    """Factor of the squared log-normaliser that is minimised beside the loss; 0: none. Logged
    losses are without it."""
    seed: int = 42
    mask_documents: bool = False
    """Attention stays inside a document (split at EOS) when several share a window."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "xla", "cudnn", "pallas"] = "auto"
    loss_impl: Literal["auto", "xla", "pallas"] = "auto"
    remat: bool = False
    parallel: Literal["pmap", "jit"] = "pmap"
    save_dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Of the model file that is written; "keep" gives each tensor the dtype it came in."""
    eval_every: int = 100
    val_tokens: int = 131_072
    """Held-out tokens per evaluation, from the start of the held-out stream; 0 takes all."""
    save_every: int = 100
    """Steps between checkpoints to resume from."""
    target_val_loss: float | None = None
    """The run is OK only when the final held-out loss is at most this; 0 asks nothing, None takes
    the mode's."""
    max_initial_val_loss: float | None = None
    """Refuse a model that starts worse: it is broken, or the ids are not its own; 0 asks nothing,
    None takes the mode's."""
    max_first_val_loss: float | None = None
    """Stop when the first evaluation after training began is worse; 0 allows twice the initial,
    None takes the mode's."""
    max_overlap: int = 0
    """Held-out documents that may occur in the training shards too."""
    min_val_loss: float = 0.3
    """A held-out loss below this means leakage or a degenerate corpus; 0 asks nothing."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "seq_length", "eval_every", "save_every"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in (
            "weight_decay",
            "clip",
            "z_loss",
            "seed",
            "val_tokens",
            "max_overlap",
            "min_val_loss",
        ):
            self._require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("warmup_steps", *_THRESHOLDS):
            value = getattr(self, name)
            self._require(name, value is None or value >= 0, "must not be negative")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float):
                self._require(field.name, math.isfinite(value), "must be a finite number")
        self._require("adam_eps", self.adam_eps > 0, "must be above 0")
        self._require("lr", self.lr is None or self.lr > 0, "must be above 0")
        if self.lr is not None and self.lr_min is not None:
            self._require("lr_min", 0 <= self.lr_min <= self.lr, f"must be in 0 to lr={self.lr}")
        for name in ("beta1", "beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "must be in 0 to 1, 1 excluded")
        if self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise TrainError(
                f"warmup_steps={self.warmup_steps} leaves nothing of steps={self.steps}; "
                "ask for more steps or a shorter warm-up"
            )
        if self.batch_size % self.accumulate:
            raise TrainError(
                f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate}"
            )

    def resolved(self, uniform_loss: float) -> "TrainConfig":
        """These settings with what the mode decides filled in.

        Args:
          uniform_loss: ln of the number of logits, nats.
        """
        decided = _mode_defaults(self.mode, self.steps, uniform_loss)
        missing = {name: value for name, value in decided.items() if getattr(self, name) is None}
        config = dataclasses.replace(self, **missing)
        if config.lr_min is None:
            config = dataclasses.replace(config, lr_min=config.lr / 100 if config.lr else None)
        return config

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return dataclasses.asdict(self)

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise TrainError(f"{name}={getattr(self, name)} {what}")


def _mode_defaults(mode: Mode, steps: int, uniform_loss: float) -> dict[str, Any]:
    """Rate, warm-up, target and the caps on the held-out loss. A short run warms up for a tenth.

    From scratch there is no target: what a loss is worth depends on the tokenizer.
    """
    if mode == "finetune":
        return {
            "lr": 5e-5,
            "warmup_steps": min(100, steps // 10),
            "target_val_loss": 2.2,
            "max_initial_val_loss": 4.0,
            "max_first_val_loss": 10.0,
        }
    return {
        "lr": 3e-4,
        "warmup_steps": min(1000, steps // 10),
        "target_val_loss": 0.0,
        "max_initial_val_loss": 0.0,
        "max_first_val_loss": 2 * uniform_loss,
    }
