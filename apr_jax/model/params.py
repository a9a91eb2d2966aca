"""Parameter trees: named as in HuggingFace files, nested as in Flax; and new ones from a seed."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from apr_jax.codec.qwen2 import Qwen2Config

_INIT = {
    "normal": lambda rng, shape, std: rng.standard_normal(shape, np.float32) * np.float32(std),
    "zeros": lambda rng, shape, std: np.zeros(shape, np.float32),
    "ones": lambda rng, shape, std: np.ones(shape, np.float32),
}


def to_path(name: str) -> tuple[str, ...]:
    """`model.layers.0.mlp.up_proj.weight` -> ("model", "layers_0", "mlp", "up_proj", "weight")."""
    return tuple(name.replace(".layers.", ".layers_").split("."))


def to_name(path: tuple[str, ...]) -> str:
    """The inverse of `to_path`."""
    return ".".join(path).replace(".layers_", ".layers.")


def to_tree(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nest values by the parts of their names, as `model.apply` wants them."""
    tree: dict[str, Any] = {}
    for name, value in named.items():
        *parents, leaf = to_path(name)
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def to_named(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a tree to the names of files. The inverse of `to_tree`."""
    named: dict[str, Any] = {}

    def visit(node: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping):
                visit(value, (*path, key))
            else:
                named[to_name((*path, key))] = value

    visit(tree, ())
    return named


def init_params(config: Qwen2Config, seed: int) -> dict[str, Any]:
    """A new model's tree in float32 NumPy; each tensor depends on its name and the seed alone."""
    named = {}
    for name, spec in config.tensors().items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        named[name] = _INIT[spec.init](rng, spec.shape, config.initializer_range)
    return to_tree(named)
