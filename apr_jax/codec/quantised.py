"""Tensors in quantised types: stored bytes to float32 values and back, a bounded part at a time."""

import math
from collections.abc import Buffer, Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from apr_jax.codec import dtypes, k_quants, native_quants
from apr_jax.codec.dtypes import Dtype

_ELEMENTS_AT_ONCE = 1 << 18


class _BlockCode(NamedTuple):
    """`decode(blocks_NB, out_NE)` fills `out`; `encode(values_NE)` takes magnitudes to `limit`."""

    decode: Callable[[np.ndarray, np.ndarray], None]
    encode: Callable[[np.ndarray], np.ndarray]
    limit: float


_BLOCK_CODES = {
    "Q4_K": _BlockCode(k_quants.decode_q4_k, k_quants.encode_q4_k, k_quants.Q4_K_LIMIT),
    "Q6_K": _BlockCode(k_quants.decode_q6_k, k_quants.encode_q6_k, k_quants.Q6_K_LIMIT),
    "Q4": _BlockCode(native_quants.decode_q4, native_quants.encode_q4, native_quants.Q4_LIMIT),
}


def decode(dtype: str, stored: Buffer, shape: Sequence[int]) -> np.ndarray:
    """The values of a stored tensor, float32 and flat.

    Args:
      dtype: Q4_K, Q6_K, Q4 or Q8.
      stored: its bytes.
      shape: how many elements there are, and where the rows end that are padded one by one. If the
        bytes are not as many as it needs, the elements of all whole blocks are returned.
    """
    row, data = dtypes.BY_NAME[dtype], np.frombuffer(stored, np.uint8)
    if dtype == "Q8":
        return native_quants.decode_q8(data)
    if data.size not in row.sizes(shape):
        shape = (data.size // row.block_bytes * row.block,)
        data = data[: row.nbytes(shape)]
    values = np.empty(math.prod(shape), np.float32)
    columns = _columns(row, shape) if data.size == row.nbytes(shape) else row.block
    for values_RC, blocks_NB in _parts(row, values, data, columns):
        if values_RC.shape[1] % row.block == 0:
            _BLOCK_CODES[dtype].decode(blocks_NB, values_RC.reshape(-1, row.block))
        else:
            padded_NE = np.empty((len(blocks_NB), row.block), np.float32)
            _BLOCK_CODES[dtype].decode(blocks_NB, padded_NE)
            values_RC[...] = padded_NE.reshape(len(values_RC), -1)[:, : values_RC.shape[1]]
    return values


def encode(dtype: str, array: np.ndarray) -> np.ndarray:
    """The stored bytes, uint8, of a tensor of any float type; the same input gives the same bytes.

    Args:
      dtype: Q4_K, Q6_K, Q4 or Q8.
      array: the values. Rows of matrices are padded with zeros to whole blocks for the K-types.

    Raises:
      OverflowError: a value is not finite, or larger than the type can express.
    """
    row, flat = dtypes.BY_NAME[dtype], np.ascontiguousarray(array).reshape(-1)
    peak = _peak(flat)
    limit = _BLOCK_CODES[dtype].limit if dtype in _BLOCK_CODES else np.finfo(np.float32).max
    if not peak <= limit:
        raise OverflowError(f"has a value of magnitude {peak:.4g}, {dtype} holds up to {limit:.4g}")
    if dtype == "Q8":
        return native_quants.encode_q8(flat, peak)
    stored = np.empty(row.nbytes(array.shape), np.uint8)
    for values_RC, blocks_NB in _parts(row, flat, stored, _columns(row, array.shape)):
        padded_NE = np.zeros((len(blocks_NB), row.block), np.float32)
        padded_NE.reshape(len(values_RC), -1)[:, : values_RC.shape[1]] = values_RC
        blocks_NB[...] = _BLOCK_CODES[dtype].encode(padded_NE)
    if dtype == "Q4":
        native_quants.clear_padding_q4(stored, flat.size)
    return stored


def _columns(row: Dtype, shape: Sequence[int]) -> int:
    """The length of what is padded to whole blocks one by one; one block where nothing is."""
    return shape[1] if row.pads_rows and len(shape) == 2 else row.block


def _parts(
    row: Dtype, values: np.ndarray, stored: np.ndarray, columns: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut flat values into matrices, each with its blocks; every row of a matrix begins a block."""
    if columns % row.block and values.size:
        matrices = [values.reshape(-1, columns)]
    else:
        whole = values.size // row.block * row.block
        matrices = [values[:whole].reshape(-1, row.block), values[whole:].reshape(1, -1)]
    blocks_NB = stored.reshape(-1, row.block_bytes)
    for matrix in matrices:
        blocks_per_row = -(-matrix.shape[1] // row.block)
        rows = max(1, _ELEMENTS_AT_ONCE // max(1, blocks_per_row * row.block))
        for at in range(0, len(matrix), rows):
            values_RC = matrix[at : at + rows]
            count = len(values_RC) * blocks_per_row
            if count:
                yield values_RC, blocks_NB[:count]
            blocks_NB = blocks_NB[count:]


@np.errstate(over="ignore", invalid="ignore")  # what float32 cannot hold becomes infinite
def _peak(flat: np.ndarray) -> np.float32:
    """The largest magnitude as float32; NaN if there is one."""
    starts = range(0, flat.size, _ELEMENTS_AT_ONCE)
    parts = (flat[at : at + _ELEMENTS_AT_ONCE].astype(np.float32) for at in starts)
    return np.max([np.abs(part).max() for part in parts], initial=np.float32(0))
