"""The fused forward pass on Hopper: attention tile by tile, with the softmax running along.

One block of threads computes `warpgroups` * 64 queries of one head. A memory warpgroup brings
tiles of keys and values into shared memory; each other warpgroup owns 64 queries and goes through
the tiles from the last to the first, because the last one holds the diagonal. For the scores
s = q k' of a tile, in base 2:

    m_new = max(m, rowmax(s)),  p = 2^(s - m_new),  a = 2^(m - m_new)
    l = a l + rowsum(p),        o = a o + p v;      out = o / l,  lse = m + log2(l)

The product p v of one tile runs on the matrix units while the exponentials of the next one are
computed (FlashAttention-3, arXiv 2407.08608, section 3.2).

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, H head size,
I block of queries.
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
from kernels.attention.tiles import LOG2_E, ROW, ROWS, TILE, Mask, Problem
from kernels.attention.tuning import ForwardSizes


@functools.partial(jax.jit, static_argnames=("problem", "sizes"))
def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    start_BT: jax.Array | None,
    problem: Problem,
    sizes: ForwardSizes,
) -> tuple[jax.Array, jax.Array]:
    """The output BTNH and the log-sum-exp BNT in base 2, its T rounded up to whole blocks."""
    B, T, N, H = q_BTNH.shape
    if start_BT is None:
        sizes = dataclasses.replace(sizes, heads=1)
    blocks, slots = pl.cdiv(T, sizes.queries), min(sizes.heads, 2)
    kernel = tiles.kernel(
        functools.partial(_block, problem=problem, sizes=sizes),
        "forward",
        [
            jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
            jax.ShapeDtypeStruct((B, N, blocks * sizes.queries), jnp.float32),
        ],
        (blocks, B, pl.cdiv(N, sizes.heads)),
        sizes.warpgroups,
        dict(
            q_smem=tiles.smem((slots, sizes.queries, H), q_BTNH.dtype),
            lse_smem=plgpu.SMEM((sizes.queries,), jnp.float32),
            q_full=plgpu.Barrier(num_barriers=slots),
            q_empty=plgpu.Barrier(num_arrivals=sizes.warpgroups, num_barriers=slots),
            **tiles.slots_of_keys((sizes.stages, sizes.keys, H), k_BSKH.dtype, sizes.warpgroups),
        ),
    )
    start_BT = spans.whole_blocks(start_BT, sizes.queries)
    low_BI, high_BI = spans.extremes(start_BT, ROWS)
    with tiles.interpreted(problem.interpret):
        return kernel(q_BTNH, k_BSKH, v_BSKH, start_BT, low_BI, high_BI)


def _block(
    q_ref: Any,
    k_all: Any,
    v_all: Any,
    start_ref: Any,
    low_ref: Any,
    high_ref: Any,
    out_ref: Any,
    lse_ref: Any,
    *,
    problem: Problem,
    sizes: ForwardSizes,
    **shared: Any,
) -> None:
    own = spans.queries_of_block(sizes.warpgroups, sizes.keys, problem, low_ref, high_ref)
    warpgroup = lax.axis_index("warpgroup")
    heads, first_head = q_ref.shape[2], lax.axis_index("head") * sizes.heads
    turns, slots = lax.min(heads - first_head, sizes.heads), shared["q_smem"].shape[0]

    @pl.when(warpgroup == sizes.warpgroups)
    def _bring() -> None:
        plgpu.set_max_registers(24, action="decrease")
        seen = own.seen()

        @pl.loop(0, turns)
        def _turn(turn: jax.Array) -> None:
            head, slot = first_head + turn, lax.rem(turn, slots)
            kv_head = lax.div(head, heads // k_all.shape[2])
            tiles.until_used(shared["q_empty"], turn, slots)
            q_own = q_ref.at[own.batch, pl.ds(own.base, sizes.queries), head]
            plgpu.copy_gmem_to_smem(q_own, shared["q_smem"].at[slot], shared["q_full"].at[slot])
            k_ref, v_ref = (x.at[own.batch, :, kv_head] for x in (k_all, v_all))
            tiles.bring_keys(k_ref, v_ref, seen.stop, seen.count, turn * seen.count, shared)

        tiles.drain([shared["k_empty"], shared["v_empty"]], turns * seen.count, sizes.stages)
        tiles.drain([shared["q_empty"]], turns, slots)

    @pl.when(warpgroup < sizes.warpgroups)
    def _compute() -> None:
        plgpu.set_max_registers(tiles.registers(sizes.warpgroups), action="increase")
        row = own.row(warpgroup)
        start = None if start_ref is None else tiles.load_rows(start_ref, (own.batch,), row)
        seen, own_seen, rows = own.seen(), own.seen_by(warpgroup), pl.ds(warpgroup * ROWS, ROWS)
        q_smem, lse_smem = shared["q_smem"], shared["lse_smem"].at[rows]
        slots_of_keys = {name: x for name, x in shared.items() if name[0] in "kv"}

        @pl.loop(0, turns)
        def _turn(turn: jax.Array) -> None:
            head, slot = first_head + turn, lax.rem(turn, slots)
            queries = _Queries(
                row=row, start=start, own=own_seen, block=seen, begun=turn * seen.count,
                problem=problem, sizes=sizes, q_smem=q_smem.at[slot].at[rows], **slots_of_keys,
            )  # fmt: skip
            plgpu.barrier_wait(shared["q_full"].at[slot])
            out, lse = queries.attend()
            # Through the shared memory that held the queries.
            queries.q_smem[...] = out.astype(out_ref.dtype)
            lse_smem[...] = lse
            plgpu.commit_smem()
            place = pl.ds(row, ROWS)
            plgpu.copy_smem_to_gmem(queries.q_smem, out_ref.at[own.batch, place, head])
            plgpu.copy_smem_to_gmem(lse_smem, lse_ref.at[own.batch, head, place])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            plgpu.barrier_arrive(shared["q_empty"].at[slot])

        plgpu.wait_smem_to_gmem(0)


@dataclasses.dataclass(frozen=True)
class _Queries:
    """One warpgroup's 64 queries of a head."""

    row: Any  # place of the first query
    start: Any  # per query, the first key of its document; None without documents
    own: spans.Span
    block: spans.Span  # which its block goes through
    begun: Any  # steps of other heads
    problem: Problem
    sizes: ForwardSizes
    q_smem: Any
    k_smem: Any
    v_smem: Any
    k_full: Any
    v_full: Any
    k_empty: Any
    v_empty: Any

    def attend(self) -> tuple[jax.Array, jax.Array]:
        """The output and the log-sum-exp of the queries."""
        begin = self.begun + self.block.stop - self.own.stop
        self._pass_by(self.begun, begin)
        phases = spans.phases(self.row, self.own, begin, self.sizes.keys, self.problem)
        carry = tiles.go_through(self._step, phases, self._first_step(begin))
        end = begin + self.own.count
        out, lse = self._finish(end - 1, *carry)
        self._pass_by(end, self.begun + self.block.count)
        return out, lse

    def _pass_by(self, first: Any, stop: Any) -> None:
        pairs = (self.k_full, self.k_empty), (self.v_full, self.v_empty)
        tiles.pass_by(first, stop, *pairs, stages=self.sizes.stages)

    def _first_step(self, step: Any) -> tuple[jax.Array, ...]:
        slot = lax.rem(step, self.sizes.stages)
        plgpu.barrier_wait(self.k_full.at[slot])
        k_smem = tiles.transposed(self.k_smem.at[slot])
        s = tiles.product(self.q_smem, k_smem, self.problem.interpret)
        plgpu.barrier_arrive(self.k_empty.at[slot])
        m = plgpu.layout_cast(jnp.full((ROWS,), -jnp.inf, jnp.float32), ROW)
        p, m, total = self._soften(
            self._hide(s, step, Mask.ALL), m, tiles.zeros((ROWS,), ROW), True
        )
        o = tiles.zeros((ROWS, self.v_smem.shape[-1]), TILE)
        return o, m, total, p.astype(self.v_smem.dtype)

    def _step(
        self, step: Any, carry: tuple[jax.Array, ...], mask: Mask | None
    ) -> tuple[jax.Array, ...]:
        """Adds the values of the tile before, while it weighs the keys of this one."""
        slot, before = lax.rem(step, self.sizes.stages), lax.rem(step - 1, self.sizes.stages)
        o, m, total, p = carry
        interpret, masked = self.problem.interpret, mask is not None

        def body(s_ref: Any, o_ref: Any, m_ref: Any, l_ref: Any, p_ref: Any) -> None:
            k_smem = tiles.transposed(self.k_smem.at[slot])
            tiles.accumulate(s_ref, self.q_smem, k_smem, interpret)
            tiles.accumulate(o_ref, p, self.v_smem.at[before], interpret)
            s = tiles.finished(s_ref, 1, interpret)
            plgpu.barrier_arrive(self.k_empty.at[slot])
            s = s if mask is None else self._hide(s, step, mask)
            p_ref[...], m_ref[...], l_ref[...] = self._soften(s, m, total, masked)

        # All waiting is over before the first product starts: between products it would stop them.
        plgpu.barrier_wait(self.v_full.at[before])
        plgpu.barrier_wait(self.k_full.at[slot])
        s = tiles.zeros((ROWS, self.sizes.keys), TILE)
        _, o, m_new, total, p = tiles.update(body, (s, o), (m, total, s), interpret)
        # Rounded only now: the registers of the last tile's weights were in use until here.
        p = lax.optimization_barrier(p).astype(self.v_smem.dtype)
        plgpu.barrier_arrive(self.v_empty.at[before])
        top = jnp.where(m_new == -jnp.inf, 0.0, m_new) if masked else m_new
        return o * tiles.along(jnp.exp2(m - top), o.shape, 0), m_new, total, p

    def _finish(
        self, step: Any, o: jax.Array, m: jax.Array, total: jax.Array, p: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        slot = lax.rem(step, self.sizes.stages)
        plgpu.barrier_wait(self.v_full.at[slot])
        o = tiles.added(o, p, self.v_smem.at[slot], self.problem.interpret)
        plgpu.barrier_arrive(self.v_empty.at[slot])
        return o * tiles.along(1 / total, o.shape, 0), m + jnp.log(total) * LOG2_E

    def _hide(self, s: jax.Array, step: Any, mask: Mask) -> jax.Array:
        first = (self.block.stop - 1 - (step - self.begun)) * self.sizes.keys
        return tiles.hide(s, self.row, first, self.problem, self.start, mask)

    def _soften(
        self, s: jax.Array, m: jax.Array, total: jax.Array, masked: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Weights of the tile, new maximum (scaled, base 2) and new sum of a row."""
        factor = self.problem.scale * LOG2_E
        m_new = jnp.maximum(m, s.max(axis=1) * factor)
        # A row that sees none of the keys so far has no maximum yet: -inf - -inf would be NaN.
        top = jnp.where(m_new == -jnp.inf, 0.0, m_new) if masked else m_new
        p = jnp.exp2(s * factor - tiles.along(top, s.shape, 0))
        return p, m_new, total * jnp.exp2(m - top) + p.sum(axis=1)
