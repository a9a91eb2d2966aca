"""The table of element types: their codes in `.apr`, names, NumPy types and sizes.

A type whose `numpy` is None is quantised: `quantised.py` turns its bytes into float32 and back.
"""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from apr_jax.codec.errors import ShapeTooLarge, UnsupportedDtype


@dataclasses.dataclass(frozen=True)
class Dtype:
    """One row. `block` elements take `block_bytes` bytes, after `head_bytes` once per tensor."""

    name: str
    code: int
    numpy: np.dtype[Any] | None
    torch: str | None = None
    block: int = 1
    block_bytes: int = 0
    head_bytes: int = 0
    legacy_code: int | None = None
    pads_rows: bool = False

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The byte counts that a tensor of `shape` may have."""
        elements = math.prod(shape)
        sizes = [self.head_bytes + self._blocks(elements)]
        if self.pads_rows and len(shape) == 2:
            sizes.append(shape[0] * self._blocks(shape[1]))
        return tuple(sizes)

    def nbytes(self, shape: Sequence[int]) -> int:
        """The byte count that writers give a tensor of `shape`, padding rows if the type does."""
        return self.sizes(shape)[-1]

    def _blocks(self, elements: int) -> int:
        return -(-elements // self.block) * self.block_bytes


def _plain(name: str, code: int, numpy: Any, torch: str) -> Dtype:
    dtype = np.dtype(numpy)
    return Dtype(name, code, dtype, torch, block_bytes=dtype.itemsize)


DTYPES = (
    _plain("F32", 0, np.float32, "float32"),
    _plain("F16", 1, np.float16, "float16"),
    _plain("F64", 3, np.float64, "float64"),
    _plain("I32", 4, np.int32, "int32"),
    _plain("I64", 5, np.int64, "int64"),
    _plain("I8", 6, np.int8, "int8"),
    _plain("U8", 7, np.uint8, "uint8"),
    Dtype("Q4_K", 12, None, block=256, block_bytes=144, pads_rows=True),
    Dtype("Q6_K", 14, None, block=256, block_bytes=210, pads_rows=True),
    _plain("BF16", 30, ml_dtypes.bfloat16, "bfloat16"),
    Dtype("Q4", 128, None, block=32, block_bytes=18, legacy_code=8),
    Dtype("Q8", 129, None, block_bytes=1, head_bytes=4, legacy_code=9),
)

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_NUMPY = {dtype.numpy: dtype for dtype in DTYPES if dtype.numpy is not None}
BY_CODE = {dtype.code: dtype for dtype in DTYPES} | {
    dtype.legacy_code: dtype for dtype in DTYPES if dtype.legacy_code is not None
}


def find(name: str, path: str | os.PathLike[str], tensor: str) -> Dtype:
    """The row of a type as safetensors and GGUF name it.

    Raises:
      UnsupportedDtype: `.apr` files have no such type.
    """
    if name not in BY_NAME:
        raise UnsupportedDtype(
            path, f"has type {name}, which .apr files cannot hold", tensor=tensor
        )
    return BY_NAME[name]


def shaped(
    flat: np.ndarray, shape: tuple[int, ...], path: str | os.PathLike[str], tensor: str
) -> np.ndarray:
    """`flat` in the shape that a file says.

    Raises:
      ShapeTooLarge: NumPy has no arrays of this rank or extent.
    """
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise ShapeTooLarge(
            path, f"has a shape that NumPy cannot hold ({error})", tensor=tensor
        ) from error
