"""Speed of the codec beside its peers, on the same data in one run, turn by turn.

python -m bench.codec
Prints the rows of the table in bench/results.md.
"""

import dataclasses
import os
import pathlib
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from absl import flags
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from apr_jax.codec import import_checkpoint, open_apr, write_apr
from apr_jax.codec.compare import same_bits
from apr_jax.codec.quantised import decode, encode
from apr_jax.files import write_json
from bench.shapes import QWEN2_5_0_5B as CONFIG
from experiments import program

_ROWS = flags.DEFINE_integer("rows", 8192, "Rows of the matrix of 1024 columns that is decoded.")
_TURNS = flags.DEFINE_integer("turns", 7, "Turns that ours and the peer take; the best counts.")
_TASK = flags.DEFINE_string("task", "", "Only the rows whose task holds this text.")
_FOLDER = flags.DEFINE_string(
    "folder", None, "Where the files of 1 GB go, four at once; unset for the system's folder."
)

_COLUMNS = 1024
_NOTHING = np.empty(0)
_Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Contest:
    """One row: two ways to the same. What they return is compared, and no part of their memory."""

    task: str
    peer: str
    nbytes: int  # that either way goes through; 0 where it is to depend on no size
    ours: Callable[[], _Arrays]
    theirs: Callable[[], _Arrays]


def main() -> int:
    """Time every contest and print its row."""
    print("| task | ours | peer | peer's time over ours | memory beside the result: ours, peer |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        for contests in (_decoding(), _files(pathlib.Path(folder))):
            for contest in contests:
                if _TASK.value in contest.task:
                    print(_row(contest), flush=True)
    return 0


def _decoding() -> Iterator[Contest]:
    """Quantised blocks to float32, beside the NumPy code of the `gguf` package."""
    shape = (_ROWS.value, _COLUMNS)
    weights = np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    for dtype in ("Q4_K", "Q6_K"):
        stored = encode(dtype, weights)

        def ours(dtype: str = dtype, stored: np.ndarray = stored) -> _Arrays:
            return {"values": decode(dtype, stored, shape).reshape(shape)}

        def theirs(dtype: str = dtype, stored: np.ndarray = stored) -> _Arrays:
            rows = stored.reshape(shape[0], -1)
            return {"values": dequantize(rows, GGMLQuantizationType[dtype])}

        yield Contest(f"decode {dtype}, {list(shape)}", "gguf", weights.nbytes, ours, theirs)


def _files(folder: pathlib.Path) -> Iterator[Contest]:
    """A bfloat16 model of 1 GB between disk and memory; the page cache is warm, writes are synced.

    The peers of reading and writing are those of safetensors, the peer of an import is `cp`.
    """
    model = folder / "hf"
    model.mkdir()
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(spec.shape, np.float32).astype(ml_dtypes.bfloat16)
        for name, spec in CONFIG.tensors().items()
    }
    write_json(model / "config.json", CONFIG.to_hf("bfloat16"))
    shard, apr = model / "model.safetensors", folder / "model.apr"
    save_file(tensors, shard)
    import_checkpoint(model, apr)
    size = sum(array.nbytes for array in tensors.values())

    def open_ours() -> _Arrays:
        with open_apr(apr) as file:
            assert file.metadata
            return dict.fromkeys(file.names, _NOTHING)

    def open_theirs() -> _Arrays:
        with safe_open(shard, framework="numpy") as file:
            file.metadata()
            return dict.fromkeys(file.keys(), _NOTHING)

    def read_ours() -> _Arrays:
        with open_apr(apr) as file:
            return {name: file.read(name) for name in file.names}

    def write_theirs() -> _Arrays:
        save_file(tensors, folder / "peer.safetensors")
        return _synced(folder / "peer.safetensors")

    def write_ours() -> _Arrays:
        write_apr(folder / "ours.apr", tensors, CONFIG.to_apr())
        return {}

    def copy() -> _Arrays:
        subprocess.run(["cp", shard, folder / "peer.safetensors"], check=True)
        return _synced(folder / "peer.safetensors")

    def import_ours() -> _Arrays:
        import_checkpoint(model, folder / "ours.apr")
        return {}

    yield Contest("open 1 GB and its metadata", "safe_open", 0, open_ours, open_theirs)
    yield Contest(
        "read all tensors of 1 GB", "load_file", size, read_ours, lambda: load_file(shard)
    )
    yield Contest(
        "read them and add up their words",
        "load_file",
        size,
        lambda: _touched(read_ours()),
        lambda: _touched(load_file(shard)),
    )
    yield Contest("write 1 GB", "save_file", size, write_ours, write_theirs)
    yield Contest("import 1 GB, verified", "cp", size, import_ours, copy)


def _touched(arrays: _Arrays) -> _Arrays:
    return {name: np.sum(array.view(np.uint16), dtype=np.uint64) for name, array in arrays.items()}


def _synced(path: pathlib.Path) -> _Arrays:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return {}


def _row(contest: Contest) -> str:
    _require_same(contest)
    ours, theirs = [], []
    for _ in range(_TURNS.value):
        ours.append(_seconds(contest.ours))
        theirs.append(_seconds(contest.theirs))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return (
        f"| {contest.task} | {_pace(contest, min(ours))} | {contest.peer}: "
        f"{_pace(contest, min(theirs))} | {min(theirs) / min(ours):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {_extra(contest.ours):.1f} MB, {_extra(contest.theirs):.1f} MB |"
    )


def _pace(contest: Contest, seconds: float) -> str:
    rate = f", {contest.nbytes / seconds / 1e9:,.2f} GB/s" if contest.nbytes else ""
    return f"{seconds * 1e3:,.1f} ms{rate}"


def _require_same(contest: Contest) -> None:
    ours, theirs = contest.ours(), contest.theirs()
    same = ours.keys() == theirs.keys()
    if not same or not all(same_bits(ours[name], theirs[name]) for name in ours):
        raise AssertionError(f"{contest.task}: {contest.peer} gives other values")


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    del result  # letting go of a gigabyte is not part of the work
    return seconds


def _extra(work: Callable[[], _Arrays]) -> float:
    """Megabytes at the peak beyond what remains with the result."""
    tracemalloc.start()
    try:
        result = work()
        remaining, peak = tracemalloc.get_traced_memory()
        del result
        return (peak - remaining) / 1e6
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    program.run(main)
