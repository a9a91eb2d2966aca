"""What a training run is asked to do. Frozen, and written to the run folder as it ran."""

import dataclasses
from typing import Any, Literal

from apr_jax.errors import UserError

Mode = Literal["finetune", "from_scratch"]


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
    lr: float = 5e-5
    lr_min: float | None = None
    """Rate of the last step; None stands for lr / 100."""
    warmup_steps: int = 0
    weight_decay: float = 0.01
    """Of matrices; norms and biases do not decay."""
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    clip: float = 1.0
    """Largest global norm of the gradient; 0 leaves it as it is."""
    seed: int = 42
    mask_documents: bool = False
    """Attention stays inside a document (split at EOS) when several share a window."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "xla", "cudnn", "pallas"] = "auto"
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
    """The run is OK only when the final held-out loss is at most this; None asks nothing."""
    max_initial_val_loss: float | None = None
    """Refuse to fine-tune a model that starts worse: it is broken, or the ids are not its own."""
    max_first_val_loss: float | None = None
    """Stop when the first evaluation after training began is worse; None: twice the initial."""
    max_overlap: int = 0
    """Held-out documents that may occur in the training shards too."""
    min_val_loss: float | None = 0.3
    """A held-out loss below this means leakage or a degenerate corpus; None asks nothing."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "seq_length", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("lr", "adam_eps"):
            if not getattr(self, name) > 0:
                raise TrainError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("warmup_steps", "weight_decay", "clip", "val_tokens", "max_overlap"):
            if getattr(self, name) < 0:
                raise TrainError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("target_val_loss", "max_initial_val_loss", "max_first_val_loss"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise TrainError(f"{name}={value} must be above 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise TrainError(f"betas {self.beta1}, {self.beta2} must be in [0, 1)")
        if not 0 <= self.last_lr <= self.lr:
            raise TrainError(f"lr_min={self.lr_min} must be between 0 and lr={self.lr}")
        if self.warmup_steps >= self.steps:
            raise TrainError(
                f"warmup_steps={self.warmup_steps} leaves nothing of steps={self.steps}; "
                "ask for more steps or a shorter warm-up"
            )
        if self.batch_size % self.accumulate:
            raise TrainError(
                f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate}"
            )

    @property
    def last_lr(self) -> float:
        """The rate that the schedule ends with."""
        return self.lr / 100 if self.lr_min is None else self.lr_min

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return dataclasses.asdict(self)


def mode_defaults(mode: Mode, steps: int, uniform_loss: float) -> dict[str, Any]:
    """What `mode` decides together: rate, warm-up, target and the caps on the held-out loss.

    Args:
      mode: start from a pretrained model, or from one that knows nothing.
      steps: of the run; a short one warms up for a tenth of them.
      uniform_loss: ln of the number of logits, nats.
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
        "target_val_loss": 3.0,
        "max_initial_val_loss": None,
        "max_first_val_loss": 2 * uniform_loss,
    }
