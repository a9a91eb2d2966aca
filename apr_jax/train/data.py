"""Batches of a run: which windows of the shards come in which step."""

import pathlib

import numpy as np

from apr_jax.text.batches import Shards, Windows, epoch_order, segment_start
from apr_jax.train.config import TrainConfig, TrainError


class TrainBatches:
    """The batch of every step, a function of the settings and the step alone, so resume is exact.

    Each epoch goes through all windows once in an order of its own; the tail of an epoch that
    does not fill a batch is filled up from the next, so nothing is dropped.
    """

    def __init__(self, shards: Shards, config: TrainConfig) -> None:
        self._windows = Windows(shards, config.seq_length)
        self._config = config
        self._eos_id = masking_eos(shards, config.mask_documents)
        self._orders: dict[int, np.ndarray] = {}

    @property
    def epochs(self) -> float:
        """How often a run goes through the data."""
        return self._config.steps * self._config.batch_size / len(self._windows)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Arrays of step `step` (from 0): [accumulate, batch_size / accumulate, seq_length]."""
        size = self._config.batch_size
        indices = [self._window(n) for n in range(step * size, (step + 1) * size)]
        batch = with_segments(self._windows.batch(np.asarray(indices)), self._eos_id)
        shape = (self._config.accumulate, size // self._config.accumulate, self._config.seq_length)
        return {name: array.reshape(shape) for name, array in batch.items()}

    def _window(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._windows))
        if epoch not in self._orders:
            order = epoch_order(len(self._windows), self._config.seed, epoch)
            # A batch spans at most a few epochs of tiny corpora; older orders are not needed again.
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1} | {
                epoch: order
            }
        return int(self._orders[epoch][offset])


class EvalBatches:
    """The held-out windows in stream order, the last batch filled up with weight 0."""

    def __init__(
        self, shards: Shards, *, seq_length: int, batch_size: int, tokens: int, eos_id: int | None
    ) -> None:
        self._windows = Windows(shards, seq_length)
        self._batch_size, self._eos_id = batch_size, eos_id
        wanted = len(self._windows) if not tokens else -(-tokens // seq_length)
        self._count = min(wanted, len(self._windows))

    @classmethod
    def of_run(cls, shards: Shards, config: TrainConfig) -> "EvalBatches":
        """The held-out batches of a training run, as large as its micro-batches."""
        return cls(
            shards,
            seq_length=config.seq_length,
            batch_size=config.batch_size // config.accumulate,
            tokens=config.val_tokens,
            eos_id=masking_eos(shards, config.mask_documents),
        )

    def __len__(self) -> int:
        return -(-self._count // self._batch_size)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = index * self._batch_size
        if not 0 <= start < self._count:
            raise IndexError(index)
        indices = np.arange(start, min(start + self._batch_size, self._count))
        batch = self._windows.batch(indices)
        missing = self._batch_size - len(indices)
        padded = {name: np.pad(array, ((0, missing), (0, 0))) for name, array in batch.items()}
        return with_segments(padded, self._eos_id)


def open_data(config: TrainConfig) -> tuple[Shards, Shards]:
    """The training and the held-out shards, their bytes being what their manifests say.

    Raises:
      TrainError: they are the same folder, or made with different tokenizers.
      ShardError: a shard has changed since it was written.
    """
    if pathlib.Path(config.shards).resolve() == pathlib.Path(config.val_shards).resolve():
        raise TrainError(f"{config.val_shards}: held-out and training shards are the same folder")
    train, val = Shards(config.shards), Shards(config.val_shards)
    hashes = [s.manifest["tokenizer_sha256"] for s in (train, val) if s.manifest is not None]
    if len(set(hashes)) > 1:
        raise TrainError(
            f"{config.shards} and {config.val_shards} were made with different tokenizers; "
            "encode both with the model's own"
        )
    for shards in (train, val):
        shards.verify()
    return train, val


def masking_eos(shards: Shards, mask_documents: bool) -> int | None:
    """The id that ends documents if attention is to stay inside them, else None."""
    if not mask_documents:
        return None
    if shards.eos_id is None:
        raise TrainError(
            f"{shards.folder}: mask_documents needs to know where documents end, and the manifest "
            "names no EOS; encode the corpus with an EOS policy, or leave the mask off"
        )
    return shards.eos_id


def with_segments(batch: dict[str, np.ndarray], eos_id: int | None) -> dict[str, np.ndarray]:
    """`batch`, with `segment_start_BT` when there is an `eos_id` to split documents at."""
    if eos_id is None:
        return batch
    return {**batch, "segment_start_BT": segment_start(batch["ids_BT"], eos_id)}
