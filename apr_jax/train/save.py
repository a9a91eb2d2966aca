"""A run's folder and the model file that it delivers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from apr_jax.codec import AprWriter, ArraySpec, Checkpoint, folders, open_apr, open_checkpoint
from apr_jax.files import read_json, write_json
from apr_jax.train.config import TrainConfig, TrainError

_SETTINGS = "config.json"
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_CARRIED_OVER = frozenset(
    ("author", "license", "data_source", "data_license", "chat_template", "special_tokens")
)


def settle_folder(out: pathlib.Path, config: TrainConfig, *, begun: bool) -> None:
    """Write the settings into `out`, or check that the run `begun` there had the same.

    Raises:
      TrainError: another run has checkpoints in `out`; names the first setting that differs.
    """
    path = out / _SETTINGS
    if not begun:
        write_json(path, config.to_json())
        return
    before, now = read_json(path), config.to_json()
    for name in now:
        if not isinstance(before, dict) or before.get(name) != now[name]:
            was = before.get(name) if isinstance(before, dict) else None
            raise TrainError(
                f"{path}: a run with {name}={was!r} lives here, this one has {now[name]!r}; "
                "choose another --out, or give the same settings to go on"
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
            writer.add(name, np.asarray(named[name]).astype(dtypes[name]))
    folders.replace_companions(companions, folders.tokenizer_folder(path))


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
