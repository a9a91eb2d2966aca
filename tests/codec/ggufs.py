"""GGUF files as llama.cpp's converters write them: by the `gguf` package alone, for the tests."""

import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from apr_jax.codec import Qwen2Config

EMBEDDING = "model.embed_tokens.weight"
CONFIG = Qwen2Config(
    vocab_size=300,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_position_embeddings=64,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tied=True,
    bos_token_id=1,
    eos_token_id=2,
)


def values(config: Qwen2Config) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: ((spec.init == "ones") + 0.02 * rng.normal(size=spec.shape)).astype(np.float32)
        for name, spec in config.tensors().items()
    }


def write(
    path: pathlib.Path,
    config: Qwen2Config,
    tensors: Mapping[str, np.ndarray],
    types: Mapping[str, Type] | None = None,
    *,
    keys: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
    architecture: str | None = None,
) -> dict[str, np.ndarray]:
    """Write HuggingFace tensors. Returns, by HuggingFace's name, what the package reads back.

    Args:
      types: of the matrices, by HuggingFace name; F32 where not given.
      keys: further string, bool, number or list keys.
      without: endings of keys that are left out.
    """
    writer = gguf.GGUFWriter(path, architecture or config.architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(config.bos_token_id or 0)
    writer.add_eos_token_id(config.eos_token_id or 0)
    adders = {
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
    }
    for key, value in (keys or {}).items():
        adders.get(type(value), writer.add_array)(key, value)
    for key in [key for key in writer.kv_data[0] if key.endswith(without)] if without else []:
        del writer.kv_data[0][key]
    arch = gguf.MODEL_ARCH.LLAMA if config.architecture == "llama" else gguf.MODEL_ARCH.QWEN2
    names = gguf.get_tensor_name_map(arch, config.num_layers)
    decoded = {}
    for name, array in tensors.items():
        kind = (types or {}).get(name, Type.F32)
        for letter, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
            if config.architecture == "llama" and f"{letter}_proj" in name:
                array = permute(array, heads)
        data = quantise(array, kind)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        writer.add_tensor(theirs, data, raw_dtype=kind)
        back = gguf.dequantize(data, kind)
        for letter, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
            if config.architecture == "llama" and f"{letter}_proj" in name:
                back = permute(back, heads, undo=True)
        decoded[name] = back
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def permute(array: np.ndarray, heads: int, *, undo: bool = False) -> np.ndarray:
    """What llama.cpp's converter does to q and k of Llama."""
    halves = (array.shape[0] // heads // 2, 2) if undo else (2, array.shape[0] // heads // 2)
    return array.reshape(heads, *halves, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def quantise(array: np.ndarray, kind: Type) -> np.ndarray:
    """Stored rows; for the K-types, which the package only decodes, random blocks."""
    if kind not in (Type.Q4_K, Type.Q6_K):
        return gguf.quantize(array, kind)
    rng = np.random.default_rng(array.size)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (array.size // block, size), np.uint8)
    scales = rng.uniform(0, 0.01, (len(blocks), 2)).astype(np.float16).view(np.uint8)
    blocks[:, slice(0, 4) if kind == Type.Q4_K else slice(-2, None)] = (
        scales if kind == Type.Q4_K else scales[:, :2]
    )
    return blocks.reshape(*array.shape[:-1], -1)
