"""Speed of the codec beside its peers, on the same data in one run, turn by turn.

python -m bench.codec
Prints the rows of the table in bench/results.md.
"""

import dataclasses
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from apr_jax.codec.compare import same_bits
from apr_jax.codec.quantised import decode, encode
from experiments import program

_ROWS = flags.DEFINE_integer("rows", 8192, "Rows of the matrix of 1024 columns that is decoded.")
_TURNS = flags.DEFINE_integer("turns", 7, "Turns that ours and the peer take; the best counts.")

_COLUMNS = 1024


@dataclasses.dataclass(frozen=True)
class Contest:
    """One row: two ways from the same input to the same array."""

    task: str
    peer: str
    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray]


def main() -> int:
    """Time every contest and print its row."""
    print("| task | ours | peer | peer's time over ours | memory beside the result: ours, peer |")
    print("|---|---|---|---|---|")
    for contest in _decoding():
        print(_row(contest))
    return 0


def _decoding() -> Iterator[Contest]:
    """Quantised blocks to float32, beside the NumPy code of the `gguf` package."""
    shape = (_ROWS.value, _COLUMNS)
    weights = np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    for dtype in ("Q4_K", "Q6_K"):
        stored = encode(dtype, weights)

        def ours(dtype: str = dtype, stored: np.ndarray = stored) -> np.ndarray:
            return decode(dtype, stored, shape).reshape(shape)

        def theirs(dtype: str = dtype, stored: np.ndarray = stored) -> np.ndarray:
            return dequantize(stored.reshape(shape[0], -1), GGMLQuantizationType[dtype])

        yield Contest(f"decode {dtype}, {list(shape)}", "gguf", ours, theirs)


def _row(contest: Contest) -> str:
    result = contest.ours()
    if not same_bits(result, contest.theirs()):
        raise AssertionError(f"{contest.task}: {contest.peer} gives other values")
    ours, theirs = [], []
    for _ in range(_TURNS.value):
        ours.append(_seconds(contest.ours))
        theirs.append(_seconds(contest.theirs))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    size = result.nbytes
    return (
        f"| {contest.task} | {size / min(ours) / 1e9:.2f} GB/s | {contest.peer}: "
        f"{size / min(theirs) / 1e9:.2f} GB/s | {min(theirs) / min(ours):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {_extra(contest.ours, size):.1f} MB, {_extra(contest.theirs, size):.1f} MB |"
    )


def _seconds(work: Callable[[], np.ndarray]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _extra(work: Callable[[], np.ndarray], result_bytes: int) -> float:
    """Megabytes at the peak beyond the result's own."""
    tracemalloc.start()
    try:
        work()
        return (tracemalloc.get_traced_memory()[1] - result_bytes) / 1e6
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    program.run(main)
