"""From a checkpoint to a model that runs: everything is checked before anything is returned."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax.codec import Checkpoint, open_checkpoint
from apr_jax.codec.claims import contradiction
from apr_jax.codec.stats import count_not_finite
from apr_jax.errors import UserError
from apr_jax.model.params import to_tree
from apr_jax.model.qwen2 import Qwen2

_BYTES_AT_ONCE = 1 << 28


class LoadError(UserError):
    """The checkpoint does not hold the parameters of its own configuration."""


def load_model(
    path: str | os.PathLike[str],
    *,
    compute_dtype: Any = jnp.float32,
    attention_impl: str = "xla",
    loss_impl: str = "xla",
    remat: bool = False,
    param_dtype: Any = jnp.float32,
) -> tuple[Qwen2, dict[str, Any]]:
    """Read an `.apr` file, a HuggingFace folder, a safetensors file or a GGUF.

    Args:
      compute_dtype, attention_impl, loss_impl, remat: as `Qwen2` takes them.
      param_dtype: to which every parameter is cast, whatever the file holds.

    Returns:
      The model, and its parameters on JAX's default device:
      `model.apply({"params": params}, ids_BT)` gives logits.

    Raises:
      AprError, ConfigError: the file is damaged, mislabelled, or not plain Qwen2 or Llama.
      LoadError: tensors missing, superfluous, of another shape or not finite.
    """
    with open_checkpoint(path) as checkpoint:
        _check_coverage(checkpoint)
        checkpoint.require_true_types()
        named: dict[str, jax.Array] = {}
        for names in _groups(checkpoint):
            named |= _load(checkpoint, names, param_dtype)
        model = Qwen2(checkpoint.config, compute_dtype, attention_impl, loss_impl, remat)
    return model, to_tree(named)


def _check_coverage(checkpoint: Checkpoint) -> None:
    coverage = checkpoint.coverage()
    if not coverage.complete:
        family = contradiction(checkpoint.config, coverage, checkpoint.names)
        raise LoadError(f"{checkpoint.path}: {family}{coverage.describe()}")


def _groups(checkpoint: Checkpoint) -> Iterator[list[str]]:
    """The parameters' names, as many at a time as are moved together: one by one takes longer."""
    names: list[str] = []
    nbytes = 0
    for name in checkpoint.names:
        names.append(name)
        nbytes += checkpoint.nbytes(name)
        if nbytes >= _BYTES_AT_ONCE:
            yield names
            names, nbytes = [], 0
    yield names


def _load(checkpoint: Checkpoint, names: list[str], dtype: Any) -> dict[str, jax.Array]:
    """Parameters on the device: they go there as they are stored, and are cast there."""
    arrays = {name: _read(checkpoint, name, dtype) for name in names}
    # A copy also on the CPU: the file under a view may change while the model is in use.
    placed = jax.device_put(arrays, may_alias=False)
    for name, array in arrays.items():  # while they are on their way
        if bad := count_not_finite(array):
            raise LoadError(
                f"{checkpoint.path}: {name} has {bad:,} of {array.size:,} values that are not "
                f"finite in {array.dtype}; the file is damaged or its type is mislabelled"
            )
    return {name: array.astype(dtype) for name, array in placed.items()}


def _read(checkpoint: Checkpoint, name: str, dtype: Any) -> np.ndarray:
    stored = checkpoint.dtype(name)
    if not jnp.issubdtype(stored, jnp.floating):
        raise LoadError(
            f"{checkpoint.path}: {name} has type {stored}, a parameter needs a "
            "floating one; convert the model again from its source"
        )
    array = checkpoint.read(name)
    if jnp.finfo(stored).max > jnp.finfo(dtype).max:
        with np.errstate(over="ignore"):  # what overflows is found as not finite
            return array.astype(dtype)
    return array
