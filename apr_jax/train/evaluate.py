"""Held-out loss: nats per token, and bits per byte, over the same tokens."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.files import finite
from apr_jax.model import load_model
from apr_jax.text.batches import Shards
from apr_jax.train.data import EvalBatches
from apr_jax.train.parallel import DataParallel
from apr_jax.train.step import eval_step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model scores on held-out text."""

    loss: float
    """Nats per token."""
    tokens: int
    """Targets that the loss is the mean of."""
    text_bytes: int | None
    """UTF-8 bytes that those targets stand for; None when the shards do not say."""

    @property
    def bits_per_byte(self) -> float | None:
        """The same loss per byte of text, which compares across tokenizers."""
        if not self.text_bytes:
            return None
        return finite(self.loss * self.tokens / math.log(2) / self.text_bytes)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self)


class Evaluator:
    """Evaluates parameters of one model on one held-out set, compiled once."""

    def __init__(
        self, model: Any, shards: Shards, batches: EvalBatches, parallel: DataParallel
    ) -> None:
        self._batches, self._parallel = batches, parallel
        self._step: Callable[..., Any] = parallel.compile(
            functools.partial(eval_step, model=model), donate=False
        )
        self._token_bytes = shards.token_bytes

    def __call__(self, params: Any) -> Evaluation:
        """Score `params`, as placed by `DataParallel.replicate`."""
        nats, tokens, text_bytes = 0.0, 0.0, 0
        for index in range(len(self._batches)):
            batch = self._batches[index]
            batch_nats, batch_tokens = self._step(params, self._parallel.split(batch))
            # float64 on the host: a float32 running sum of millions of tokens loses digits.
            nats, tokens = nats + float(batch_nats), tokens + float(batch_tokens)
            if self._token_bytes is not None:
                targets = batch["targets_BT"][batch["weights_BT"] > 0]
                text_bytes += int(self._token_bytes[targets].sum(dtype=np.int64))
        return Evaluation(
            loss=nats / tokens,
            tokens=round(tokens),
            text_bytes=text_bytes if self._token_bytes is not None else None,
        )


def evaluate_file(
    path: str | os.PathLike[str],
    shards: Shards,
    batches: EvalBatches,
    parallel: DataParallel,
    **model_options: Any,
) -> tuple[Evaluation, Qwen2Config]:
    """Load a model file and score it. `model_options` are those of `load_model`.

    Raises:
      UserError: the model cannot be loaded, or the shards hold ids that it has no rows for.
    """
    model, params = load_model(path, **model_options)
    shards.check_ids(model.config.vocab_size)
    evaluator = Evaluator(model, shards, batches, parallel)
    return evaluator(parallel.replicate(params)), model.config
