"""Weights that two environments can make alike: from a seed and a name, by NumPy alone.

Nothing is left at HuggingFace's neutral start (zero biases, unit norms), where errors could hide.
"""

import pathlib
import zlib
from collections.abc import Mapping

import numpy as np

FOLDER = pathlib.Path(__file__).parent.parent / "data" / "qwen2_golden"


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The float32 tensor called `name`, as in HuggingFace files; matrices are [out, in]."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("norm.weight"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("bias"):
        return rng.normal(0.0, 0.5, shape).astype(np.float32)
    if name.endswith("embed_tokens.weight"):  # small, as in real models, so that eps matters
        return rng.normal(0.0, 0.02, shape).astype(np.float32)
    return rng.normal(0.0, shape[1] ** -0.5, shape).astype(np.float32)


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """All tensors of a model by name."""
    return {name: weight(name, tuple(shape), seed) for name, shape in shapes.items()}
