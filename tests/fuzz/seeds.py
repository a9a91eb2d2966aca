"""Sound and odd small inputs for each door, from which a fuzzer starts."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np
from gguf import GGMLQuantizationType
from safetensors.numpy import save

from apr_jax.codec import write_apr
from apr_jax.text.tokenizer_json import tokenizer_json
from apr_jax.text.trainer import train_bpe
from tests.codec import ggufs, small
from tests.fuzz.doors import SEPARATOR, SHARDS
from tests.text.samples import BPE, BYTES, COMPRESS, rank_file, table

DATA = pathlib.Path(__file__).parents[1] / "data"
MAX_BYTES = 8192

_CONFIG = dataclasses.replace(
    small.config(), vocab_size=4, hidden_size=4, intermediate_size=4, head_dim=2, num_layers=1
)


def seeds(door: str, folder: pathlib.Path) -> Iterator[bytes]:
    """The inputs of one door, findings of earlier runs among them; `folder` is for scratch."""
    yield from (path.read_bytes() for path in findings(door))
    makers = {"apr": _apr, "hf_folder": _hf_folder, "gguf": _gguf}
    yield from (makers | {"tokenizer": _tokenizer, "corpus": _corpus})[door](folder)


def findings(door: str) -> list[pathlib.Path]:
    """The inputs with which a fuzzer found something."""
    return sorted((DATA / "fuzz" / door).glob("*"))


def _apr(folder: pathlib.Path) -> Iterator[bytes]:
    for path in sorted((DATA / "apr").glob("*.apr")):
        if path.stat().st_size <= MAX_BYTES:
            yield path.read_bytes()
    for tied in (True, False):
        config = dataclasses.replace(_CONFIG, tied=tied)
        write_apr(folder / "seed.apr", small.zeros(config), config.to_apr())
        yield (folder / "seed.apr").read_bytes()


def _hf_folder(_: pathlib.Path) -> Iterator[bytes]:
    for tied in (True, False):
        config = dataclasses.replace(_CONFIG, tied=tied)
        description = json.dumps(config.to_hf("bfloat16")).encode()
        values = small.zeros(config)
        yield SEPARATOR.join((description, b"", save(values)))
        parts = [{name: values[name] for name in sorted(values)[at::2]} for at in (0, 1)]
        placed = {name: file for file, part in zip(SHARDS, parts, strict=True) for name in part}
        index = json.dumps({"metadata": {"total_size": 0}, "weight_map": placed}).encode()
        yield SEPARATOR.join((description, index, *(save(part) for part in parts)))


def _gguf(folder: pathlib.Path) -> Iterator[bytes]:
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["a b"],
    }
    pieces = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "</s>", "\u2581", "a"],
        "tokenizer.ggml.scores": [0.0, 0.0, -1.0, -2.0],
        "tokenizer.ggml.token_type": [2, 3, 1, 1],
    }
    ggufs.write(folder / "seed.gguf", _CONFIG, {}, keys=pieces)
    yield (folder / "seed.gguf").read_bytes()
    for biased in (True, False):
        config = dataclasses.replace(_CONFIG, hidden_size=32, attention_bias=biased)
        zeros = {name: array.astype(np.float32) for name, array in small.zeros(config).items()}
        for kind in (GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0):
            types = {name: kind for name, array in zeros.items() if array.shape[-1] % 32 == 0}
            ggufs.write(folder / "seed.gguf", config, zeros, types, keys=vocabulary)
            yield (folder / "seed.gguf").read_bytes()


def _tokenizer(folder: pathlib.Path) -> Iterator[bytes]:
    yield BPE
    yield rank_file(folder / "seed.tiktoken", [*BYTES, b"he", b"ll", b"hell"]).read_bytes()
    vocabulary = train_bpe(["hello hello"], 264, 1).vocabulary
    yield json.dumps(tokenizer_json(vocabulary)).encode()


def _corpus(folder: pathlib.Path) -> Iterator[bytes]:
    lines = b'{"a": "text"}\n\n{"b": 1}\n{"a": "\\ud83e\\udd99\\n"}\n' * 3
    yield lines
    yield from (compress(lines) for compress in COMPRESS.values())
    table(folder / "seed.parquet", ["text", None, "é"], name="a")
    yield (folder / "seed.parquet").read_bytes()
