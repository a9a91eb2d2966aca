"""The gradient of the queries on Hopper, see `backward`.

A block of threads owns queries of one head and goes through the keys they see, as forward.

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
from kernels.attention.tiles import LOG2_E, ROWS, TILE, Mask, Problem
from kernels.attention.tuning import BackwardSizes


def grad_q(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    start_BT: jax.Array | None,
    out_BTNH: jax.Array,
    do_BTNH: jax.Array,
    lse_BNL: jax.Array,
    dlse_BNL: jax.Array | None,
    problem: Problem,
    sizes: BackwardSizes,
) -> tuple[jax.Array, jax.Array]:
    """dq and delta, which the other kernel needs; delta's T is rounded up to whole blocks."""
    B, T, N, H = q_BTNH.shape
    blocks = pl.cdiv(T, sizes.owned)
    own = tiles.smem((sizes.owned, H), q_BTNH.dtype)
    kernel = tiles.kernel(
        functools.partial(_query_block, problem=problem, sizes=sizes),
        "grad_q",
        [
            jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
            jax.ShapeDtypeStruct((B, N, blocks * sizes.owned), jnp.float32),
        ],
        (blocks, B, N),
        sizes.warpgroups,
        dict(
            q_smem=own,
            do_smem=own,
            out_smem=own,
            delta_smem=plgpu.SMEM((sizes.owned,), jnp.float32),
            own_full=plgpu.Barrier(num_arrivals=3),
            **tiles.slots_of_keys((sizes.stages, sizes.tile, H), k_BSKH.dtype, sizes.warpgroups),
        ),
    )
    start_BT = spans.whole_blocks(start_BT, sizes.owned)
    low_BI, high_BI = spans.extremes(start_BT, ROWS)
    lse_BNL = tiles.long_enough(lse_BNL, T, sizes.owned)
    if dlse_BNL is not None:
        dlse_BNL = tiles.long_enough(dlse_BNL, T, sizes.owned)
    return kernel(
        q_BTNH, k_BSKH, v_BSKH, out_BTNH, do_BTNH, lse_BNL, dlse_BNL, start_BT, low_BI, high_BI
    )


