"""The model file that a run delivers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from apr_jax.codec import AprWriter, ArraySpec, Checkpoint, folders, open_apr, open_checkpoint
from apr_jax.train.config import TrainConfig, TrainError

_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_CARRIED_OVER = frozenset(
    ("author", "license", "data_source", "data_license", "chat_template", "special_tokens")
)


def save_model(path: pathlib.Path, named: Mapping[str, Any], config: TrainConfig) -> None:
    """Write the trained parameters as an `.apr` file that can stand where `config.init` stood.

    Args:
      path: the file.
      named: float32 arrays by file name; a tied head is not among them.
      config: names the init, whose dtypes, tokenizer and licence carry over, and `save_dtype`.
    """
    with open_checkpoint(config.init) as init:
        metadata = _carried_over(init) | init.config.to_apr() | _provenance(config)
        metadata["model_type"] = init.config.architecture
        metadata["param_count"] = init.config.num_parameters()
        companions = init.companion_files()
        dtypes = {name: _DTYPES.get(config.save_dtype, init.dtype(name)) for name in init.names}
        declared = {name: ArraySpec(dtype, init.shape(name)) for name, dtype in dtypes.items()}
    with AprWriter(path, declared, metadata) as writer:
        for name in sorted(declared):
            # One tensor at a time on the host: the writer's memory is the largest of them.
            writer.add(name, _cast(np.asarray(named[name]), dtypes[name], name))
    folders.replace_companions(companions, folders.tokenizer_folder(path))


def _cast(array: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # the check says it better
        cast = array.astype(dtype)
    if not np.isfinite(cast).all():
        raise TrainError(
            f"{name} has values beyond {dtype} (up to {np.abs(array).max():.3g}); "
            "give the same command with another save_dtype and another out"
        )
    return cast


def _carried_over(init: Checkpoint) -> dict[str, Any]:
    if init.format != "apr":
        return {}
    with open_apr(init.path) as file:
        return {
            key: value
            for key, value in file.metadata.items()
            if key in _CARRIED_OVER or key.startswith("tokenizer.")
        }


def _provenance(config: TrainConfig) -> dict[str, Any]:
    init = pathlib.Path(config.init)
    return {
        "name": f"{init.stem}-{config.mode}",
        "source": init.name,
        "apr_jax.training": {
            "steps": config.steps,
            "batch_size": config.batch_size,
            "seq_length": config.seq_length,
            "lr": config.lr,
            "seed": config.seed,
        },
    }
