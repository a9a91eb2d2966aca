"""Tiny Qwen2 checkpoints for the tests of this room."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from apr_jax.codec import Qwen2Config
from apr_jax.codec.qwen2 import HEAD

DATA = pathlib.Path(__file__).parents[1] / "data" / "apr"
FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def config(*, tied: bool = True) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=24,
        hidden_size=8,
        intermediate_size=12,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_position_embeddings=64,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tied=tied,
        bos_token_id=1,
        eos_token_id=2,
    )


def tensors(
    *, tied: bool = True, dtype: Any = ml_dtypes.bfloat16, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random bits, so that NaNs of every payload, infinities and subnormals are among them."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    return {
        name: rng.integers(0, 256, (*spec.shape[:-1], spec.shape[-1] * dtype.itemsize), np.uint8)
        .view(dtype)
        .reshape(spec.shape)
        for name, spec in config(tied=tied).tensors().items()
    }


def finite_tensors(*, tied: bool = True, dtype: Any = ml_dtypes.bfloat16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    specs = config(tied=tied).tensors()
    return {name: rng.normal(size=spec.shape).astype(dtype) for name, spec in specs.items()}


def hf_folder(
    folder: pathlib.Path,
    values: Mapping[str, np.ndarray],
    *,
    tied: bool = True,
    model: Qwen2Config | None = None,
    files: Mapping[str, str] | None = None,
    shards: int = 1,
) -> pathlib.Path:
    """Write a HuggingFace folder; `files` are further ones by name and content."""
    folder.mkdir(parents=True)
    hf_config = (model or config(tied=tied)).to_hf("bfloat16")
    (folder / "config.json").write_text(json.dumps(hf_config))
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    if shards == 1:
        save_file(dict(values), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = sorted(values)[shard::shards]
        save_file({name: values[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_index(folder, weight_map)
    return folder


def zeros(config: Qwen2Config) -> dict[str, np.ndarray]:
    return {n: np.zeros(s.shape, ml_dtypes.bfloat16) for n, s in config.tensors().items()}


def wide_config() -> Qwen2Config:
    """With norms, a bias and matrices of the 1024 elements from which matrices are quantised."""
    return dataclasses.replace(config(), hidden_size=1024, head_dim=512, num_layers=1)


def hf_folder_of(folder: pathlib.Path, config: Qwen2Config) -> pathlib.Path:
    """Write a tied HuggingFace model of `config` with normal bfloat16 values."""
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(size=spec.shape).astype(ml_dtypes.bfloat16)
        for name, spec in config.tensors().items()
    }
    hf_folder(folder, values)
    (folder / "config.json").write_text(json.dumps(config.to_hf("bfloat16")))
    return folder


def write_index(folder: pathlib.Path, weight_map: Mapping[str, Any]) -> None:
    index = {"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_head(values: Mapping[str, np.ndarray], head: np.ndarray) -> dict[str, np.ndarray]:
    return {**values, HEAD: head}


def killed_in_the_middle(program: str, *arguments: str) -> None:
    """Run `program` with Python until it prints a line, then kill it as the system would."""
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdin is not None
    with child.stdout, child.stdin:
        assert child.stdout.readline() == b"half\n"
        child.kill()
        assert child.wait() == -9