def _query_block(
    q_ref: Any,
    k_all: Any,
    v_all: Any,
    out_ref: Any,
    do_ref: Any,
    lse_ref: Any,
    dlse_ref: Any,
    start_ref: Any,
    low_ref: Any,
    high_ref: Any,
    dq_ref: Any,
    delta_ref: Any,
    *,
    problem: Problem,
    sizes: BackwardSizes,
    **shared: Any,
) -> None:
    own = spans.queries_of_block(sizes.warpgroups, sizes.tile, problem, low_ref, high_ref)
    warpgroup, own_head = lax.axis_index("warpgroup"), lax.axis_index("head")

    @pl.when(warpgroup == sizes.warpgroups)
    def _bring() -> None:
        plgpu.set_max_registers(24, action="decrease")
        seen = own.seen()
        place = (own.batch, pl.ds(own.base, sizes.owned), own_head)
        for ref, name in ((out_ref, "out"), (do_ref, "do"), (q_ref, "q")):
            plgpu.copy_gmem_to_smem(ref.at[place], shared[f"{name}_smem"], shared["own_full"])
        kv_head = lax.div(own_head, q_ref.shape[2] // k_all.shape[2])
        k_ref, v_ref = (x.at[own.batch, :, kv_head] for x in (k_all, v_all))
        tiles.bring_keys(k_ref, v_ref, seen.stop, seen.count, 0, shared)
        tiles.drain([shared["k_empty"], shared["v_empty"]], seen.count, sizes.stages)

    @pl.when(warpgroup < sizes.warpgroups)
    def _compute() -> None:
        plgpu.set_max_registers(tiles.registers(sizes.warpgroups), action="increase")
        row, head = own.row(warpgroup), (own.batch, own_head)
        rows = pl.ds(warpgroup * ROWS, ROWS)
        mine = shared | {
            name: shared[name].at[rows] for name in ("q_smem", "do_smem", "out_smem", "delta_smem")
        }
        plgpu.barrier_wait(mine.pop("own_full"))
        delta = _row_sums(mine.pop("out_smem"), mine["do_smem"])
        if dlse_ref is not None:
            delta -= tiles.load_rows(dlse_ref, head, row)
        delta_smem = mine.pop("delta_smem")
        delta_smem[...] = delta
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(delta_smem, delta_ref.at[(*head, pl.ds(row, ROWS))])
        queries = _Queries(
            row=row,
            lse=tiles.load_rows(lse_ref, head, row),
            delta=delta,
            start=None if start_ref is None else tiles.load_rows(start_ref, (own.batch,), row),
            own=own.seen_by(warpgroup), block=own.seen(),
            problem=problem, sizes=sizes, **mine,
        )  # fmt: skip
        dq = queries.gradient()
        mine["q_smem"][...] = dq.astype(dq_ref.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(mine["q_smem"], dq_ref.at[own.batch, pl.ds(row, ROWS), own_head])
        plgpu.wait_smem_to_gmem(0)


def _row_sums(out_smem: Any, do_smem: Any) -> jax.Array:
    """Of do * out, in float32: its error is multiplied by every weight of the row."""
    out, do = (plgpu.load(x, layout=TILE).astype(jnp.float32) for x in (out_smem, do_smem))
    return (out * do).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class _Queries:
    """One warpgroup's 64 queries."""

    row: Any  # place of the first query
    lse: Any
    delta: Any
    start: Any  # per query, the first key of its document; None without documents
    own: spans.Span
    block: spans.Span  # which its block goes through
    problem: Problem
    sizes: BackwardSizes
    q_smem: Any
    do_smem: Any
    k_smem: Any
    v_smem: Any
    k_full: Any
    v_full: Any
    k_empty: Any
    v_empty: Any

    def gradient(self) -> jax.Array:
        begin = self.block.stop - self.own.stop
        self._pass_by(0, begin)
        phases = spans.phases(self.row, self.own, begin, self.sizes.tile, self.problem)
        dq, ds = tiles.go_through(self._step, phases, self._first_step(begin))
        end = begin + self.own.count
        slot = lax.rem(end - 1, self.sizes.stages)
        dq = tiles.added(dq, ds, self.k_smem.at[slot], self.problem.interpret)
        plgpu.barrier_arrive(self.k_empty.at[slot])
        self._pass_by(end, self.block.count)
        return dq * self.problem.scale

    def _pass_by(self, first: Any, stop: Any) -> None:
        pairs = (self.k_full, self.k_empty), (self.v_full, self.v_empty)
        tiles.pass_by(first, stop, *pairs, stages=self.sizes.stages)

    def _first_step(self, step: Any) -> tuple[jax.Array, jax.Array]:
        slot = lax.rem(step, self.sizes.stages)
        plgpu.barrier_wait(self.k_full.at[slot])
        plgpu.barrier_wait(self.v_full.at[slot])
        interpret = self.problem.interpret
        k_smem, v_smem = self.k_smem.at[slot], self.v_smem.at[slot]
        s = tiles.product(self.q_smem, tiles.transposed(k_smem), interpret)
        dp = tiles.product(self.do_smem, tiles.transposed(v_smem), interpret)
        plgpu.barrier_arrive(self.v_empty.at[slot])
        ds = self._weights(s, step, Mask.ALL) * (dp - tiles.along(self.delta, dp.shape, 0))
        return tiles.zeros(self.q_smem.shape, TILE), ds.astype(self.k_smem.dtype)

    def _step(self, step: Any, carry: tuple[jax.Array, jax.Array], mask: Mask | None) -> Any:
        """Adds the tile before to dq, while it computes ds of this one."""
        slot, before = lax.rem(step, self.sizes.stages), lax.rem(step - 1, self.sizes.stages)
        dq, ds = carry
        interpret = self.problem.interpret

        def body(s_ref: Any, dp_ref: Any, dq_ref: Any, ds_ref: Any) -> None:
            k_smem, v_smem = self.k_smem.at[slot], self.v_smem.at[slot]
            tiles.accumulate(s_ref, self.q_smem, tiles.transposed(k_smem), interpret)
            tiles.accumulate(dp_ref, self.do_smem, tiles.transposed(v_smem), interpret)
            tiles.accumulate(dq_ref, ds, self.k_smem.at[before], interpret)
            p = self._weights(tiles.finished(s_ref, 2, interpret), step, mask)
            dp = tiles.finished(dp_ref, 1, interpret)
            plgpu.barrier_arrive(self.v_empty.at[slot])
            ds_ref[...] = p * (dp - tiles.along(self.delta, dp.shape, 0))

        # All waiting is over before the first product starts: between products it would stop them.
        plgpu.barrier_wait(self.k_full.at[slot])
        plgpu.barrier_wait(self.v_full.at[slot])
        zero = tiles.zeros((ROWS, self.sizes.tile), TILE)
        _, _, dq, ds = tiles.update(body, (zero, zero, dq), (zero,), interpret)
        plgpu.barrier_arrive(self.k_empty.at[before])
        # Rounded only now: the registers of the last tile's gradients were in use until here.
        return dq, lax.optimization_barrier(ds).astype(self.k_smem.dtype)

    def _weights(self, s: jax.Array, step: Any, mask: Mask | None) -> jax.Array:
        if mask is not None:
            first = (self.block.stop - 1 - step) * self.sizes.tile
            s = tiles.hide(s, self.row, first, self.problem, self.start, mask)
        factor = self.problem.scale * LOG2_E
        return jnp.exp2(s * factor - tiles.along(self.lse, s.shape, 0))
