"""Speed of encode_corpus from one file of JSON lines to shards, by the number of workers.

python -m bench.encode --corpus=FOLDER
Prints a table. The runs take turns; each starts its processes and
loads the tokenizer anew, which counts. What is encoded is Qwen2.5's vocabulary on distinct files.
"""

import json
import os
import pathlib
import resource
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator

from absl import flags

from apr_jax.text.corpus import CorpusConfig, encode_corpus
from apr_jax.text.workers import default_count
from bench.vocabularies import qwen_tokenizer_json
from experiments import program

_CORPUS = flags.DEFINE_string(
    "corpus", None, "Folder whose files are encoded; unset for the standard library."
)
_SUFFIXES = flags.DEFINE_list("suffixes", [".py", ".pyi"], "Endings of the files' names.")
_MEGABYTES = flags.DEFINE_float("megabytes", 500.0, "Most text that is taken, in millions.")
_WORKERS = flags.DEFINE_list("workers", None, "Numbers of workers; unset for 1 and every core.")
_TURNS = flags.DEFINE_integer("turns", 3, "Turns that every number takes; the median counts.")


def main() -> int:
    """Encode in turns and print a row for each number of workers."""
    counts = [int(count) for count in _WORKERS.value or sorted({1, default_count()})]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "tokenizer.json").write_text(json.dumps(qwen_tokenizer_json()), encoding="utf-8")
        with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(_lines())
        size = (folder / "corpus.jsonl").stat().st_size
        turns = [{count: _encode(folder, count) for count in counts} for _ in range(_TURNS.value)]
    print(
        f"{size / 1e6:,.0f} MB of JSON lines, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print("| workers | seconds | MB/s | over the first | CPU seconds |")
    print("|---|---|---|---|---|")
    for count in counts:
        seconds = statistics.median(turn[count][0] for turn in turns)
        ratio = statistics.median(turn[counts[0]][0] / turn[count][0] for turn in turns)
        busy = statistics.median(turn[count][1] for turn in turns)
        rate = size / 1e6 / seconds
        print(f"| {count} | {seconds:.1f} | {rate:.1f} | {ratio:.2f} | {busy:.1f} |")
    return 0


def _lines() -> Iterator[str]:
    folder = pathlib.Path(_CORPUS.value or sysconfig.get_path("stdlib"))
    left = _MEGABYTES.value * 1e6
    for path in sorted(folder.rglob("*")):
        if path.suffix not in _SUFFIXES.value or not path.is_file():
            continue
        line = json.dumps({"content": path.read_text("utf-8", "replace")}) + "\n"
        left -= len(line)
        if left < 0:
            return
        yield line


def _encode(folder: pathlib.Path, workers: int) -> tuple[float, float]:
    """Seconds by the clock, and of all processes."""
    start, busy = time.perf_counter(), _busy()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        encode_corpus(
            CorpusConfig(
                inputs=(str(folder / "corpus.jsonl"),),
                tokenizer=str(folder / "tokenizer.json"),
                out=out,
                workers=workers,
            )
        )
        return time.perf_counter() - start, _busy() - busy


def _busy() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    program.run(main)
