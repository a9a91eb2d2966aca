"""The gradients of keys and values on Hopper, see `backward`.

A block of threads owns keys of one key-value head and goes through the queries of all its query
heads that see them, so that a group's gradients are summed in float32 and never written one by
one. It works on transposed scores, because products take their left operand from registers.

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, H head size,
I block.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.attention import spans, tiles
from kernels.attention.tiles import COLUMN, LOG2_E, ROWS, TILE, Mask, Problem
from kernels.attention.tuning import BackwardSizes


def grad_kv(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    start_BT: jax.Array | None,
    do_BTNH: jax.Array,
    lse_BNL: jax.Array,
    delta_BNL: jax.Array,
    problem: Problem,
    sizes: BackwardSizes,
) -> tuple[jax.Array, jax.Array]:
    """dk and dv."""
    B, S, K, H = k_BSKH.shape
    blocks = pl.cdiv(S, sizes.owned)
    own = tiles.smem((sizes.owned, H), k_BSKH.dtype)
    tile = tiles.smem((sizes.stages, sizes.tile, H), q_BTNH.dtype)
    row = plgpu.SMEM((sizes.stages, sizes.tile), jnp.float32)
    start_smem = {}
    if start_BT is not None:
        start_smem["start_smem"] = plgpu.SMEM((sizes.stages, sizes.tile), jnp.int32)
    arrivals = 2 + len(start_smem)
    empty = plgpu.Barrier(num_arrivals=sizes.warpgroups, num_barriers=sizes.stages)
    kernel = tiles.kernel(
        functools.partial(_key_block, problem=problem, sizes=sizes),
        "grad_kv",
        [jax.ShapeDtypeStruct(k_BSKH.shape, k_BSKH.dtype)] * 2,
        (blocks, B, K),
        sizes.warpgroups,
        dict(
            k_smem=own,
            v_smem=own,
            q_smem=tile,
            do_smem=tile,
            lse_smem=row,
            delta_smem=row,
            own_full=plgpu.Barrier(num_arrivals=2),
            q_full=plgpu.Barrier(num_arrivals=arrivals, num_barriers=sizes.stages),
            do_full=plgpu.Barrier(num_arrivals=2, num_barriers=sizes.stages),
            q_empty=empty,
            do_empty=empty,
            **start_smem,
        ),
    )
    after_BI, until_BI = spans.queries_of_keys(start_BT, blocks * sizes.warpgroups)
    start_BT = spans.whole_blocks(start_BT, sizes.tile)
    T = q_BTNH.shape[1]
    lse_BNL, delta_BNL = (tiles.long_enough(x, T, sizes.tile) for x in (lse_BNL, delta_BNL))
    return kernel(q_BTNH, k_BSKH, v_BSKH, do_BTNH, lse_BNL, delta_BNL, start_BT, after_BI, until_BI)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Through the tiles [first, stop) of queries, of every head of the group.

    Up to tile `turn` comes tile after tile, each of all heads: then what a warpgroup sees is one
    stretch of steps. From there on comes head after head: blocks that run at the same time read
    about the same tiles, which stay in the cache.
    """

    first: Any
    turn: Any
    stop: Any
    group: int

    @property
    def count(self) -> Any:
        return self.until(self.stop)

    def until(self, tile: Any) -> Any:
        """The steps before a tile up to `turn`, or before the end."""
        return lax.max(tile - self.first, 0) * self.group

    def __getitem__(self, step: Any) -> tuple[Any, Any]:
        """Head within the group, and tile."""
        rest, width = step - self.until(self.turn), lax.max(self.stop - self.turn, 1)
        head = lax.select(rest < 0, lax.rem(step, self.group), lax.div(rest, width))
        by_tiles = self.first + lax.div(step, self.group)
        return head, lax.select(rest < 0, by_tiles, self.turn + lax.rem(rest, width))


@dataclasses.dataclass(frozen=True)
class _Seen:
    """The tiles [first, stop) of queries that see some keys."""

    first: Any
    diagonal: Any  # before it there are queries before some of the keys
    hidden: Any  # from it on there may be queries of later documents; None without documents
    stop: Any

    def phases(self, walk: _Walk) -> list[tuple[Any, Any, Mask | None]]:
        """Steps of `walk` and what mask they need."""
        hidden = self.stop if self.hidden is None else self.hidden
        first, diagonal, hidden, stop = map(
            walk.until, (self.first, self.diagonal, hidden, self.stop)
        )
        found: list[tuple[Any, Any, Mask | None]] = [
            (first, diagonal, Mask.ALL),
            (diagonal, hidden, None),
        ]
        if self.hidden is not None:
            found.append((hidden, stop, Mask.DOCUMENTS))
        return found


