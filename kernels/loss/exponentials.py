"""The head's product on Hopper's tensor cores, exponentiated before it leaves the chip.

A product of x and W is made tile by tile in registers. There each logit becomes its exponential,
less the token's shift, so that 16 bits an element are written where logits would take 32 bits and
be read again, twice; and each row of a tile, 128 logits, gives its log-normaliser.

Three warpgroups: one brings tiles of x and W to shared memory, two multiply, 128 tokens each.

Letters in shapes: C tokens, D model, V vocabulary, R tiles of the vocabulary (V / 128).
"""

import functools
import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from kernels.devices import alike, is_hopper

COLUMNS = 128  # of a tile: logits that share a normaliser
ROWS = 256  # of a tile: tokens
HALF = ROWS // 2  # of a warpgroup
DEPTH = 64  # of the tiles of x and W that are multiplied at a time: 128 bytes, a swizzle's width
STAGES = 4  # such tiles in shared memory
STORED = (64, 32)  # of a warpgroup's softmaxes on their way out, in two slots
SNAKE = 8  # tiles of tokens that take turns on the same tiles of W, which stay in the cache

ROW = plgpu.Layout.WGMMA.reduce(1)  # of registers: one value a row of a tile
_LOG2_E = math.log2(math.e)


def unsupported(x_dtype: Any, vocabulary: int, model: int) -> str | None:
    """Why this kernel cannot run here or on such arrays; None if it can."""
    if not is_hopper():
        return "needs a GPU of the Hopper generation (compute capability 9.0)"
    if x_dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 or float16, not in {jnp.dtype(x_dtype).name}"
    if vocabulary % COLUMNS:
        return f"needs a multiple of {COLUMNS} rows of the head, not {vocabulary:,}"
    if model % DEPTH:
        return f"needs rows whose size is a multiple of {DEPTH}, not {model:,}"
    return None


