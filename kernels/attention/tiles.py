"""What the fused kernels share: the tile operations, and the two holes of interpret mode.

Letters in shapes: B batch, T query, S key, N query heads, K key-value heads, H head size.
"""

import contextlib
import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh

LOG2_E = math.log2(math.e)
ROWS = 64  # of one warpgroup's matrix instruction
TILE = plgpu.Layout.WGMMA
ROW = TILE.reduce(1)
COLUMN = TILE.reduce(0)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a kernel is compiled for, beside shapes and dtypes."""

    causal: bool
    scale: float
    keys: int  # those after are padding
    interpret: bool = False


class Mask(enum.Enum):
    """What hides keys of a tile."""

    ALL = enum.auto()  # the query's place, its document's start, the end of the keys
    DOCUMENTS = enum.auto()  # starts of documents alone


def smem(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory that TMA fills and the matrix units read."""
    tiling: Any = plgpu.TilingTransform
    swizzle: Any = plgpu.SwizzleTransform
    return plgpu.SMEM(shape, dtype, transforms=(tiling((8, 64)), swizzle(128)))


def zeros(shape: tuple[int, ...], layout: Any) -> jax.Array:
    """float32 zeros in registers."""
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)


def places(shape: tuple[int, ...], axis: int, first: Any) -> jax.Array:
    """first + index along `axis`, for every score of a tile."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=TILE) + first


def along(x: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """The vector `x` along `axis` of a tile."""
    return lax.broadcast_in_dim(x, shape, [axis])


def transposed(ref: Any) -> Any:
    """The transposed view of a matrix in shared memory (the method is new in JAX 0.12)."""
    return ref.transpose((1, 0)) if hasattr(ref, "transpose") else plgpu.transpose_ref(ref, (1, 0))


def hide(
    s: jax.Array,
    query: Any,
    key: Any,
    problem: Problem,
    start: jax.Array | None,
    mask: Mask,
    query_axis: int = 0,
) -> jax.Array:
    """Scores with -inf at keys after the query, before its document, and past the end.

    `query` and `key` are the places of the tile's first ones, `start` is per query of the tile.
    """
    key_place = places(s.shape, 1 - query_axis, key)
    conditions = []
    if problem.causal and mask is Mask.ALL:
        conditions.append(key_place <= places(s.shape, query_axis, query))
    if start is not None:
        conditions.append(key_place >= along(start, s.shape, query_axis))
    if problem.keys % s.shape[1 - query_axis] and mask is Mask.ALL:
        conditions.append(key_place < problem.keys)
    if not conditions:
        return s
    return jnp.where(functools.reduce(jnp.logical_and, conditions), s, -jnp.inf)


class _Cell:
    """Stands for a reference to a value in registers where the kernel is interpreted."""

    def __init__(self, value: jax.Array):
        self.value = value

    def __getitem__(self, _: Any) -> jax.Array:
        return self.value

    def __setitem__(self, _: Any, value: jax.Array) -> None:
        self.value = value


def update(
    body: Callable[..., None],
    sums: tuple[jax.Array, ...],
    others: tuple[jax.Array, ...],
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Runs `body` on references to `sums`, which `accumulate` adds to, and `others`; new values.

    Hole 1 of interpret mode: it has no `pl.run_state` over accumulators.
    """
    if interpret:
        cells = [_Cell(x) for x in (*sums, *others)]
        body(*cells)
        return tuple(cell.value for cell in cells)
    state = tuple(plgpu.ACC.init(x) for x in sums) + others
    return pl.run_state(lambda refs: body(*refs))(state)


def accumulate(sum_ref: Any, a: Any, b_ref: Any, interpret: bool) -> None:
    """Starts sum += a @ b; b is in shared memory, a there or in registers.

    Hole 2 of interpret mode: its `wgmma` takes no operand from registers.
    """
    if not interpret:
        plgpu.wgmma(sum_ref, a, b_ref)
        return
    a, b = a[...], b_ref[...]
    plgpu.commit_smem()  # orders the reads before TMA's next write, as a matrix instruction would
    sum_ref[...] += jnp.dot(a, b, preferred_element_type=jnp.float32)


def finished(sum_ref: Any, running: int, interpret: bool) -> jax.Array:
    """The sum, once no more than `running` products that were started later are under way."""
    return sum_ref[...] if interpret else plgpu.wgmma_accumulator_load(sum_ref, wait_n=running)


def added(total: jax.Array, a: Any, b_ref: Any, interpret: bool) -> jax.Array:
    """total + a @ b."""

    def body(sum_ref: Any) -> None:
        accumulate(sum_ref, a, b_ref, interpret)

    return update(body, (total,), (), interpret)[0]


