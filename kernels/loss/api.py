"""The public function: refuses what does not go together, then chooses the size of chunks.

Letters in shapes: B batch, T position, M tokens (B * T), D model, V vocabulary.
"""

import math
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kernels.devices import alike, cut_by_compiler
from kernels.loss.chunked import chunked_cross_entropy
from kernels.loss.exponentials import ROWS, unsupported

IMPLEMENTATIONS = ("pallas", "xla")


def linear_cross_entropy(
    x_BTD: jax.Array,
    weight_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array | None = None,
    *,
    ignore_index: int | None = None,
    z_loss: float = 0.0,
    max_bytes: int = 1_000_000_000,
    impl: str,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of logits x @ W.T that are never all in memory.

    Gradients are computed along with the loss, when it is differentiated, so that nothing is
    computed twice: the head is multiplied as often as with all logits in memory. What has weight 0
    is in neither, even if its hidden state is not finite. `jax.grad` takes them once: for second
    derivatives multiply all logits out.

    Tokens that share a target are added to its row in an order that XLA fixes on GPUs only with
    XLA_FLAGS=--xla_gpu_deterministic_ops=true: without, the last bits of the gradient of
    `weight_VD` may differ from run to run, as those of any gathered row's do.

    Args:
      x_BTD: float32, bfloat16 or float16: what the head reads, and the dtype of its products.
      weight_VD: the head's rows, of any floating dtype; cast to that of `x_BTD` for the products.
        Its gradient is summed in float32.
      targets_BT: int32 rows of the head.
      weights_BT: float32 factor of each token in the sum; None is 1.
      ignore_index: tokens with this target have weight 0; None ignores none.
      z_loss: factor of the square of the log-normaliser, that keeps it near 0 (PaLM, section 5).
      max_bytes: that a chunk of tokens may take: its logits or softmax, and their gradient.
      impl: "xla" runs everywhere; "pallas" is a kernel for Hopper GPUs, in 16 bits.

    Returns:
      The sum over tokens of weight * (nats + z_loss * log_z²), float32; and the nats of each
      token, BT in float32, without gradient: 0 where ignored, NaN where the target is no row.
      Logits, softmax and sums are in float32.

    Raises:
      ValueError, TypeError: shapes, dtypes or arguments that do not go together.
      NotImplementedError: `impl` cannot run this here. Nothing falls back to another one.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is not one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    _check_types(x=x_BTD, weight=weight_VD, targets=targets_BT)
    if weights_BT is None:
        weights_BT = jnp.ones(targets_BT.shape, jnp.float32)
    _check_types(weights=weights_BT)
    _check_arrays(x_BTD, weight_VD, targets_BT, weights_BT)
    if isinstance(z_loss, jax.core.Tracer):
        raise TypeError("z_loss must be a number, not traced: close over it, or make it static")
    if not isinstance(z_loss, Real):
        raise TypeError(f"z_loss must be a number, not {z_loss!r}")
    if not (math.isfinite(z_loss) and z_loss >= 0):
        raise ValueError(f"z_loss={z_loss} must be a finite number, at least 0")
    if not (ignore_index is None or isinstance(ignore_index, Integral)):
        raise TypeError(f"ignore_index must be an integer or None, not {ignore_index!r}")
    if not isinstance(max_bytes, Integral):
        raise TypeError(f"max_bytes must be an integer, not {max_bytes!r}")
    (B, T, D), V = x_BTD.shape, weight_VD.shape[0]
    if impl == "pallas" and (reason := unsupported(x_BTD.dtype, V, D)):
        raise NotImplementedError(f"impl='pallas' {reason}; use impl='xla'")
    chunk_size = _chunk_size(B * T, max_bytes // _bytes_per_token(x_BTD.dtype, V, impl), impl)

    def run(
        x_BTD: jax.Array, weight_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if ignore_index is None:
            ignored_BT = jnp.zeros((B, T), bool)
        else:
            ignored_BT = targets_BT == ignore_index
        arrays = alike(
            x_BTD.reshape(B * T, D),
            weight_VD,
            jnp.where(ignored_BT, 0, targets_BT).reshape(B * T),
            jnp.where(ignored_BT, 0, weights_BT).reshape(B * T),
        )
        loss, nats_M = chunked_cross_entropy(*arrays, z_loss, chunk_size, impl)
        return loss, jax.lax.stop_gradient(jnp.where(ignored_BT, 0, nats_M.reshape(B, T)))

    specs = (PartitionSpec(), jax.typeof(targets_BT).sharding.spec)
    loss, nats_BT = cut_by_compiler(run, (x_BTD, weight_VD, targets_BT, weights_BT), specs)
    return loss, nats_BT


def _bytes_per_token(dtype: jnp.dtype, num_rows: int, impl: str) -> int:
    """That a token takes while its chunk goes through the head."""
    # The kernel's logits stay on the chip.
    return num_rows * (dtype.itemsize if impl == "pallas" else 4 + dtype.itemsize)


def _chunk_size(num_tokens: int, largest: int, impl: str) -> int:
    """Tokens of a chunk, at most `largest`: all chunks alike, with little to fill up."""
    num_tokens = max(num_tokens, 1)
    if impl == "xla" and num_tokens <= largest:
        return num_tokens
    tile = ROWS if impl == "pallas" else min(128, 1 << max(largest, 1).bit_length() - 1)
    if largest < tile:
        raise ValueError(f"max_bytes holds {largest} tokens, impl={impl!r} needs {tile}")
    fewest = -(-num_tokens // (largest // tile * tile))
    sizes = [-(-num_tokens // (n * tile)) * tile for n in range(fewest, 2 * fewest + 1)]
    return min(sizes, key=lambda size: -(-num_tokens // size) * size)


def _check_types(**arrays: Any) -> None:
    for name, array in arrays.items():
        if not isinstance(array, jax.Array | np.ndarray):
            raise TypeError(f"{name} must be an array, not {type(array).__name__}")


def _check_arrays(
    x_BTD: jax.Array, weight_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> None:
    shapes = (
        f"x {x_BTD.shape}, weight {weight_VD.shape}, targets {targets_BT.shape}, "
        f"weights {weights_BT.shape}"
    )
    if x_BTD.ndim != 3 or weight_VD.ndim != 2:
        raise ValueError(
            f"x needs the axes [batch, position, model], weight [vocabulary, model]: {shapes}"
        )
    if not len(weight_VD):
        raise ValueError(f"weight needs at least one row: {shapes}")
    if x_BTD.shape[2] != weight_VD.shape[1]:
        raise ValueError(f"x and weight differ in the size of the model: {shapes}")
    if not targets_BT.shape == weights_BT.shape == x_BTD.shape[:2]:
        raise ValueError(f"targets and weights need one value for each token of x: {shapes}")
    if x_BTD.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise TypeError(f"x must be float32, bfloat16 or float16, not {x_BTD.dtype}")
    if not jnp.issubdtype(weight_VD.dtype, jnp.floating):
        raise TypeError(f"weight must be floating, not {weight_VD.dtype}")
    if targets_BT.dtype != jnp.int32:
        raise TypeError(f"targets must be int32, not {targets_BT.dtype}")
    if weights_BT.dtype != jnp.float32:
        raise TypeError(f"weights must be float32, not {weights_BT.dtype}")
