"""Speed of the fused attention against cuDNN's, in the same process, turn by turn.

python -m bench.attention
Prints a table for bench/results.md: TFLOP/s of causal bfloat16 attention and the ratio of times.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import program
from kernels.attention import attention

_TURNS = flags.DEFINE_integer("turns", 15, "Turns of each kernel; the median is told.")
_CALLS = flags.DEFINE_integer("calls", 10, "Calls that are timed together in a turn.")

# name: batch, tokens, query heads, key-value heads, head size
SHAPES = {
    "0.5B": (8, 2048, 14, 2, 64),
    "0.5B, long": (2, 8192, 14, 2, 64),
    "1.5B": (4, 4096, 12, 2, 128),
    "7B": (2, 4096, 28, 4, 128),
    "7B, long": (1, 16384, 28, 4, 128),
}
PACKED = {
    "0.5B": (8, 4096, 14, 2, 64),
    "1.5B": (4, 4096, 12, 2, 128),
    "7B": (2, 4096, 28, 4, 128),
}


def main() -> int:
    """Both tables."""
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, bfloat16, causal")
    header("TFLOP/s", "cuDNN")
    for name, shape in SHAPES.items():
        print(f"| {name}: {', '.join(map(str, shape))} | {row(shape)} |", flush=True)
    header("packed rows, ms", "cuDNN on whole rows")
    for name, shape in PACKED.items():
        print(f"| {name}: {', '.join(map(str, shape))} | {packed_row(shape)} |", flush=True)
    return 0


def header(unit: str, peer: str) -> None:
    print(
        f"| {unit}: B, T, N, K, H | {peer} | ours | times | with gradients: {peer} | ours | times |"
    )
    print("|---|---|---|---|---|---|---|")


def row(shape: tuple[int, ...]) -> str:
    """Cells of the first table."""
    B, T, N, _, H = shape
    flops = 2 * B * N * T * T * H  # half of the two products: the causal half
    cells = []
    for grads, factor in ((False, 1.0), (True, 3.5)):
        cudnn, ours, ratio = race(shape, grads, None)
        cells += [f"{factor * flops / t / 1e12:.0f}" for t in (cudnn, ours)] + [f"{ratio:.2f}"]
    return " | ".join(cells)


def packed_row(shape: tuple[int, ...]) -> str:
    """Cells of the second table: documents of 200 to 2000 tokens against whole rows."""
    start_BT = jnp.asarray(document_starts(*shape[:2]))
    cells = []
    for grads in (False, True):
        cudnn, ours, ratio = race(shape, grads, start_BT)
        cells += [f"{1e3 * t:.2f}" for t in (cudnn, ours)] + [f"{ratio:.2f}"]
    return " | ".join(cells)


def document_starts(B: int, T: int) -> np.ndarray:
    """Rows of documents of 200 to 2000 tokens, the last one cut."""
    rng = np.random.default_rng(0)
    start_BT = np.zeros((B, T), np.int32)
    for row_T in start_BT:
        place = 0
        while place < T:
            length = int(rng.integers(200, 2001))
            row_T[place : place + length] = place
            place += length
    return start_BT


def race(
    shape: tuple[int, ...], grads: bool, start_BT: jax.Array | None
) -> tuple[float, float, float]:
    """Median seconds of cuDNN and of ours, and the median of cuDNN's over ours of a turn."""
    B, T, N, K, H = shape
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [
        jax.random.normal(key, (B, T, heads, H), jnp.bfloat16)
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    ]
    runs = [step("cudnn", grads, None), step("pallas", grads, start_BT)]
    for run in runs:
        jax.block_until_ready(run(*arrays))
    times = np.array([[seconds(run, arrays) for run in runs] for _ in range(_TURNS.value)])
    cudnn, ours = np.median(times, axis=0)
    return cudnn, ours, float(np.median(times[:, 0] / times[:, 1]))


def step(impl: str, grads: bool, start_BT: jax.Array | None) -> Callable:
    """Attention, or attention and its gradients."""

    def forward(*qkv: jax.Array) -> jax.Array:
        return attention(*qkv, segment_start_BT=start_BT, impl=impl)

    if not grads:
        return jax.jit(lambda q, k, v, do: forward(q, k, v))

    def both(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> tuple:
        out, pullback = jax.vjp(forward, q, k, v)
        return out, pullback(do)

    return jax.jit(both)


def seconds(run: Callable, arrays: list[jax.Array]) -> float:
    """Of one call among several that queue up."""
    begun = time.perf_counter()
    for _ in range(_CALLS.value):
        out = run(*arrays)
    jax.block_until_ready(out)
    return (time.perf_counter() - begun) / _CALLS.value


if __name__ == "__main__":
    program.run(main)
