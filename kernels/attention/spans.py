"""Which tiles a block of queries or keys goes through, so that whole tiles nobody sees are skipped.

Letters in shapes: B batch, T query, S key, I block.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels.attention.tiles import Problem


def whole_blocks(x_BT: jax.Array | None, size: int) -> jax.Array | None:
    """`x` with its last value repeated until `size` divides its length."""
    if x_BT is None:
        return None
    return jnp.pad(x_BT, ((0, 0), (0, -x_BT.shape[1] % size)), mode="edge")


def extremes(x_BT: jax.Array | None, size: int) -> tuple[jax.Array | None, jax.Array | None]:
    """The smallest and the largest `x` of every block of `size`."""
    if x_BT is None:
        return None, None
    x_BIT = x_BT.reshape(x_BT.shape[0], -1, size)
    return x_BIT.min(axis=-1), x_BIT.max(axis=-1)


def last_queries(start_BT: jax.Array | None, keys: int, blocks: int) -> jax.Array | None:
    """Per block of keys, the place after the last query that sees one of them: BI."""
    if start_BT is None:
        return None
    B, T = start_BT.shape
    # The last query whose document starts at s, then the last whose document starts by s.
    until_BS = jnp.zeros((B, max(T, keys * blocks)), jnp.int32)
    until_BS = until_BS.at[jnp.arange(B)[:, None], start_BT].max(
        jnp.arange(1, T + 1, dtype=jnp.int32)[None]
    )
    until_BS = lax.cummax(until_BS, axis=1)
    return until_BS[:, keys - 1 : keys * blocks : keys]


def keys_seen(row: Any, queries: int, keys: int, problem: Problem, low: Any) -> tuple[Any, Any]:
    """Tiles [first, stop) of keys that the `queries` queries from `row` on see together.

    `low` is the first key of any of their documents, None without documents.
    """
    stop: Any = pl.cdiv(problem.keys, keys)
    if problem.causal:
        stop = lax.min(stop, pl.cdiv(row + queries, keys))
    return 0 if low is None else lax.div(low, keys), stop


@dataclasses.dataclass(frozen=True)
class Queries:
    """The queries of a block of threads, and the tiles [first, stop) of keys that they see."""

    batch: Any
    head: Any
    base: Any  # place of the first
    high: Any  # the last of the first keys of their documents; None without documents
    first: Any
    stop: Any


def queries_of_block(
    queries: int, keys: int, problem: Problem, low_ref: Any, high_ref: Any
) -> Queries:
    """Those of this block; `low_ref` and `high_ref`, BI, are `extremes`."""
    # The last blocks have the most keys to see: started first, they leave no tail.
    block = lax.axis_size("block") - 1 - lax.axis_index("block")
    batch, head = lax.axis_index("batch"), lax.axis_index("head")
    low, high = (None if x is None else x[batch, block] for x in (low_ref, high_ref))
    first, stop = keys_seen(block * queries, queries, keys, problem, low)
    return Queries(batch, head, block * queries, high, first, stop)


def step_kinds(
    row: Any, first: Any, stop: Any, keys: int, problem: Problem, high: Any
) -> tuple[Any, Any, Any]:
    """Where a mask is needed, counted in steps from tile `stop` - 1 down to tile `first`.

    Step 0 needs one, as do [1, diagonal) and [plain, count); [diagonal, plain) need none. `high`
    is the last of the first keys of the queries' documents, None without documents.
    """
    count = stop - first
    if not problem.causal:
        return 1, count, count
    diagonal = lax.min(lax.max(stop - lax.div(row + 1, keys), 1), count)
    if high is None:
        return diagonal, count, count
    plain = stop - lax.div(high + keys - 1, keys)
    return diagonal, lax.min(lax.max(plain, diagonal), count), count
