"""Speed of encoding with Qwen2.5's vocabulary beside other tokenizers, on the same text in one run.

python -m pip install --target=.peers --requirement setup/peers.txt
PYTHONPATH=.peers python -m bench.tokenizer --corpus=FOLDER
Prints the rows of the tables in bench/results.md. Every batch is new to every encoder, and all take
it in turn on one thread. A peer that is not installed is listed as such.
"""

import json
import os
import pathlib
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from apr_jax.text import load_tokenizer
from apr_jax.text.alphabet import unspell
from bench.vocabularies import qwen_tokenizer_json
from experiments import program

_CORPUS = flags.DEFINE_string(
    "corpus", None, "Folder whose files are encoded; unset for the standard library."
)
_SUFFIXES = flags.DEFINE_list("suffixes", [".py", ".pyi"], "Endings of the files' names.")
_MEGABYTES = flags.DEFINE_float("megabytes", 4.0, "Size of a batch in millions of bytes.")
_ROUNDS = flags.DEFINE_integer("rounds", 6, "Batches that are timed, after one to warm up.")
_CALLS = flags.DEFINE_integer("calls", 300, "Single texts timed for each size of small calls.")

_SMALL = (100, 300, 1000, 2000)  # characters of the texts of small calls
_Encode = Callable[[Sequence[str]], Any]


def main() -> int:
    """Print one table for batches and one for small calls."""
    texts = _texts()
    with tempfile.TemporaryDirectory() as folder:
        encoders = dict(_encoders(pathlib.Path(folder)))
        _print_batches(encoders, _batches(texts))
        _print_small_calls(encoders, texts)
    return 0


def _encoders(folder: pathlib.Path) -> Iterator[tuple[str, _Encode]]:
    root = qwen_tokenizer_json()
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(root), encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(root["model"]["vocab"]), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *root["model"]["merges"]])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    compiled = load_tokenizer(path)
    compiled.compile()
    yield "apr-jax", compiled.encode_flat
    yield "apr-jax, NumPy alone", load_tokenizer(path).encode_flat
    for name, make in (
        ("HuggingFace encode_batch", _hugging_face),
        ("HuggingFace encode_batch_fast", _hugging_face_fast),
        ("tiktoken", _tiktoken),
        ("bpe-qwen", _bpe_qwen),
        ("quicktok-v1", _quicktok),
        ("snaptokens", _snaptokens),
        ("gigatoken", _gigatoken),
    ):
        try:
            yield name, make(root, path)
        except ImportError as error:
            print(f"{name}: not installed ({error})", file=sys.stderr)


def _hugging_face(root: dict[str, Any], path: pathlib.Path) -> _Encode:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(path)).encode_batch


def _hugging_face_fast(root: dict[str, Any], path: pathlib.Path) -> _Encode:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(path)).encode_batch_fast


def _tiktoken(root: dict[str, Any], path: pathlib.Path) -> _Encode:
    import tiktoken

    ranks = {unspell(token): id_ for token, id_ in root["model"]["vocab"].items()}
    split = root["pre_tokenizer"]["pretokenizers"][0]
    added = {token["content"]: token["id"] for token in root["added_tokens"]}
    encoding = tiktoken.Encoding(
        "qwen2", pat_str=split["pattern"]["Regex"], mergeable_ranks=ranks, special_tokens=added
    )
    return lambda texts: [encoding.encode_ordinary(text) for text in texts]


def _bpe_qwen(root: dict[str, Any], path: pathlib.Path) -> _Encode:
    from bpe_qwen.bpe_qwen import QwenTokenizer

    encoder = QwenTokenizer(str(path.parent))
    return lambda texts: [encoder.encode(text) for text in texts]


def _quicktok(root: dict[str, Any], path: pathlib.Path) -> _Encode:
    import quicktok

    encoding = quicktok.get_encoding("qwen3")
    return lambda texts: encoding.encode_batch(texts, threads=1, with_special=True)


def _snaptokens(root: dict[str, Any], path: pathlib.Path) -> _Encode:
    import snaptokens

    return snaptokens.Tokenizer.from_file(str(path)).encode_batch_flat


def _gigatoken(root: dict[str, Any], path: pathlib.Path) -> _Encode:
    import gigatoken

    encoder = gigatoken.Tokenizer(str(path))
    return lambda texts: encoder.encode_batch(texts, parallel=False)


def _texts() -> list[str]:
    """The distinct files that are UTF-8, in an order that is the same in each run."""
    folder = pathlib.Path(_CORPUS.value or sysconfig.get_path("stdlib"))
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _SUFFIXES.value and path.is_file():
            try:
                found[path.read_bytes().decode()] = None
            except UnicodeDecodeError:
                continue
    texts = list(found)
    random.Random(0).shuffle(texts)
    return texts


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text.encode())
        if size >= _MEGABYTES.value * 1e6:
            yield batch
            batch, size = [], 0


def _print_batches(encoders: dict[str, _Encode], batches: Iterator[list[str]]) -> None:
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for number, batch in zip(range(_ROUNDS.value + 1), batches, strict=False):
        size = sum(len(text.encode()) for text in batch)
        for name, encode in encoders.items():
            seconds = _seconds(encode, batch)
            if number:
                rates[name].append(size / seconds / 1e6)
        _check(encoders, batch)
    ours, peer = rates["apr-jax"], rates["HuggingFace encode_batch"]
    print(f"| encoder | MB/s | x HuggingFace, over {len(ours)} batches | ours over it |")
    print("|---|---|---|---|")
    for name, its in rates.items():
        rate = f"{statistics.median(its):.1f}"
        print(f"| {name} | {rate} | {_ratios(its, peer)} | {_ratios(ours, its)} |")


def _print_small_calls(encoders: dict[str, _Encode], texts: Sequence[str]) -> None:
    print("\n| one text a call, us |", " | ".join(f"{size} characters" for size in _SMALL), "|")
    print("|---|" + "---|" * len(_SMALL))
    rng = random.Random(1)
    pieces = {}
    for size in _SMALL:
        long = [text for text in rng.sample(texts, len(texts)) if len(text) > 2 * size]
        starts = [(text, rng.randrange(len(text) - size)) for text in long[: _CALLS.value]]
        pieces[size] = [text[start : start + size] for text, start in starts]
    for name, encode in encoders.items():
        times = [
            f"{statistics.median([_seconds(encode, [text]) for text in pieces[size]]) * 1e6:.0f}"
            for size in _SMALL
        ]
        print(f"| {name} |", " | ".join(times), "|")


def _seconds(encode: _Encode, texts: Sequence[str]) -> float:
    """Of processor time, which other programs disturb less than the clock."""
    start = time.process_time_ns()
    result = encode(texts)
    seconds = (time.process_time_ns() - start) / 1e9
    del result
    return seconds


def _check(encoders: dict[str, _Encode], batch: Sequence[str]) -> None:
    """That the two that claim to be equal are."""
    ids, offsets = encoders["apr-jax"](batch)
    expected = [encoding.ids for encoding in encoders["HuggingFace encode_batch"](batch)]
    if not np.array_equal(np.diff(offsets), [len(row) for row in expected]) or not np.array_equal(
        ids, np.concatenate(expected)
    ):
        raise AssertionError("the ids differ from HuggingFace's")


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    program.run(main)
