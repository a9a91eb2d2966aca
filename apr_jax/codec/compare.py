"""Comparing arrays and checkpoints bit for bit."""

import numpy as np

from apr_jax.codec.checkpoint import Checkpoint
from apr_jax.codec.errors import VerificationFailed
from apr_jax.progress import Progress


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of `array` in row-major order, uint8; a view where it lies so already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal in type, shape and every bit: the payloads of NaNs and the signs of zeros count."""
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and np.array_equal(as_bytes(left), as_bytes(right))
    )


def verify_copy(original: Checkpoint, copy: Checkpoint) -> None:
    """Check that `copy` holds the model of `original`: its configuration and every bit.

    Raises:
      VerificationFailed: names the first tensor that differs.
    """
    if copy.config != original.config:
        raise VerificationFailed(
            copy.path, f"reads back as {copy.config}, was written as {original.config}"
        )
    if copy.names != original.names:
        different = sorted(set(copy.names) ^ set(original.names))
        raise VerificationFailed(copy.path, f"holds other tensors: {', '.join(different[:5])}")
    with Progress("verify", len(copy.names), "tensors") as progress:
        for name in copy.names:
            if not same_bits(original.read(name), copy.read(name)):
                raise VerificationFailed(
                    copy.path, f"differs from {original.path}; write it again", tensor=name
                )
            progress.update()
