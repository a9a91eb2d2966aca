"""Speed of loading a model onto the device, beside moving the same bytes there from memory.

python -m bench.load
Prints the rows of the table in bench/results.md.
"""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from apr_jax.codec import open_apr
from apr_jax.model import load_model, to_tree
from bench.shapes import QWEN2_5_0_5B, write_random_model
from experiments import program

_TURNS = flags.DEFINE_integer("turns", 9, "Turns that every way takes; the median counts.")


def main() -> int:
    """Time the ways turn by turn and print a row each; the page cache is warm."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.apr"
        write_random_model(path, QWEN2_5_0_5B)
        with open_apr(path) as file:
            in_memory = to_tree({name: np.array(file.read(name)) for name in file.names})
        size = sum(array.nbytes for array in jax.tree.leaves(in_memory))

        def view() -> Any:
            with open_apr(path) as file:
                return jax.device_put({name: file.read(name) for name in file.names})

        ways: dict[str, Callable[[], Any]] = {
            "jax.device_put of arrays in memory": lambda: jax.device_put(in_memory),
            "jax.device_put of what open_apr reads": view,
            "load_model, as stored": lambda: load_model(path, param_dtype=jnp.bfloat16)[1],
            "load_model, to float32": lambda: load_model(path)[1],
        }
        seconds = _times(ways)
    print(f"{jax.devices()[0].device_kind}, {size / 1e9:.2f} GB of bfloat16")
    print("| way | time | over jax.device_put |")
    print("|---|---|---|")
    base = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"| {name} | {1e3 * middle:,.0f} ms | {middle / base:.2f} |")
    return 0


def _times(ways: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    for way in ways.values():
        jax.block_until_ready(way())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_TURNS.value):
        for name, way in ways.items():
            start = time.perf_counter()
            result = jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - start)
            del result
    return seconds


if __name__ == "__main__":
    program.run(main)
