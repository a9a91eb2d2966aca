"""Small models and shards for the tests of this room."""

import json
import pathlib

import jax
import numpy as np

from apr_jax.codec import write_apr
from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.model.params import init_params, to_named

VOCAB = 97
EOS = 2
TINY = Qwen2Config(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tied=True,
    eos_token_id=EOS,
)


def write_model(path: pathlib.Path, config: Qwen2Config = TINY, seed: int = 0) -> pathlib.Path:
    """A model with random weights, biases and norms, in float32."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: (leaf + 0.05 * rng.standard_normal(leaf.shape)).astype(np.float32),
        init_params(config, seed),
    )
    write_apr(path, to_named(params), config.to_apr())
    return path


def write_shards(folder: pathlib.Path, tokens: int, seed: int) -> pathlib.Path:
    """Two shards as the original program leaves them: documents of a simple language, EOS after."""
    rng = np.random.default_rng(seed)
    documents = []
    while sum(map(len, documents)) < tokens:
        # Counting upwards by a step of the document's own: predictable, so it can be learnt.
        start, step, length = rng.integers(3, VOCAB), rng.integers(1, 4), rng.integers(20, 60)
        count = (start + step * np.arange(length) - 3) % (VOCAB - 3) + 3
        name = rng.integers(3, VOCAB, 6)  # so that no two documents are the same
        documents.append(np.concatenate((name, count, [EOS])))
    ids = np.concatenate(documents).astype("<u4")[:tokens]
    folder.mkdir(parents=True)
    cut = tokens // 3
    for number, part in enumerate((ids[:cut], ids[cut:])):
        part.tofile(folder / f"shard-{number:05d}.bin")
    manifest = {
        "schema": "pretokenize-bin-v1",
        "shard_count": 2,
        "total_tokens": tokens,
        "eos_token_id": EOS,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
