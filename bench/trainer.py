"""Speed and memory of learning a byte-level vocabulary beside HuggingFace's trainer, turn by turn.

python -m bench.trainer
Prints the rows of the table in bench/results.md. Everybody learns in a process of its own, from
documents that are in memory; the merges must be the same.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator

import tokenizers
from absl import flags

from apr_jax.errors import UserError
from apr_jax.text.documents import read_documents
from apr_jax.text.pretokenizers import PATTERNS
from apr_jax.text.trainer import train_byte_level_bpe
from apr_jax.text.words import count_words
from experiments import program

_INPUT = flags.DEFINE_string(
    "input", None, "JSONL or folder to learn from; unset for what this Python has installed."
)
_MEGABYTES = flags.DEFINE_integer("megabytes", 100, "How much of it, in megabytes of UTF-8.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 32768, "Tokens to learn.")
_PRETOKENIZER = flags.DEFINE_enum(
    "pretokenizer", "qwen2", [*PATTERNS.values(), "none"], "none: a document is one word."
)
_TURNS = flags.DEFINE_integer("turns", 3, "Turns that everybody takes; the best counts.")

_SUFFIXES = (".py", ".pyi", ".md", ".rst", ".txt", ".h")
_SPECIAL = ["<|endoftext|>"]
_Learn = Callable[[list[str], int, str], str]


@dataclasses.dataclass(frozen=True)
class Result:
    """One turn: seconds of the clock and of all cores, memory beside the documents, the merges."""

    seconds: float
    cpu_seconds: float
    megabytes: float
    merges: str


def main() -> int:
    """Let everybody learn, and print a row for each."""
    everybody = {
        "apr-jax, one thread": (_ours, 1),
        "tokenizers, one thread": (_theirs, 1),
        "tokenizers, two threads": (_theirs, 2),
    }
    results: dict[str, list[Result]] = {name: [] for name in everybody}
    with tempfile.TemporaryDirectory() as folder:
        corpus = pathlib.Path(folder) / "corpus.jsonl"
        _write(corpus)
        for _ in range(_TURNS.value):
            for name, (learn, threads) in everybody.items():
                results[name].append(_in_a_process(learn, threads, corpus))
    merges = {result.merges for turns in results.values() for result in turns}
    if len(merges) > 1:
        raise AssertionError("the merges are not the same")
    print(
        "| trainer | seconds | CPU seconds | memory | its time over ours |\n|---|---|---|---|---|"
    )
    ours = next(iter(results.values()))
    for name, turns in results.items():
        print(_row(name, turns, ours))
    return 0


def _ours(documents: list[str], vocab_size: int, pretokenizer: str) -> str:
    words = count_words(documents, pretokenizer=None if pretokenizer == "none" else pretokenizer)
    root = train_byte_level_bpe(words, vocab_size, special_tokens=_SPECIAL).to_tokenizer_json()
    return json.dumps(root["model"]["merges"])


def _theirs(documents: list[str], vocab_size: int, pretokenizer: str) -> str:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
            for pattern, name in PATTERNS.items()
            if name == pretokenizer
        ]
        + [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=_SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return json.dumps(json.loads(tokenizer.to_str())["model"]["merges"])


def _write(corpus: pathlib.Path) -> None:
    """Write the documents to a JSONL file until there are enough."""
    left = _MEGABYTES.value * 1_000_000
    count = 0
    with corpus.open("w", encoding="utf-8") as file:
        for text in _texts():
            file.write(json.dumps({"content": text}) + "\n")
            count += 1
            left -= len(text.encode())
            if left <= 0:
                break
        else:
            raise UserError(f"--megabytes={_MEGABYTES.value}: there are {left / -1e6:.0f} too few")
    print(f"{count:,} documents, {_MEGABYTES.value - left / 1e6:,.1f} MB")


def _texts() -> Iterator[str]:
    """The documents given, or every file of source or text that is installed, each once."""
    if _INPUT.value is not None:
        yield from read_documents([_INPUT.value])
        return
    folders = [pathlib.Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    seen = set()
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix in _SUFFIXES and path.is_file():
            text = path.read_bytes().decode(errors="ignore")
            if text not in seen:
                seen.add(text)
                yield text


def _in_a_process(learn: _Learn, threads: int, corpus: pathlib.Path) -> Result:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    arguments = (learn, corpus, _VOCAB_SIZE.value, _PRETOKENIZER.value)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, arguments)


def _measure(learn: _Learn, corpus: pathlib.Path, vocab_size: int, pretokenizer: str) -> Result:
    documents = list(read_documents([corpus]))
    before, start, cpu_start = _megabytes("VmRSS"), time.perf_counter(), time.process_time()
    merges = learn(documents, vocab_size, pretokenizer)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Result(seconds, cpu_seconds, _megabytes("VmHWM") - before, merges)


def _megabytes(what: str) -> float:
    """This process's memory as Linux has it: VmRSS is in use, VmHWM was at the most."""
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024 / 1e6


def _row(name: str, turns: list[Result], ours: list[Result]) -> str:
    ratios = [turn.seconds / mine.seconds for turn, mine in zip(turns, ours, strict=True)]
    best = min(turns, key=lambda turn: turn.seconds)
    return (
        f"| {name} | {best.seconds:.1f} | {min(turn.cpu_seconds for turn in turns):.1f} "
        f"| {max(turn.megabytes for turn in turns):,.0f} MB "
        f"| {best.seconds / min(mine.seconds for mine in ours):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) |"
    )


if __name__ == "__main__":
    program.run(main)
