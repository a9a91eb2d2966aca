"""The Qwen2 architecture as files know it: its numbers, and one declaration per tensor.

Letters in shapes: V vocabulary rows, D hidden size, N query heads, K key-value heads,
H head size, F feed-forward size.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from apr_jax.errors import UserError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

# What a file may claim: sizes that index arrays, and no more layers than can be listed at once.
_MOST = 2**31 - 1
_MOST_LAYERS = 10_000
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class ConfigError(UserError):
    """A model's configuration lacks a value, contradicts itself or is not plain Qwen2."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What the architecture asks of one tensor. Matrices are [out, in], as in PyTorch."""

    shape: tuple[int, ...]
    init: Literal["normal", "zeros", "ones"]


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """Everything that decides the forward pass. Hashable, so it can be static under jit."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tied: bool
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}: the heads cannot be grouped"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} is odd: RoPE rotates halves of a head")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], source: str) -> "Qwen2Config":
        """Read a HuggingFace `config.json` (old and version 5 spellings); `source` is for messages.

        Raises:
          ConfigError: a missing key, a wrong type, another architecture, or a feature that
            changes the forward pass and is not part of plain Qwen2.
        """
        model_type = config.get("model_type")
        if model_type != "qwen2":
            raise ConfigError(f"{source}: model_type is {model_type!r}, only 'qwen2' is supported")
        _refuse_variants(config, source)
        read = _Fields({**config, "rope_theta": _rope_theta(config, source)}, source)
        heads, hidden = read.count("num_attention_heads"), read.count("hidden_size")
        return cls(
            vocab_size=read.count("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.count("intermediate_size"),
            num_layers=read.count("num_hidden_layers", most=_MOST_LAYERS),
            num_heads=heads,
            num_kv_heads=read.count("num_key_value_heads"),
            head_dim=_head_dim(config.get("head_dim"), hidden, heads, source),
            max_position_embeddings=read.count("max_position_embeddings"),
            rope_theta=read.positive("rope_theta"),
            rms_norm_eps=read.positive("rms_norm_eps"),
            tied=read.flag("tie_word_embeddings"),
            initializer_range=read.positive("initializer_range", default=0.02),
            bos_token_id=read.token("bos_token_id"),
            eos_token_id=read.token("eos_token_id"),
        )

    @classmethod
    def from_apr(cls, metadata: Mapping[str, Any], *, tied: bool, source: str) -> "Qwen2Config":
        """Read the metadata of an `.apr` file. `tied` comes from its tensors, not from its claims.

        Raises:
          ConfigError: a missing key, another architecture, or interleaved RoPE.
        """
        family = metadata.get("architecture") or metadata.get("hf_model_type")
        if family != "qwen2":
            raise ConfigError(
                f"{source}: metadata names the architecture {family!r}, only 'qwen2' is supported"
            )
        if metadata.get("rope_type") != 2:
            raise ConfigError(
                f"{source}: metadata has rope_type={metadata.get('rope_type')!r}, Qwen2 needs 2 "
                "(split halves); import the model again from its source"
            )
        read = _Fields(metadata, source)
        heads, hidden = read.count("num_heads"), read.count("hidden_size")
        return cls(
            vocab_size=read.count("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.count("intermediate_size"),
            num_layers=read.count("num_layers", most=_MOST_LAYERS),
            num_heads=heads,
            num_kv_heads=read.count("num_kv_heads"),
            head_dim=_head_dim(metadata.get("head_dim"), hidden, heads, source),
            max_position_embeddings=read.count("max_position_embeddings"),
            rope_theta=read.positive("rope_theta"),
            rms_norm_eps=read.positive("rms_norm_eps"),
            tied=tied,
            initializer_range=read.positive("initializer_range", default=0.02),
            bos_token_id=read.token("tokenizer.bos_token_id"),
            eos_token_id=read.token("tokenizer.eos_token_id"),
        )

    def to_hf(self, dtype: str) -> dict[str, Any]:
        """A `config.json` for `transformers` 4 and 5; `dtype` is PyTorch's name of a type."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dtype": dtype,
            "eos_token_id": self.eos_token_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "qwen2",
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "tie_word_embeddings": self.tied,
            "torch_dtype": dtype,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
        }

    def to_apr(self) -> dict[str, Any]:
        """The metadata keys of an `.apr` file, canonical spellings only."""
        metadata = {
            "architecture": "qwen2",
            "hf_architecture": "Qwen2ForCausalLM",
            "hf_model_type": "qwen2",
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "vocab_size": self.vocab_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "rope_type": 2,
            "rms_norm_eps": self.rms_norm_eps,
            "head_dim": self.head_dim,
            "initializer_range": self.initializer_range,
            "tied_embeddings": self.tied,
            "tokenizer.bos_token_id": self.bos_token_id,
            "tokenizer.eos_token_id": self.eos_token_id,
        }
        return {key: value for key, value in metadata.items() if value is not None}

    def tensors(self) -> dict[str, TensorSpec]:
        """Every parameter by its name in HuggingFace and `.apr` files. A tied head has none."""
        D, F = self.hidden_size, self.intermediate_size
        NH, KH = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        specs = {EMBEDDING: TensorSpec((self.vocab_size, D), "normal")}
        for layer in range(self.num_layers):
            at = f"model.layers.{layer}."
            specs |= {
                f"{at}input_layernorm.weight": TensorSpec((D,), "ones"),
                f"{at}self_attn.q_proj.weight": TensorSpec((NH, D), "normal"),
                f"{at}self_attn.q_proj.bias": TensorSpec((NH,), "zeros"),
                f"{at}self_attn.k_proj.weight": TensorSpec((KH, D), "normal"),
                f"{at}self_attn.k_proj.bias": TensorSpec((KH,), "zeros"),
                f"{at}self_attn.v_proj.weight": TensorSpec((KH, D), "normal"),
                f"{at}self_attn.v_proj.bias": TensorSpec((KH,), "zeros"),
                f"{at}self_attn.o_proj.weight": TensorSpec((D, NH), "normal"),
                f"{at}post_attention_layernorm.weight": TensorSpec((D,), "ones"),
                f"{at}mlp.gate_proj.weight": TensorSpec((F, D), "normal"),
                f"{at}mlp.up_proj.weight": TensorSpec((F, D), "normal"),
                f"{at}mlp.down_proj.weight": TensorSpec((D, F), "normal"),
            }
        specs["model.norm.weight"] = TensorSpec((D,), "ones")
        if not self.tied:
            specs[HEAD] = TensorSpec((self.vocab_size, D), "normal")
        return specs

    def num_parameters(self) -> int:
        """Stored elements; a tied head counts once."""
        return sum(math.prod(spec.shape) for spec in self.tensors().values())


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How the tensors of a checkpoint compare with what the architecture needs, both ways."""

    expected: int
    found: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    shape_mismatch: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def complete(self) -> bool:
        """Every needed tensor is there in its shape, and nothing else."""
        return not (self.missing or self.extra or self.shape_mismatch)

    def describe(self) -> str:
        """One line naming up to five of each kind."""
        parts = []
        for label, names in (("missing", self.missing), ("extra", self.extra)):
            if names:
                parts.append(f"{len(names)} {label} ({_some(names)})")
        if self.shape_mismatch:
            texts = [
                f"{name} is {list(got)}, needs {list(want)}"
                for name, got, want in self.shape_mismatch
            ]
            parts.append(f"{len(texts)} of another shape ({_some(texts)})")
        return f"{self.found} tensors for {self.expected}: " + ("; ".join(parts) or "complete")


def coverage(config: Qwen2Config, shapes: Mapping[str, tuple[int, ...]]) -> Coverage:
    """Compare names and shapes; buffers of old exporters (`*.rotary_emb.inv_freq`) are no extras.

    The caller leaves out a tied `lm_head.weight` that it has verified.
    """
    wanted = config.tensors()
    found = {
        name: shape for name, shape in shapes.items() if not name.endswith(".rotary_emb.inv_freq")
    }
    return Coverage(
        expected=len(wanted),
        found=len(found),
        missing=tuple(name for name in wanted if name not in found),
        extra=tuple(name for name in found if name not in wanted),
        shape_mismatch=tuple(
            (name, tuple(found[name]), spec.shape)
            for name, spec in wanted.items()
            if name in found and tuple(found[name]) != spec.shape
        ),
    )


class _Fields:
    """Typed access to a JSON object, with errors that name the file and the key."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values, self._source = values, source

    def count(self, key: str, most: int = _MOST) -> int:
        value = self._get(key)
        if not _is_integer(value) or not 0 < value <= most:
            raise ConfigError(f"{self._source}: {key}={value!r} is not an integer from 1 to {most}")
        return int(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key)
        if value is None:
            value = self._get(key) if default is None else default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value <= _FLOAT32_MAX
        ):
            raise ConfigError(f"{self._source}: {key}={value!r} is not a positive float32")
        # .apr files hold these as float32; its shortest decimal is what their writers meant.
        return float(str(np.float32(value))) if float(np.float32(value)) == value else float(value)

    def token(self, key: str) -> int | None:
        """A token id; of a list (several ends of sequence) the first."""
        value = self._values.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None:
            return None
        if not _is_integer(value) or not 0 <= value <= _MOST:
            raise ConfigError(f"{self._source}: {key}={value!r} is not a token id")
        return int(value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object; empty if the key is absent or null."""
        value = self._values.get(key) or {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self._source}: {key}={value!r} is not an object")
        return value

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._source}: {key}={value!r} is neither true nor false")
        return value

    def _get(self, key: str) -> Any:
        value = self._values.get(key)
        if value is None:
            raise ConfigError(
                f"{self._source}: has no {key}, and it is not guessed; add it to the file"
            )
        return value


def _refuse_variants(config: Mapping[str, Any], source: str) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        scaling = _Fields(config, source).mapping(key)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            raise ConfigError(f"{source}: {key} {kind!r} is not supported, only plain RoPE is")
    if config.get("use_sliding_window"):
        raise ConfigError(f"{source}: use_sliding_window is on, only full attention is supported")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{source}: hidden_act={config['hidden_act']!r}, Qwen2 has 'silu'")


def _rope_theta(config: Mapping[str, Any], source: str) -> Any:
    """Version 4 of transformers has it at the top, version 5 among `rope_parameters`."""
    rope = _Fields(config, source).mapping("rope_parameters")
    unknown = sorted(set(rope) - {"rope_theta", "rope_type", "type"})
    if unknown:
        raise ConfigError(f"{source}: rope_parameters has {unknown[0]!r}, only plain RoPE is known")
    found = [v for v in (config.get("rope_theta"), rope.get("rope_theta")) if v is not None]
    if len(found) == 2 and found[0] != found[1]:
        raise ConfigError(
            f"{source}: rope_theta is {found[0]!r} but rope_parameters has {found[1]!r}; keep one"
        )
    return found[0] if found else None


def _head_dim(value: Any, hidden: int, heads: int, source: str) -> int:
    if value is not None:
        return _Fields({"head_dim": value}, source).count("head_dim")
    if hidden % heads:
        raise ConfigError(
            f"{source}: hidden_size={hidden} does not divide among {heads} heads, "
            "and there is no head_dim"
        )
    return hidden // heads


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _some(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:5]) + (", ..." if len(texts) > 5 else "")
