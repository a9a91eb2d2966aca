"""The Qwen2 architecture as files know it: its numbers, and one declaration per tensor.

Llama is the same architecture without the biases of q, k and v: one field tells the two apart.

Letters in shapes: V vocabulary rows, D hidden size, N query heads, K key-value heads,
H head size, F feed-forward size.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

from apr_jax.codec.fields import MOST_LAYERS, ConfigError, Fields
from apr_jax.errors import short

Architecture = Literal["qwen2", "llama"]

# The class of `transformers` that computes each.
HF_CLASSES: dict[str, str] = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}

# What `config.json` may switch on, and changes the forward pass.
_VARIANTS_OFF: dict[Architecture, dict[str, bool]] = {
    "qwen2": {"use_sliding_window": False},
    "llama": {"attention_bias": False, "mlp_bias": False},
}

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What the architecture asks of one tensor. Matrices are [out, in], as in PyTorch."""

    shape: tuple[int, ...]
    init: Literal["normal", "zeros", "ones"]


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """Everything that decides the forward pass, of Qwen2 and of Llama, which has no biases.

    Hashable, so it can be static under jit.
    """

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
    attention_bias: bool = True

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}: the heads cannot be grouped"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} is odd: RoPE rotates halves of a head")

    @property
    def architecture(self) -> Architecture:
        """The name of the family, as `model_type` of HuggingFace and the keys of GGUF have it."""
        return "qwen2" if self.attention_bias else "llama"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], source: str) -> "Qwen2Config":
        """Read a HuggingFace `config.json` (old and version 5 spellings); `source` is for messages.

        Raises:
          ConfigError: a missing key, a wrong type, another architecture, or a feature that
            changes the forward pass and is not part of plain Qwen2.
        """
        family = require_architecture(config.get("model_type"), "model_type", source)
        _refuse_variants(config, family, source)
        read = Fields({**config, "rope_theta": _rope_theta(config, source)}, source)
        heads, hidden = read.count("num_attention_heads"), read.count("hidden_size")
        return cls(
            vocab_size=read.count("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.count("intermediate_size"),
            num_layers=read.count("num_hidden_layers", most=MOST_LAYERS),
            num_heads=heads,
            num_kv_heads=read.count("num_key_value_heads"),
            head_dim=read.head_dim("head_dim", hidden, heads),
            max_position_embeddings=read.count("max_position_embeddings"),
            rope_theta=read.positive("rope_theta"),
            rms_norm_eps=read.positive("rms_norm_eps"),
            tied=read.flag("tie_word_embeddings"),
            initializer_range=read.positive("initializer_range", default=0.02),
            bos_token_id=read.token("bos_token_id"),
            eos_token_id=read.token("eos_token_id"),
            attention_bias=family == "qwen2",
        )

    @classmethod
    def from_apr(cls, metadata: Mapping[str, Any], *, tied: bool, source: str) -> "Qwen2Config":
        """Read the metadata of an `.apr` file. `tied` comes from its tensors, not from its claims.

        Raises:
          ConfigError: a missing key, another architecture, or interleaved RoPE.
        """
        claim = metadata.get("architecture") or metadata.get("hf_model_type")
        family = require_architecture(claim, "the architecture in the metadata", source)
        if metadata.get("rope_type") != 2:
            raise ConfigError(
                f"{source}: metadata has rope_type={metadata.get('rope_type')!r}, {family} needs 2 "
                "(split halves); import the model again from its source"
            )
        read = Fields(metadata, source)
        heads, hidden = read.count("num_heads"), read.count("hidden_size")
        return cls(
            vocab_size=read.count("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.count("intermediate_size"),
            num_layers=read.count("num_layers", most=MOST_LAYERS),
            num_heads=heads,
            num_kv_heads=read.count("num_kv_heads"),
            head_dim=read.head_dim("head_dim", hidden, heads),
            max_position_embeddings=read.count("max_position_embeddings"),
            rope_theta=read.positive("rope_theta"),
            rms_norm_eps=read.positive("rms_norm_eps"),
            tied=tied,
            initializer_range=read.positive("initializer_range", default=0.02),
            bos_token_id=read.token("tokenizer.bos_token_id"),
            eos_token_id=read.token("tokenizer.eos_token_id"),
            attention_bias=family == "qwen2",
        )

    def to_hf(self, dtype: str) -> dict[str, Any]:
        """A `config.json` for `transformers` 4 and 5; `dtype` is PyTorch's name of a type."""
        return {
            "architectures": [HF_CLASSES[self.architecture]],
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
            "model_type": self.architecture,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "tie_word_embeddings": self.tied,
            "torch_dtype": dtype,
            "vocab_size": self.vocab_size,
            **_VARIANTS_OFF[self.architecture],
        }

    def to_apr(self) -> dict[str, Any]:
        """The metadata keys of an `.apr` file, canonical spellings only."""
        metadata = {
            "architecture": self.architecture,
            "hf_architecture": HF_CLASSES[self.architecture],
            "hf_model_type": self.architecture,
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
            specs[f"{at}input_layernorm.weight"] = TensorSpec((D,), "ones")
            for letter, width in (("q", NH), ("k", KH), ("v", KH)):
                specs[f"{at}self_attn.{letter}_proj.weight"] = TensorSpec((width, D), "normal")
                if self.attention_bias:
                    specs[f"{at}self_attn.{letter}_proj.bias"] = TensorSpec((width,), "zeros")
            specs |= {
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

    def rows(self) -> list[dict[str, Any]]:
        """Every difference: `name`, `difference`; of a wrong shape also `found` and `needed`."""
        return [
            *({"name": name, "difference": "missing"} for name in self.missing),
            *({"name": name, "difference": "extra"} for name in self.extra),
            *(
                {"name": name, "difference": "shape", "found": list(found), "needed": list(needed)}
                for name, found, needed in self.shape_mismatch
            ),
        ]

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
        return f"{self.count()}: " + ("; ".join(parts) or "complete")

    def count(self) -> str:
        """How many tensors there are and how many there should be."""
        return f"{self.found} tensors for {self.expected}"


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


def require_architecture(claim: Any, key: str, source: str) -> Architecture:
    """The family that a file names, if it is one of the two.

    Raises:
      ConfigError: says which `key` of `source` names another.
    """
    if not isinstance(claim, str) or claim not in HF_CLASSES:
        raise ConfigError(
            f"{source}: {key} is {short(repr(claim))}, only {' and '.join(map(repr, HF_CLASSES))} "
            "are supported"
        )
    return cast(Architecture, claim)


def _refuse_variants(config: Mapping[str, Any], family: Architecture, source: str) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        scaling = Fields(config, source).mapping(key)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            raise ConfigError(
                f"{source}: {key} {short(repr(kind))} is not supported, only plain RoPE is"
            )
    for key in _VARIANTS_OFF[family]:
        if config.get(key):
            raise ConfigError(f"{source}: {key} is on, which plain {family} has not")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(
            f"{source}: hidden_act={short(repr(config['hidden_act']))}, {family} has 'silu'"
        )
    classes = config.get("architectures")
    if classes and classes != [HF_CLASSES[family]]:
        raise ConfigError(
            f"{source}: architectures={short(repr(classes))} contradicts model_type={family!r}, "
            f"whose language model is {HF_CLASSES[family]}"
        )


def _rope_theta(config: Mapping[str, Any], source: str) -> Any:
    """Version 4 of transformers has it at the top, version 5 among `rope_parameters`."""
    rope = Fields(config, source).mapping("rope_parameters")
    unknown = sorted(set(rope) - {"rope_theta", "rope_type", "type"})
    if unknown:
        raise ConfigError(
            f"{source}: rope_parameters has {short(repr(unknown[0]))}, only plain RoPE is known"
        )
    found = [v for v in (config.get("rope_theta"), rope.get("rope_theta")) if v is not None]
    if len(found) == 2 and found[0] != found[1]:
        raise ConfigError(
            f"{source}: rope_theta is {short(repr(found[0]))}, but {short(repr(found[1]))} in "
            "rope_parameters; "
            "keep the true one"
        )
    return found[0] if found else None


def _some(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(map(short, texts[:5])) + (", ..." if len(texts) > 5 else "")
