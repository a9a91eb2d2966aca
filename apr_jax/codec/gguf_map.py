"""Between GGUF's names, keys and order of rows and ours: each table serves both directions.

GGUF names a tensor by its place (`blk.3.attn_q.weight`) and lists its extents innermost first. For
`llama` its writers permute the rows of q and k, from halves of a head to adjacent pairs, because
llama.cpp rotates pairs there; for `qwen2` the rows lie as HuggingFace has them.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from apr_jax.codec.fields import MOST, MOST_LAYERS, ConfigError, Fields
from apr_jax.codec.qwen2 import EMBEDDING, HEAD, Qwen2Config, require_architecture

_GLOBAL = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": HEAD,
}
_OF_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_GLOBAL_BACK = {ours: theirs for theirs, ours in _GLOBAL.items()}
_OF_LAYER_BACK = {ours: theirs for theirs, ours in _OF_LAYER.items()}
_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]*)\.(.*)", re.DOTALL)
_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(.*)")
_PERMUTED = re.compile(r"self_attn\.([qk])_proj\.weight$")

# Keys of a file, after `ARCHITECTURE.`.
_COUNTS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}
_NUMBERS = {
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_HEAD_DIM = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
}

_ROWS = "the number of rows of token_embd.weight"
# GGUF has no key for it.
_INITIALIZER_RANGE = "apr_jax.initializer_range"


def our_name(name: str) -> str:
    """The HuggingFace name of a GGUF tensor; one that the architectures have not stays as it is."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _OF_LAYER:
        return name
    return f"model.layers.{match[1]}.{_OF_LAYER[match[2]]}"


def their_name(name: str) -> str:
    """The GGUF name of a parameter. The inverse of `our_name`."""
    if name in _GLOBAL_BACK:
        return _GLOBAL_BACK[name]
    match = _LAYER.fullmatch(name)
    assert match is not None, name
    return f"blk.{match[1]}.{_OF_LAYER_BACK[match[2]]}"


def read_config(fields: Mapping[str, Any], rows: int, *, tied: bool, source: str) -> Qwen2Config:
    """The configuration in a file's keys; `rows` is the number of rows of its embedding.

    Raises:
      ConfigError: a missing key, another architecture, or what changes the forward pass.
    """
    family = require_architecture(
        fields.get("general.architecture"), "general.architecture", source
    )
    own = {key.removeprefix(f"{family}."): value for key, value in fields.items()}
    _refuse_variants(own, family, source)
    read = Fields(fields, source)
    counts = {
        ours: read.count(f"{family}.{theirs}", MOST_LAYERS if ours == "num_layers" else MOST)
        for ours, theirs in _COUNTS.items()
    }
    if own.get("vocab_size", rows) != rows:
        raise ConfigError(
            f"{source}: {family}.vocab_size={own['vocab_size']!r} beside {rows} rows of token_embd"
        )
    head_dim = read.head_dim(f"{family}.{_HEAD_DIM[0]}", counts["hidden_size"], counts["num_heads"])
    for key in _HEAD_DIM:
        if own.get(key, head_dim) != head_dim:
            raise ConfigError(
                f"{source}: {family}.{key}={own[key]!r}, only heads of one size that RoPE turns "
                f"whole are supported, here {head_dim}"
            )
    values: dict[str, Any] = {
        **counts,
        **{ours: read.positive(f"{family}.{theirs}") for ours, theirs in _NUMBERS.items()},
        **{ours: read.token(theirs) for ours, theirs in _TOKENS.items()},
    }
    return Qwen2Config(
        **values,
        vocab_size=Fields({_ROWS: rows}, source).count(_ROWS),
        head_dim=head_dim,
        tied=tied,
        attention_bias=family == "qwen2",
        initializer_range=read.positive(_INITIALIZER_RANGE, default=0.02),
    )


def rounded(config: Qwen2Config, source: str) -> Qwen2Config:
    """The configuration with its numbers in float32, which is what GGUF's readers compute with.

    Raises:
      ConfigError: a number is too small or too large for float32.
    """

    def number(name: str) -> float:
        value = getattr(config, name)
        with np.errstate(over="ignore"):
            nearest = np.float32(value)
        if not 0 < nearest < np.inf:
            raise ConfigError(
                f"{source}: {name}={value!r} is no positive number in float32, as GGUF has it"
            )
        return float(str(nearest))  # the shortest decimal, as it is read back

    return dataclasses.replace(
        config,
        rope_theta=number("rope_theta"),
        rms_norm_eps=number("rms_norm_eps"),
        initializer_range=number("initializer_range"),
    )


def write_config(config: Qwen2Config) -> dict[str, int | float]:
    """The keys of a file for a configuration. `read_config` gives it back, `rounded`."""
    family = config.architecture
    fields: dict[str, int | float] = {
        f"{family}.{theirs}": getattr(config, ours) for ours, theirs in (_COUNTS | _NUMBERS).items()
    }
    fields |= {f"{family}.{key}": config.head_dim for key in _HEAD_DIM}
    fields[f"{family}.vocab_size"] = config.vocab_size
    if config.initializer_range != 0.02:
        fields[_INITIALIZER_RANGE] = config.initializer_range
    tokens = {theirs: getattr(config, ours) for ours, theirs in _TOKENS.items()}
    return fields | {key: value for key, value in tokens.items() if value is not None}


def to_our_rows(name: str, rows: np.ndarray, config: Qwen2Config) -> np.ndarray:
    """Undo the permutation of a `llama` file. `rows` may be values or each row's stored bytes."""
    if (heads := _permuted_heads(name, config)) is None:
        return rows
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def to_their_rows(name: str, rows: np.ndarray, config: Qwen2Config) -> np.ndarray:
    """Permute the rows as a `llama` file has them. The inverse of `to_our_rows`."""
    if (heads := _permuted_heads(name, config)) is None:
        return rows
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _permuted_heads(name: str, config: Qwen2Config) -> int | None:
    match = _PERMUTED.search(name)
    if match is None or config.architecture != "llama":
        return None
    return config.num_heads if match[1] == "q" else config.num_kv_heads


def _refuse_variants(own: Mapping[str, Any], family: str, source: str) -> None:
    factors = {key: own.get(key) for key in ("rope.scaling.factor", "rope.scale_linear")}
    scaled = {key: factor for key, factor in factors.items() if factor not in (None, 0, 1)}
    kind = own.get("rope.scaling.type")
    # llama.cpp scales by a factor unless the type says "none".
    variant = {"rope.scaling.type": kind} if kind not in (None, "none") else scaled
    if variant and kind != "none":
        key, value = next(iter(variant.items()))
        raise ConfigError(
            f"{source}: {family}.{key}={value!r} is not supported, only plain RoPE is"
        )
    for key in ("expert_count", "attention.sliding_window"):
        if own.get(key):
            raise ConfigError(
                f"{source}: {family}.{key}={own[key]!r}, which plain {family} has not"
            )
    if own.get("split.count", 1) not in (0, 1):
        raise ConfigError(
            f"{source}: is one of {own['split.count']!r} parts; merge them with "
            "`llama-gguf-split --merge` first"
        )
