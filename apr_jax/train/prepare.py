"""Everything that a run can be refused for before it starts, and what it starts from."""

import dataclasses
import hashlib
import math
import os
import pathlib
from typing import Any

from apr_jax.codec import Checkpoint, open_checkpoint
from apr_jax.errors import UserError
from apr_jax.files import read_json, write_json
from apr_jax.model import Qwen2, load_model
from apr_jax.text import load_tokenizer
from apr_jax.text.batches import Shards
from apr_jax.train.config import TrainConfig, TrainError
from apr_jax.train.data import EvalBatches, TrainBatches, open_data
from apr_jax.train.devices import choose_loss, model_options
from apr_jax.train.parallel import DataParallel

CHECKPOINTS = "checkpoints"
_SETTINGS = "settings.json"
_PATHS = ("init", "shards", "val_shards", "out")
_END_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's parts, checked against each other."""

    config: TrainConfig
    """Resolved: every number is decided."""
    options: dict[str, Any]
    """Of `load_model`."""
    model: Qwen2
    parallel: DataParallel
    train_shards: Shards
    val_shards: Shards
    batches: TrainBatches
    val_batches: EvalBatches
    tokenizer: str | None
    """Why the shards' tokenizer could not be compared with the model's; None when it was."""

    @property
    def uniform_loss(self) -> float:
        """The loss of a model that knows nothing, nats per token."""
        return math.log(self.model.config.vocab_size)


def prepare(config: TrainConfig) -> tuple[Setup, Any]:
    """Check settings, data, model and devices against each other, and load the parameters.

    Raises:
      UserError: something does not fit; the run's folder has not been touched.
    """
    parallel = DataParallel(config.parallel)
    parallel.check_batch(config.batch_size // config.accumulate, "batch_size / accumulate")
    _require_apart(config)
    train_shards, val_shards = open_data(config)
    with open_checkpoint(config.init) as init:
        config = config.resolved(math.log(init.config.vocab_size))
        require_positions(init, config.seq_length)
        options = model_options(
            config.compute_dtype,
            config.attention,
            mask_documents=config.mask_documents,
            head_dim=init.config.head_dim,
        ) | {"remat": config.remat}
        options |= choose_loss(config.loss_impl, init.config, options["compute_dtype"])
        settings = _settings(config, options)
        _require_same_run(config, settings)
        tokenizer = compare_tokenizer(init, train_shards)
        for shards in (train_shards, val_shards):
            shards.check_ids(init.config.vocab_size)
    batches = TrainBatches(train_shards, config)
    val_batches = EvalBatches.of_run(val_shards, config)
    model, params = load_model(config.init, **options)
    write_json(pathlib.Path(config.out) / _SETTINGS, settings)
    return (
        Setup(
            config=config,
            options=options,
            model=model,
            parallel=parallel,
            train_shards=train_shards,
            val_shards=val_shards,
            batches=batches,
            val_batches=val_batches,
            tokenizer=tokenizer,
        ),
        params,
    )


def compare_tokenizer(checkpoint: Checkpoint, shards: Shards) -> str | None:
    """Whether the shards hold the model's own ids. Returns why that could not be told, or None.

    Raises:
      TrainError: they were made with another tokenizer than the one beside the model, or in it.
    """
    if shards.manifest is None:
        return "the shards do not say which tokenizer made them"
    if not checkpoint.companion_files():
        return "; ".join(checkpoint.notes) or "no tokenizer lies beside the model or in it"
    # Files beside the model come before a vocabulary in its metadata.
    folder = checkpoint.companions[0].parent if checkpoint.companions else checkpoint.path
    try:
        own = load_tokenizer(folder)
    except UserError as error:
        return f"the model's tokenizer cannot be loaded ({error})"
    if own.sha256 != shards.manifest["tokenizer_sha256"]:
        raise TrainError(
            f"{shards.folder}: its ids are not the model's: it was encoded with another tokenizer "
            f"than {folder}; encode the corpus with --tokenizer={folder}"
        )
    return None


def require_positions(checkpoint: Checkpoint, seq_length: int) -> None:
    """Refuse windows that are longer than what the model has positions for."""
    positions = checkpoint.config.max_position_embeddings
    if seq_length > positions:
        raise TrainError(
            f"seq_length={seq_length} is beyond the {positions} positions of {checkpoint.path}; "
            f"use at most {positions}"
        )


def _require_apart(config: TrainConfig) -> None:
    out, init = pathlib.Path(config.out).resolve(), pathlib.Path(config.init).resolve()
    if out in (init, init.parent):
        raise TrainError(
            f"out={config.out}: the model that the run starts from lies there and could be "
            "overwritten; choose another folder"
        )
    for shards in (config.shards, config.val_shards):
        if out == pathlib.Path(shards).resolve():
            raise TrainError(f"out={config.out}: shards lie there; choose another folder")


def _settings(config: TrainConfig, options: dict[str, Any]) -> dict[str, Any]:
    """What the run is, as it is really run: a resumed one must agree in all but the paths."""
    return config.to_json() | {
        "compute_dtype": options["compute_dtype"].name,
        "attention": options["attention_impl"],
        "loss_impl": options["loss_impl"],
        "init_sha256": _fingerprint(config.init),
        "shards_sha256": _fingerprint(config.shards),
        "val_shards_sha256": _fingerprint(config.val_shards),
    }


def _require_same_run(config: TrainConfig, settings: dict[str, Any]) -> None:
    """Refuse a folder with checkpoints of other settings or other inputs."""
    out = pathlib.Path(config.out)
    if not any((out / CHECKPOINTS).glob("[0-9]*")):
        return
    before = read_json(out / _SETTINGS)
    for name in settings:
        was = before.get(name) if isinstance(before, dict) else None
        if name not in _PATHS and was != settings[name]:
            raise TrainError(
                f"{out}: a run with {name}={was!r} lives here, this one has {settings[name]!r}; "
                "choose another --out, or give the same settings and inputs to go on"
            )


def _fingerprint(path: str | os.PathLike[str]) -> str:
    """Of a model or a folder of shards: names, sizes, the first and the last MiB of each file.

    Of what lies between, manifests and metadata, which come first, and the checksum that ends an
    `.apr` file tell; a large safetensors file has nothing that would.
    """
    root, digest = pathlib.Path(path), hashlib.sha256()
    files = sorted(p for p in root.iterdir() if p.is_file()) if root.is_dir() else [root]
    for file in files:
        with file.open("rb") as stream:
            ends = stream.read(_END_BYTES)
            stream.seek(max(stream.tell(), file.stat().st_size - _END_BYTES))
            ends += stream.read(_END_BYTES)
        name = file.name if root.is_dir() else ""
        digest.update(f"{name}\0{file.stat().st_size}\0".encode() + hashlib.sha256(ends).digest())
    return digest.hexdigest()