def product(a_ref: Any, b_ref: Any, interpret: bool) -> jax.Array:
    """a @ b in float32, of two matrices in shared memory."""
    shape = (a_ref.shape[0], b_ref.shape[1])
    if interpret:
        return added(zeros(shape, TILE), a_ref, b_ref, interpret)

    def body(sum_ref: Any) -> jax.Array:
        plgpu.wgmma(sum_ref, a_ref, b_ref)
        return sum_ref[...]

    return pl.run_scoped(body, plgpu.ACC(shape, jnp.float32))


def kernel(
    body: Callable, name: str, outputs: list[Any], grid: tuple, warpgroups: int, scratch: dict
) -> Callable:
    """`body` on a grid of (block, batch, head): `warpgroups` that compute and one that brings
    memory."""
    return plgpu.kernel(
        body,
        out_type=outputs,
        scratch_types=scratch,
        grid=grid,
        grid_names=("block", "batch", "head"),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        kernel_name=f"attention_{name}",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )


def slots_of_keys(shape: tuple[int, ...], dtype: Any, warpgroups: int) -> dict[str, Any]:
    """Tiles of keys and values on their way, in slots of `shape` (slots, keys, H), and the barriers
    that say when a slot is full and when all `warpgroups` have used it."""
    full = plgpu.Barrier(num_barriers=shape[0])
    empty = plgpu.Barrier(num_arrivals=warpgroups, num_barriers=shape[0])
    kinds = {"smem": smem(shape, dtype), "full": full, "empty": empty}
    return {f"{name}_{kind}": x for name in "kv" for kind, x in kinds.items()}


def registers(warpgroups: int) -> int:
    """A thread's registers in a warpgroup that computes, beside one that needs only 24.

    A block is given as many for each of its threads, two warpgroups and one 168: with more for the
    one, the others would wait for theirs for ever.
    """
    return min(240, (512 - 24) // warpgroups // 8 * 8)


def load_rows(ref: Any, batch: Any, first: Any) -> jax.Array:
    """64 values of an array in device memory, one a row of a tile."""
    return plgpu.load(ref.at[(*batch, pl.ds(first, ROWS))], layout=ROW, optimized=False)


def bring_keys(k_ref: Any, v_ref: Any, stop: Any, steps: Any, begun: Any, shared: dict) -> None:
    """The memory warpgroup's work: `steps` tiles of a head's keys and values, from the one before
    `stop` to the first, after the `begun` steps of other heads."""
    stages, keys = shared["k_smem"].shape[:2]

    @pl.loop(0, steps)
    def _bring(step: jax.Array) -> None:
        tile, slot = pl.ds((stop - 1 - step) * keys, keys), lax.rem(begun + step, stages)
        for name, ref in (("k", k_ref), ("v", v_ref)):
            until_used(shared[f"{name}_empty"], begun + step, stages)
            full = shared[f"{name}_full"].at[slot]
            plgpu.copy_gmem_to_smem(ref.at[tile], shared[f"{name}_smem"].at[slot], full)


def go_through(
    step: Callable, phases: list[tuple[Any, Any, Mask | None]], carry: Any
) -> tuple[jax.Array, ...]:
    """`step(number, carry, mask)` for the steps [first, stop) of each phase, with its mask."""
    for first, stop, mask in phases:
        carry = lax.fori_loop(first, stop, functools.partial(step, mask=mask), carry)
    return carry


def pass_by(first: Any, stop: Any, *pairs: tuple[Any, Any], stages: int) -> None:
    """Steps [first, stop) bring what a warpgroup needs nothing of; `pairs` are the barriers that
    say full and empty."""

    @pl.loop(first, stop)
    def _pass(step: jax.Array) -> None:
        slot = lax.rem(step, stages)
        for full, empty in pairs:
            plgpu.barrier_wait(full.at[slot])
            plgpu.barrier_arrive(empty.at[slot])


def until_used(empty: Any, step: Any, stages: int) -> None:
    """Waits until what a slot was filled with before `step` was used."""
    wait = functools.partial(plgpu.barrier_wait, empty.at[lax.rem(step, stages)])
    pl.when(step >= stages)(wait)


def drain(barriers: list[Any], count: Any, stages: int) -> None:
    """Waits until the last slots were used: no block may end with arrivals under way."""

    @pl.loop(lax.max(count - stages, 0), count)
    def _wait(step: jax.Array) -> None:
        for barrier in barriers:
            plgpu.barrier_wait(barrier.at[lax.rem(step, stages)])


def long_enough(x_BNT: jax.Array, queries: int, size: int) -> jax.Array:
    """Zeros at the end where there is none of the last block; what such a query adds is 0."""
    missing = pl.cdiv(queries, size) * size - x_BNT.shape[2]
    return jnp.pad(x_BNT, ((0, 0), (0, 0), (0, max(missing, 0))))


@contextlib.contextmanager
def interpreted(interpret: bool) -> Iterator[None]:
    """Runs the kernels called inside on a CPU, watched for races."""
    if not interpret:
        yield
        return
    hopper = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", platform="gpu", num_cores=132)
    with (
        jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=hopper)),
        plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)),
    ):
        yield
