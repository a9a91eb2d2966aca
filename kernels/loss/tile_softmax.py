"""The head's product on Hopper's tensor cores, turned into softmaxes before it leaves the chip.

A product of x and W is made tile by tile in registers. There each row of a tile, 128 logits,
becomes a softmax of its own and its log-normaliser, so that 16 bits an element are written where
logits would take 32 bits and be read again, twice. Softmaxes of tiles and of whole rows differ by
one factor a tile: with z the log-normaliser of a row and z_r that of its tile r, exp(z_r - z).

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

COLUMNS = 128  # of a tile: logits that share a normaliser
ROWS = 256  # of a tile: tokens, two warpgroups of half as many
DEPTH = 64  # of the tiles of x and W that are multiplied at a time: 128 bytes, a swizzle's width
STAGES = 4  # such tiles in shared memory
STORED = (64, 32)  # of a warpgroup's softmaxes on their way out, in two slots
SNAKE = 8  # tiles of tokens that take turns on the same tiles of W, which stay in the cache

_LOG2_E = math.log2(math.e)


def unsupported(x_dtype: Any, vocabulary: int, model: int) -> str | None:
    """Why this kernel cannot run here or on such arrays; None if it can."""
    if not _is_hopper():
        return "needs a GPU of the Hopper generation (compute capability 9.0)"
    if x_dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 or float16, not in {jnp.dtype(x_dtype).name}"
    if vocabulary % COLUMNS:
        return f"needs a multiple of {COLUMNS} rows of the head, not {vocabulary:,}"
    if model % DEPTH:
        return f"needs rows whose size is a multiple of {DEPTH}, not {model:,}"
    return None


def tile_softmax(
    x_CD: jax.Array, head_VD: jax.Array, *, probabilities: bool
) -> tuple[jax.Array | None, jax.Array]:
    """Softmaxes over each 128 of the logits x @ W.T, and their log-normalisers.

    Args:
      x_CD, head_VD: alike in dtype, as `unsupported` wants them; C a multiple of `ROWS`.
      probabilities: whether the softmaxes are wanted, or the log-normalisers alone.

    Returns:
      The softmaxes, CV in the dtype of x, or None; the log-normalisers, RC in float32.
    """
    (C, D), V = x_CD.shape, head_VD.shape[0]
    outputs = [jax.ShapeDtypeStruct((V // COLUMNS, C), jnp.float32)]
    if probabilities:
        outputs.append(jax.ShapeDtypeStruct((C, V), x_CD.dtype))
    log_z_RC, *softmax_CV = plgpu.kernel(
        functools.partial(_kernel, depth=D, dtype=x_CD.dtype),
        out_type=outputs,
        grid=(_num_cores(),),
        grid_names=("core",),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(x_CD, head_VD)
    return (softmax_CV[0] if probabilities else None), log_z_RC


def _kernel(
    x_gmem: Any, head_gmem: Any, log_z_gmem: Any, *softmax_gmem: Any, depth: int, dtype: Any
) -> None:
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
        stored_smem=plgpu.SMEM((2, 2, *STORED), dtype, transforms=_transforms(STORED[1])),
        log_z_smem=plgpu.SMEM((2, ROWS // 2), jnp.float32),
        collective_axes="warpgroup",
    )
    def _(buffers: Any, stored_smem: Any, log_z_smem: Any) -> None:
        half = jax.lax.axis_index("warpgroup")
        half_rows = pl.ds(half * (ROWS // 2), ROWS // 2)

        @plgpu.nd_loop((math.prod(tiles),), collective_axes="core")
        def _(loop: plgpu.NDLoopInfo) -> None:
            row, column = plgpu.planar_snake(loop.index[0], tiles, 0, SNAKE)
            rows, columns = pl.ds(row * ROWS, ROWS), pl.ds(column * COLUMNS, COLUMNS)

            def multiply(_: Any, x_smem: Any, head_smem: Any, logits_ref: Any) -> Any:
                plgpu.wgmma(logits_ref, x_smem.at[half_rows], head_smem.transpose((1, 0)))
                plgpu.wgmma_wait(0)
                return logits_ref

            def finish(run_pipeline: Any) -> None:
                softmax, log_z = pl.run_scoped(
                    functools.partial(_softmax, run_pipeline),
                    plgpu.ACC((ROWS // 2, COLUMNS), jnp.float32),
                )
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                log_z_smem[half] = log_z
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(
                    log_z_smem.at[half], log_z_gmem.at[column, rows].at[half_rows]
                )
                for gmem in softmax_gmem:
                    _store(
                        softmax.astype(dtype),
                        stored_smem.at[half],
                        gmem.at[rows, columns].at[half_rows],
                    )

            pipeline(multiply, finish)(
                x_gmem.at[rows, :], head_gmem.at[columns, :], allocations=buffers
            )

        plgpu.wait_smem_to_gmem(0)


def _softmax(run_pipeline: Any, logits_ref: Any) -> tuple[jax.Array, jax.Array]:
    """Of each row of a tile, in base 2, for which there is an instruction."""
    run_pipeline(logits_ref)
    logits = logits_ref[...] * _LOG2_E
    largest = logits.max(axis=1)
    powers = jnp.exp2(logits - jax.lax.broadcast_in_dim(largest, logits.shape, [0]))
    total = powers.sum(axis=1)
    softmax = powers * jax.lax.broadcast_in_dim(1 / total, logits.shape, [0])
    return softmax, (largest + jnp.log2(total)) * math.log(2)


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


def _is_hopper() -> bool:
    if jax.default_backend() == "gpu":
        return jax.devices()[0].compute_capability == "9.0"
    device = jax.sharding.get_abstract_mesh().abstract_device  # that kernels are interpreted for
    return device is not None and "H100" in device.device_kind


def _num_cores() -> int:
    if jax.default_backend() == "gpu":
        return jax.devices()[0].core_count
    return jax.sharding.get_abstract_mesh().abstract_device.num_cores