def exponentials(
    x_CD: jax.Array, head_VD: jax.Array, shift_C: jax.Array, targets_C: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """exp(logits - shift) for the logits x @ W.T, but 0 at each token's target; and their sums.

    Args:
      x_CD, head_VD: alike in dtype, as `unsupported` wants them; C a multiple of `ROWS`.
      shift_C: float32; where it is so far below the largest logit that exponentials overflow,
        the sums are infinite.
      targets_C: int32 rows of the head.

    Returns:
      CV in the dtype of x; C in float32.
    """
    sums_RC, powers_CV = _tiles(x_CD, head_VD, targets_C, shift_C)
    return powers_CV, jnp.sum(sums_RC, axis=0)


def log_normalisers(x_CD: jax.Array, head_VD: jax.Array, targets_C: jax.Array) -> jax.Array:
    """Of all logits but each token's target, whatever their size: C in float32."""
    (log_rest_RC,) = _tiles(x_CD, head_VD, targets_C)
    return jax.nn.logsumexp(log_rest_RC, axis=0)


def _tiles(
    x_CD: jax.Array, head_VD: jax.Array, targets_C: jax.Array, *shift_C: jax.Array
) -> tuple[jax.Array, ...]:
    """With a shift the tiles' sums of exponentials RC, and these; else their log-normalisers RC."""
    (C, D), V = x_CD.shape, head_VD.shape[0]
    outputs = [jax.ShapeDtypeStruct((V // COLUMNS, C), jnp.float32)]
    if shift_C:
        outputs.append(jax.ShapeDtypeStruct((C, V), x_CD.dtype))
    # Whether a warpgroup's part of a tile has a target: few have.
    none, targets_C = alike(jnp.zeros((C // HALF, V // COLUMNS), jnp.int32), targets_C)
    hits = none.at[jnp.arange(C) // HALF, targets_C // COLUMNS].set(1)
    found = plgpu.kernel(
        functools.partial(_kernel, depth=D),
        out_type=outputs,
        grid=(_num_cores(),),
        grid_names=("core",),
        num_threads=3,
        thread_name="warpgroup",
        kernel_name="head_exponentials" if shift_C else "head_log_normalisers",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(x_CD, head_VD, targets_C, hits, *shift_C)
    return alike(*found, x_CD)[:-1]


def _kernel(
    x_gmem: Any, head_gmem: Any, targets_gmem: Any, hits_gmem: Any, *more: Any, depth: int
) -> None:
    shift_gmem, rows_gmem, powers_gmem = more if len(more) == 3 else (None, *more, None)
    tiles = x_gmem.shape[0] // ROWS, head_gmem.shape[0] // COLUMNS
    transforms = _transforms(DEPTH)

    def pipeline(body: Any, context: Any) -> Any:
        return plgpu.emit_pipeline_warp_specialized(
            body,
            grid=(depth // DEPTH,),
            memory_registers=40,
            in_specs=[
                plgpu.BlockSpec(
                    (rows, DEPTH),
                    lambda step: (0, step),
                    transforms=transforms,
                    memory_space=plgpu.SMEM,
                )
                for rows in (ROWS, COLUMNS)
            ],
            wg_axis="warpgroup",
            num_compute_wgs=2,
            max_concurrent_steps=STAGES,
            compute_context=context,
        )

    @functools.partial(
        pl.run_scoped,
        buffers=pipeline(_nothing, _nothing).get_allocations(x_gmem, head_gmem),
        stored_smem=plgpu.SMEM((2, 2, *STORED), x_gmem.dtype, transforms=_transforms(STORED[1])),
        rows_smem=plgpu.SMEM((2, HALF), jnp.float32),
        collective_axes="warpgroup",
    )
    def _(buffers: Any, stored_smem: Any, rows_smem: Any) -> None:
        half = jax.lax.axis_index("warpgroup")
        half_rows = pl.ds(half * HALF, HALF)

        @plgpu.nd_loop((math.prod(tiles),), collective_axes="core")
        def _(loop: plgpu.NDLoopInfo) -> None:
            row, column = plgpu.planar_snake(loop.index[0], tiles, 0, SNAKE)
            rows, columns = pl.ds(row * ROWS, ROWS), pl.ds(column * COLUMNS, COLUMNS)

            def multiply(_: Any, x_smem: Any, head_smem: Any, logits_ref: Any) -> Any:
                plgpu.wgmma(logits_ref, x_smem.at[half_rows], head_smem.transpose((1, 0)))
                plgpu.wgmma_wait(0)
                return logits_ref

            def finish(run_pipeline: Any) -> None:
                def per_row(gmem: Any) -> jax.Array:
                    return plgpu.load(gmem.at[rows].at[half_rows], layout=ROW, optimized=False)

                shift = None if shift_gmem is None else per_row(shift_gmem)
                has_target = hits_gmem[2 * row + half, column] > 0
                targets = per_row(targets_gmem) - column * COLUMNS
                dtype = None if powers_gmem is None else powers_gmem.dtype
                of_rows, *powers = pl.run_scoped(
                    functools.partial(_finish, run_pipeline, has_target, targets, shift, dtype),
                    plgpu.ACC((HALF, COLUMNS), jnp.float32),
                )
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                rows_smem[half] = of_rows
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(
                    rows_smem.at[half], rows_gmem.at[column, rows].at[half_rows]
                )
                if powers_gmem is not None:
                    _store(
                        powers[0],
                        stored_smem.at[half],
                        powers_gmem.at[rows, columns].at[half_rows],
                    )

            pipeline(multiply, finish)(
                x_gmem.at[rows, :], head_gmem.at[columns, :], allocations=buffers
            )

        plgpu.wait_smem_to_gmem(0)


def _finish(
    run_pipeline: Any,
    has_target: jax.Array,
    targets: jax.Array,
    shift: jax.Array | None,
    dtype: Any,
    logits_ref: Any,
) -> tuple[jax.Array, ...]:
    """Of a tile, less its targets, each row's log-normaliser; with a shift each row's sum of
    exponentials, and these in `dtype`.

    In base 2, for which there is an instruction.
    """
    run_pipeline(logits_ref)
    # Most tiles have no target, and do without the comparison.
    logits = jax.lax.cond(has_target, _without, lambda x, _: x, logits_ref[...], targets)
    logits = logits * _LOG2_E
    top = logits.max(axis=1) if shift is None else shift * _LOG2_E
    powers = jnp.exp2(logits - jax.lax.broadcast_in_dim(top, logits.shape, [0]))
    total = powers.sum(axis=1)
    if shift is None:
        return ((top + jnp.log2(total)) * math.log(2),)
    return total, powers.astype(dtype)


def _without(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-inf where the column is the row's target."""
    columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    is_target = columns == jax.lax.broadcast_in_dim(targets, logits.shape, [0])
    return jnp.where(is_target, -jnp.inf, logits)


def _store(tile: jax.Array, slots_smem: Any, gmem: Any) -> None:
    """Write `tile` to `gmem` piece by piece, through two slots that take turns."""
    height, width = STORED
    for number, (row, column) in enumerate(
        (row, column)
        for row in range(0, tile.shape[0], height)
        for column in range(0, tile.shape[1], width)
    ):
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
        slots_smem[number % 2] = tile[row : row + height, column : column + width]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(
            slots_smem.at[number % 2], gmem.at[pl.ds(row, height), pl.ds(column, width)]
        )


def _transforms(width: int) -> tuple[Any, ...]:
    """How tensor cores want rows of `width` 16-bit elements in shared memory."""
    swizzle: Any = plgpu.SwizzleTransform  # both are Protocols to mypy
    tiling: Any = plgpu.TilingTransform
    return tiling((8, width)), swizzle(2 * width)


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for what does not matter when a pipeline is asked for its allocations."""


def _num_cores() -> int:
    if jax.default_backend() == "gpu":
        return jax.devices()[0].core_count
    return jax.sharding.get_abstract_mesh().abstract_device.num_cores
