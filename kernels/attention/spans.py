"""Which tiles a block of queries or keys goes through, so that whole tiles nobody sees are skipped.

Letters in shapes: B batch, T query, S key, I block.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels.attention.tiles import ROWS, Mask, Problem


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


def queries_of_keys(
    start_BT: jax.Array | None, blocks: int
) -> tuple[jax.Array | None, jax.Array | None]:
    """Per 64 keys, BI of `blocks`: the first query whose document starts after the first of them,
    and the place after the last query that sees one of them."""
    if start_BT is None:
        return None, None
    B, T = start_BT.shape
    size, row_B1 = max(T, blocks * ROWS) + 1, jnp.arange(B)[:, None]
    place_1T = jnp.arange(T, dtype=jnp.int32)[None]
    # The first query whose document starts at s, then the first whose starts at s or after it.
    after_BS = jnp.full((B, size), T, jnp.int32).at[row_B1, start_BT].min(place_1T)
    after_BS = lax.cummin(after_BS, axis=1, reverse=True)
    # The last query whose document starts at s, then the last whose starts by s.
    until_BS = jnp.zeros((B, size), jnp.int32).at[row_B1, start_BT].max(place_1T + 1)
    until_BS = lax.cummax(until_BS, axis=1)
    stop = blocks * ROWS
    return after_BS[:, 1 : stop + 1 : ROWS], until_BS[:, ROWS - 1 : stop : ROWS]


@dataclasses.dataclass(frozen=True)
class Span:
    """The tiles [first, stop) of keys that some queries see together."""

    first: Any
    stop: Any
    high: Any  # the last of the first keys of their documents; None without documents

    @property
    def count(self) -> Any:
        return self.stop - self.first


@dataclasses.dataclass(frozen=True)
class Queries:
    """The queries of a block of threads, 64 of them each warpgroup's.

    Each warpgroup asks for itself what is seen: interpreted on few cores, reads of device memory
    that come before the warpgroups part can leave them waiting for each other.
    """

    batch: Any
    block: Any
    warpgroups: int
    keys: int  # in a tile
    problem: Problem
    low_ref: Any  # BI, the first key of any of 64 queries' documents; None without documents
    high_ref: Any  # BI, the last of these

    @property
    def base(self) -> Any:
        """Place of the first."""
        return self.row(0)

    def row(self, warpgroup: Any) -> Any:
        """Place of a warpgroup's first."""
        return (self.block * self.warpgroups + warpgroup) * ROWS

    def seen(self) -> Span:
        """By all."""
        low = None
        if self.low_ref is not None:
            lows = [self._of(self.low_ref, i) for i in range(self.warpgroups)]
            low = functools.reduce(lax.min, lows)
        return self._span(self.base, self.warpgroups * ROWS, low, None)

    def seen_by(self, warpgroup: Any) -> Span:
        low, high = None, None
        if self.low_ref is not None:
            low, high = self._of(self.low_ref, warpgroup), self._of(self.high_ref, warpgroup)
        return self._span(self.row(warpgroup), ROWS, low, high)

    def _of(self, ref: Any, warpgroup: Any) -> Any:
        return ref[self.batch, self.block * self.warpgroups + warpgroup]

    def _span(self, row: Any, queries: int, low: Any, high: Any) -> Span:
        stop: Any = pl.cdiv(self.problem.keys, self.keys)
        if self.problem.causal:
            stop = lax.min(stop, pl.cdiv(row + queries, self.keys))
        return Span(0 if low is None else lax.div(low, self.keys), stop, high)


def queries_of_block(
    warpgroups: int, keys: int, problem: Problem, low_ref: Any, high_ref: Any
) -> Queries:
    """Those of this block."""
    # The last blocks have the most keys to see: started first, they leave no tail.
    block = lax.axis_size("block") - 1 - lax.axis_index("block")
    batch = lax.axis_index("batch")
    return Queries(batch, block, warpgroups, keys, problem, low_ref, high_ref)


def phases(
    row: Any, own: Span, begin: Any, keys: int, problem: Problem
) -> list[tuple[Any, Any, Mask | None]]:
    """Steps [first, stop) and what mask they need; step `begin` is tile `own.stop` - 1, and is in
    none of them, as it needs every mask."""
    diagonal: Any = 1
    plain = own.count
    if problem.causal:
        diagonal = lax.min(lax.max(own.stop - lax.div(row + 1, keys), 1), own.count)
    if own.high is not None:
        plain = own.stop - lax.div(own.high + keys - 1, keys)
        plain = lax.min(lax.max(plain, diagonal), own.count)
    found: list[tuple[Any, Any, Mask | None]] = [
        (begin + 1, begin + diagonal, Mask.ALL),
        (begin + diagonal, begin + plain, None),
    ]
    if own.high is not None:
        found.append((begin + plain, begin + own.count, Mask.DOCUMENTS))
    return found