def _seen(
    row: Any, keys: int, queries: int, tile: int, problem: Problem, after: Any, until: Any
) -> _Seen:
    """By queries, of `keys` keys from `row` on; `after` and `until` as `spans.queries_of_keys` has
    them, None without documents."""
    stop: Any = jnp.int32(pl.cdiv(queries, tile))
    if not problem.causal:
        return _Seen(jnp.int32(0), jnp.int32(0), None, stop)
    if until is not None:
        stop = lax.min(stop, pl.cdiv(until, tile))
    first = lax.min(lax.div(row, tile), stop)
    diagonal = lax.min(pl.cdiv(row + keys - 1, tile), stop)
    hidden = None if after is None else lax.clamp(diagonal, lax.div(after, tile), stop)
    return _Seen(first, diagonal, hidden, stop)


def _key_block(
    q_all: Any,
    k_ref: Any,
    v_ref: Any,
    do_all: Any,
    lse_all: Any,
    delta_all: Any,
    start_all: Any,
    after_ref: Any,
    until_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    problem: Problem,
    sizes: BackwardSizes,
    **shared: Any,
) -> None:
    # The first blocks are seen by the most queries: they start first.
    block, batch = lax.axis_index("block"), lax.axis_index("batch")
    head, warpgroup = lax.axis_index("head"), lax.axis_index("warpgroup")
    base, group = block * sizes.owned, q_all.shape[2] // k_ref.shape[2]

    def seen(keys: int, warpgroup: Any, last: Any) -> _Seen:
        """Of the keys of the warpgroups from one to the last."""
        index = block * sizes.warpgroups
        after, until = None, None
        if until_ref is not None:
            after, until = after_ref[batch, index + warpgroup], until_ref[batch, index + last]
        row = (index + warpgroup) * ROWS
        return _seen(row, keys, q_all.shape[1], sizes.tile, problem, after, until)

    def walk_of_block() -> _Walk:
        by_all = seen(sizes.owned, 0, sizes.warpgroups - 1)
        turn = by_all.diagonal if start_all is None else by_all.stop
        return _Walk(by_all.first, turn, by_all.stop, group)

    @pl.when(warpgroup == sizes.warpgroups)
    def _bring() -> None:
        plgpu.set_max_registers(24, action="decrease")
        own = pl.ds(base, sizes.owned)
        for ref, smem in ((k_ref, shared["k_smem"]), (v_ref, shared["v_smem"])):
            plgpu.copy_gmem_to_smem(ref.at[batch, own, head], smem, shared["own_full"])
        _bring_queries(
            q_all.at[batch], do_all.at[batch], lse_all.at[batch], delta_all.at[batch],
            None if start_all is None else start_all.at[batch],
            head * group, walk_of_block(), sizes, shared,
        )  # fmt: skip

    @pl.when(warpgroup < sizes.warpgroups)
    def _compute() -> None:
        plgpu.set_max_registers(tiles.registers(sizes.warpgroups), action="increase")
        row = base + warpgroup * ROWS
        own = pl.ds(warpgroup * ROWS, ROWS)
        mine = shared | {name: shared[name].at[own] for name in ("k_smem", "v_smem")}
        keys = _Keys(
            row=row, walk=walk_of_block(), seen=seen(ROWS, warpgroup, warpgroup),
            problem=problem, sizes=sizes, **mine,
        )  # fmt: skip
        for x, smem, ref in zip(
            keys.gradients(), (mine["k_smem"], mine["v_smem"]), (dk_ref, dv_ref), strict=True
        ):
            smem[...] = x.astype(ref.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(smem, ref.at[batch, pl.ds(row, ROWS), head])
        plgpu.wait_smem_to_gmem(0)


def _bring_queries(
    q_ref: Any,
    do_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    start_ref: Any,
    first_head: Any,
    walk: _Walk,
    sizes: BackwardSizes,
    shared: dict[str, Any],
) -> None:
    @pl.loop(0, walk.count)
    def _bring(step: jax.Array) -> None:
        slot = lax.rem(step, sizes.stages)
        head, tile = walk[step]
        head, rows = first_head + head, pl.ds(tile * sizes.tile, sizes.tile)

        def fill(name: str, *copies: tuple[Any, str]) -> None:
            tiles.until_used(shared[f"{name}_empty"], step, sizes.stages)
            for source, smem in copies:
                plgpu.copy_gmem_to_smem(
                    source, shared[smem].at[slot], shared[f"{name}_full"].at[slot]
                )

        start = [] if start_ref is None else [(start_ref.at[rows], "start_smem")]
        fill("q", (q_ref.at[rows, head], "q_smem"), (lse_ref.at[head, rows], "lse_smem"), *start)
        fill("do", (do_ref.at[rows, head], "do_smem"), (delta_ref.at[head, rows], "delta_smem"))

    tiles.drain([shared["q_empty"], shared["do_empty"]], walk.count, sizes.stages)


@dataclasses.dataclass(frozen=True)
class _Keys:
    """One warpgroup's 64 keys, and the tiles of queries that its block goes through."""

    row: Any  # place of the first key
    walk: _Walk
    seen: _Seen
    problem: Problem
    sizes: BackwardSizes
    k_smem: Any
    v_smem: Any
    q_smem: Any
    do_smem: Any
    lse_smem: Any
    delta_smem: Any
    own_full: Any
    q_full: Any
    do_full: Any
    q_empty: Any
    do_empty: Any
    start_smem: Any = None

    def gradients(self) -> tuple[jax.Array, jax.Array]:
        """dk and dv."""
        plgpu.barrier_wait(self.own_full)
        zero = tiles.zeros(self.k_smem.shape, TILE)
        nothing = tiles.zeros((ROWS, self.sizes.tile), TILE).astype(self.q_smem.dtype)
        begin, end = self.walk.until(self.seen.first), self.walk.until(self.seen.stop)
        self._pass_by(0, begin)
        phases = self.seen.phases(self.walk)
        dk, dv, ds = tiles.go_through(self._step, phases, (zero, zero, nothing))

        def last() -> jax.Array:
            slot = lax.rem(end - 1, self.sizes.stages)
            out = tiles.added(dk, ds, self.q_smem.at[slot], self.problem.interpret)
            plgpu.barrier_arrive(self.q_empty.at[slot])
            return out

        dk = lax.cond(end > begin, last, lambda: dk)
        self._pass_by(end, self.walk.count)
        return dk * self.problem.scale, dv

    def _pass_by(self, first: Any, stop: Any) -> None:
        pairs = (self.q_full, self.q_empty), (self.do_full, self.do_empty)
        tiles.pass_by(first, stop, *pairs, stages=self.sizes.stages)

    def _step(self, step: Any, carry: tuple[jax.Array, ...], mask: Mask | None) -> Any:
        """Adds the tile before to dk and this one to dv, and computes ds of this one."""
        begin = self.walk.until(self.seen.first)
        slot = lax.rem(step, self.sizes.stages)
        before = lax.rem(lax.max(step - 1, begin), self.sizes.stages)
        dk, dv, ds = carry
        interpret, dtype = self.problem.interpret, self.q_smem.dtype
        zero = tiles.zeros((ROWS, self.sizes.tile), TILE)
        query = None if mask is None else self.walk[step][1] * self.sizes.tile

        def scores(s_ref: Any, dk_ref: Any, p_ref: Any) -> None:
            q_smem = tiles.transposed(self.q_smem.at[slot])
            tiles.accumulate(s_ref, self.k_smem, q_smem, interpret)
            # Before the first step ds is 0, and so is what it adds.
            tiles.accumulate(dk_ref, ds, self.q_smem.at[before], interpret)
            s = tiles.finished(s_ref, 1, interpret)
            s = s if mask is None else self._hide(s, query, slot, mask)
            lse = plgpu.load(self.lse_smem.at[slot], layout=COLUMN)
            factor = self.problem.scale * LOG2_E
            p_ref[...] = jnp.exp2(s * factor - tiles.along(lse, s.shape, 1))

        plgpu.barrier_wait(self.q_full.at[slot])
        _, dk, p = tiles.update(scores, (zero, dk), (zero,), interpret)
        pl.when(step > begin)(functools.partial(plgpu.barrier_arrive, self.q_empty.at[before]))
        p = lax.optimization_barrier(p)
        p16 = p.astype(dtype)

        def gradients(dp_ref: Any, dv_ref: Any, ds_ref: Any) -> None:
            do_smem = self.do_smem.at[slot]
            tiles.accumulate(dp_ref, self.v_smem, tiles.transposed(do_smem), interpret)
            tiles.accumulate(dv_ref, p16, do_smem, interpret)
            delta = plgpu.load(self.delta_smem.at[slot], layout=COLUMN)
            dp = tiles.finished(dp_ref, 1, interpret)
            ds_ref[...] = p * (dp - tiles.along(delta, dp.shape, 1))

        plgpu.barrier_wait(self.do_full.at[slot])
        _, dv, ds = tiles.update(gradients, (zero, dv), (zero,), interpret)
        plgpu.commit_smem()  # orders the reads of rows before TMA's next write
        plgpu.barrier_arrive(self.do_empty.at[slot])
        return dk, dv, lax.optimization_barrier(ds).astype(dtype)

    def _hide(self, s: jax.Array, query: Any, slot: Any, mask: Mask) -> jax.Array:
        """`query` is the place of the tile's first."""
        start = None
        if self.start_smem is not None:
            start = plgpu.load(self.start_smem.at[slot], layout=COLUMN)
        return tiles.hide(s, query, self.row, self.problem, start, mask, query_axis=1)
