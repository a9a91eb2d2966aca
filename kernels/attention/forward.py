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
from kernels.attention.tiles import LOG2_E, ROW, ROWS, TILE, Problem
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
    blocks = pl.cdiv(T, sizes.queries)
    kv = tiles.smem((sizes.stages, sizes.keys, H), k_BSKH.dtype)
    full = plgpu.Barrier(num_barriers=sizes.stages)
    empty = plgpu.Barrier(num_arrivals=sizes.warpgroups, num_barriers=sizes.stages)
    kernel = plgpu.kernel(
        functools.partial(_block, problem=problem, sizes=sizes),
        out_type=[
            jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
            jax.ShapeDtypeStruct((B, N, blocks * sizes.queries), jnp.float32),
        ],
        scratch_types=dict(
            q_smem=tiles.smem((sizes.queries, H), q_BTNH.dtype),
            k_smem=kv,
            v_smem=kv,
            lse_smem=plgpu.SMEM((sizes.queries,), jnp.float32),
            q_full=plgpu.Barrier(),
            k_full=full,
            v_full=full,
            k_empty=empty,
            v_empty=empty,
        ),
        grid=(blocks, B, N),
        grid_names=("block", "batch", "head"),
        num_threads=sizes.warpgroups + 1,
        thread_name="warpgroup",
        kernel_name="attention_forward",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    start_BT = spans.whole_blocks(start_BT, sizes.queries)
    low_BI, high_BI = spans.extremes(start_BT, sizes.queries)
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
    own = spans.queries_of_block(sizes.queries, sizes.keys, problem, low_ref, high_ref)
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == sizes.warpgroups)
    def _bring() -> None:
        plgpu.set_max_registers(24, action="decrease")
        q_own = q_ref.at[own.batch, pl.ds(own.base, sizes.queries), own.head]
        plgpu.copy_gmem_to_smem(q_own, shared["q_smem"], shared["q_full"])
        tiles.bring_keys(k_all, v_all, q_ref.shape[2], own, shared)

    @pl.when(warpgroup < sizes.warpgroups)
    def _compute() -> None:
        plgpu.set_max_registers(tiles.registers(sizes.warpgroups), action="increase")
        row = own.base + warpgroup * ROWS
        start = None if start_ref is None else tiles.load_rows(start_ref, (own.batch,), row)
        rows = pl.ds(warpgroup * ROWS, ROWS)
        mine = shared | {name: shared[name].at[rows] for name in ("q_smem", "lse_smem")}
        queries = _Queries(
            row=row, start=start, high=own.high, first=own.first, stop=own.stop,
            problem=problem, sizes=sizes, **mine,
        )  # fmt: skip
        out, lse = queries.attend()
        _store(
            out,
            lse,
            mine,
            out_ref.at[own.batch, pl.ds(row, ROWS), own.head],
            lse_ref.at[own.batch, own.head, pl.ds(row, ROWS)],
        )


def _store(
    out: jax.Array, lse: jax.Array, shared: dict[str, Any], out_ref: Any, lse_ref: Any
) -> None:
    """Writes 64 rows through the shared memory that held their queries."""
    shared["q_smem"][...] = out.astype(out_ref.dtype)
    shared["lse_smem"][...] = lse
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(shared["q_smem"], out_ref)
    plgpu.copy_smem_to_gmem(shared["lse_smem"], lse_ref)
    plgpu.wait_smem_to_gmem(0)


@dataclasses.dataclass(frozen=True)
class _Queries:
    """One warpgroup's 64 queries, and the tiles [first, stop) of keys that its block sees."""

    row: Any  # place of the first query
    start: Any  # per query, the first key of its document; None without documents
    high: Any  # the last of the block's `start`: from there on no document hides a key
    first: Any
    stop: Any
    problem: Problem
    sizes: ForwardSizes
    q_smem: Any
    k_smem: Any
    v_smem: Any
    lse_smem: Any
    q_full: Any
    k_full: Any
    v_full: Any
    k_empty: Any
    v_empty: Any

    def attend(self) -> tuple[jax.Array, jax.Array]:
        """The output and the log-sum-exp of the queries."""
        plgpu.barrier_wait(self.q_full)
        carry = self._first_step()
        diagonal, plain, count = spans.step_kinds(
            self.row, self.first, self.stop, self.sizes.keys, self.problem, self.high
        )
        masked = functools.partial(self._step, masked=True)
        carry = lax.fori_loop(1, diagonal, masked, carry)
        carry = lax.fori_loop(diagonal, plain, functools.partial(self._step, masked=False), carry)
        if self.high is not None:
            carry = lax.fori_loop(plain, count, masked, carry)
        return self._finish(count, *carry)

    def _first_step(self) -> tuple[jax.Array, ...]:
        plgpu.barrier_wait(self.k_full.at[0])
        s = tiles.product(self.q_smem, tiles.transposed(self.k_smem.at[0]), self.problem.interpret)
        plgpu.barrier_arrive(self.k_empty.at[0])
        m = plgpu.layout_cast(jnp.full((ROWS,), -jnp.inf, jnp.float32), ROW)
        p, m, total = self._soften(self._mask(s, 0), m, tiles.zeros((ROWS,), ROW), True)
        o = tiles.zeros((ROWS, self.v_smem.shape[-1]), TILE)
        return o, m, total, p.astype(self.v_smem.dtype)

    def _step(self, step: Any, carry: tuple[jax.Array, ...], masked: bool) -> tuple[jax.Array, ...]:
        """Adds the values of the tile before, while it weighs the keys of this one."""
        slot, before = lax.rem(step, self.sizes.stages), lax.rem(step - 1, self.sizes.stages)
        o, m, total, p = carry
        interpret = self.problem.interpret

        def body(s_ref: Any, o_ref: Any, m_ref: Any, l_ref: Any, p_ref: Any) -> None:
            k_smem = tiles.transposed(self.k_smem.at[slot])
            tiles.accumulate(s_ref, self.q_smem, k_smem, interpret)
            tiles.accumulate(o_ref, p, self.v_smem.at[before], interpret)
            s = tiles.finished(s_ref, 1, interpret)
            plgpu.barrier_arrive(self.k_empty.at[slot])
            s = self._mask(s, step) if masked else s
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
        self, count: Any, o: jax.Array, m: jax.Array, total: jax.Array, p: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        slot = lax.rem(count - 1, self.sizes.stages)
        plgpu.barrier_wait(self.v_full.at[slot])
        o = tiles.added(o, p, self.v_smem.at[slot], self.problem.interpret)
        plgpu.barrier_arrive(self.v_empty.at[slot])
        return o * tiles.along(1 / total, o.shape, 0), m + jnp.log(total) * LOG2_E

    def _mask(self, s: jax.Array, step: Any) -> jax.Array:
        first = (self.stop - 1 - step) * self.sizes.keys
        return tiles.hide(s, self.row, first, self.problem, self.start)

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
