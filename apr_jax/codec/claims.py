"""What a checkpoint says of itself, held against what its tensors and its other entries say."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from apr_jax.codec.errors import ArchitectureClaim
from apr_jax.codec.qwen2 import HF_CLASSES, Coverage, Qwen2Config

# Entries that repeat another: their own place in the metadata, and what they repeat.
_REPEATS = {
    f"model.{key}": key
    for key in (
        "architecture",
        "hidden_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "vocab_size",
        "intermediate_size",
        "rope_theta",
        "rms_norm_eps",
    )
}


def oddities(
    metadata: Mapping[str, Any], path: str | os.PathLike[str]
) -> Iterator[ArchitectureClaim]:
    """The entries of an `.apr` file's metadata that contradict each other."""
    family = metadata.get("architecture")
    for key, meant in (
        ("hf_model_type", family),
        ("hf_architecture", HF_CLASSES.get(family) if isinstance(family, str) else None),
    ):
        claim = metadata.get(key)
        if claim is not None and meant is not None and claim != meant:
            yield ArchitectureClaim(
                path,
                f"metadata has {key}={claim!r} beside architecture={family!r}, which is {meant!r}; "
                "the tensors decide",
            )
    for key, repeated in _REPEATS.items():
        ours, theirs = metadata.get(repeated), metadata.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            yield ArchitectureClaim(
                path, f"metadata has {repeated}={ours!r} but {key}={theirs!r}; keep the true one"
            )


def family_of(names: Iterable[str]) -> str | None:
    """The architecture whose tensors these are, None if nothing but layers tells."""
    names = list(names)
    if any(".q_norm." in name for name in names):
        return "qwen3"
    if any(".qkv_proj." in name for name in names):
        return "phi3"
    if any(".mlp.experts." in name or "_exps." in name for name in names):
        return "a mixture of experts"
    if any(name.endswith(".q_proj.bias") for name in names):
        return "qwen2"
    return "llama" if any(name.endswith(".q_proj.weight") for name in names) else None


def contradiction(config: Qwen2Config, found: Coverage, names: Iterable[str]) -> str:
    """What a known pattern of differences means, as the start of a message; empty if none is."""
    family = family_of(names)
    if found.complete or family in (None, config.architecture):
        return ""
    if family == "llama":
        biases = sum(name.endswith("_proj.bias") for name in found.missing)
        return (
            f"all {biases} biases of q, k and v are missing, as programs for Llama leave them; "
            "without them Qwen2 computes something else, so convert its source again; "
        )
    return (
        f"the configuration says {config.architecture}, but the tensors are of {family}"
        f"{'' if family == 'qwen2' else ', which is not supported'}; "
    )
