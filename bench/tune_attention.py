"""Finds the fastest sizes of the attention kernels for this device: kernels/attention/tuning.json.

python -m bench.tune_attention --out=kernels/attention/tuning.json
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from apr_jax.files import write_json
from bench.attention import document_starts, seconds
from experiments import program
from kernels.attention.forward import forward
from kernels.attention.grad_kv import grad_kv
from kernels.attention.grad_q import grad_q
from kernels.attention.tiles import Problem
from kernels.attention.tuning import BackwardSizes, ForwardSizes

_OUT = flags.DEFINE_string("out", None, "The table to add this device to.", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds over all candidates; the median counts.")

# Head size: batch, tokens, query heads, key-value heads, as Qwen2.5-0.5B and 1.5B train.
SHAPES = {64: (4, 4096, 14, 2), 128: (4, 4096, 12, 2)}


def main() -> int:
    """Time every candidate, print them, write the table."""
    path = pathlib.Path(_OUT.value)
    table = json.loads(path.read_text()) if path.exists() else {}
    kind = jax.devices()[0].device_kind
    table.setdefault("otherwise", kind)
    table[kind] = {str(H): best_sizes(*shape, H) for H, shape in SHAPES.items()}
    write_json(path, table)
    return 0


def best_sizes(B: int, T: int, N: int, K: int, H: int) -> dict[str, dict[str, int]]:
    """By kernel, the fields of its fastest sizes."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, do = (
        jax.random.normal(key, (B, T, heads, H), jnp.bfloat16)
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    problem = Problem(causal=True, scale=H**-0.5, keys=T)
    row = jnp.zeros((B, N, T))
    of_queries = grid(BackwardSizes, (64, 128), (2, 3), (2, 3, 4))
    of_keys = grid(BackwardSizes, (64, 128), (2,), (2, 3, 4))
    candidates = {
        "forward": (forward, grid(ForwardSizes, (64, 128), (2, 3), (2, 3)), ()),
        "grad_q": (grad_q, of_queries, (q, do, row, None)),
        "grad_kv": (grad_kv, of_keys, (do, row, row)),
    }
    best = {}
    for name, (kernel, sizes, more) in candidates.items():
        arrays = (q, k, v, None, *more)

        def make(sizes: Any, kernel: Callable = kernel) -> Callable:
            return jax.jit(lambda *inputs: kernel(*inputs, problem, sizes))

        best[name] = dataclasses.asdict(fastest(f"{name}, H = {H}", make, sizes, arrays))
    start = jnp.asarray(document_starts(B, T))

    def packed(sizes: ForwardSizes) -> Callable:
        return jax.jit(lambda q, k, v: forward(q, k, v, start, problem, sizes))

    by_heads = [ForwardSizes(**best["forward"] | {"heads": heads}) for heads in (1, 2, 3, 4)]
    found = fastest(f"forward of packed rows, H = {H}", packed, by_heads, (q, k, v))
    best["forward"] = dataclasses.asdict(found)
    return best


def grid(kind: Callable, *values: tuple[int, ...]) -> list[Any]:
    """All combinations."""
    return [kind(*fields) for fields in itertools.product(*values)]


def fastest(name: str, make: Callable, candidates: Iterable[Any], arrays: tuple) -> Any:
    """The candidate with the smallest median time; what does not fit the device is told."""
    runs = {}
    for sizes in candidates:
        run = make(sizes)
        try:
            jax.block_until_ready(run(*arrays))
        except ValueError as error:  # Mosaic's word for too much shared memory
            print(f"{name}: {sizes} does not fit: {error}")
        else:
            runs[sizes] = run
    times = {
        sizes: np.median([seconds(run, arrays) for _ in range(_ROUNDS.value)])
        for sizes, run in runs.items()
    }
    for sizes, time in sorted(times.items(), key=lambda item: item[1]):
        print(f"{name}: {1e3 * time:.3f} ms {sizes}", flush=True)
    return min(times, key=times.__getitem__)


if __name__ == "__main__":
    program.run(main)
