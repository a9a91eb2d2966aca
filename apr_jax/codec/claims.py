"""What a checkpoint says of itself, held against what its tensors and its other entries say."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from apr_jax.codec import dtypes
from apr_jax.codec.errors import ArchitectureClaim
from apr_jax.codec.qwen2 import EMBEDDING, HEAD, HF_CLASSES, Coverage, Qwen2Config
from apr_jax.errors import short

_PREFIX = "model."

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
                f"metadata has {key}={short(repr(claim))} beside architecture={family!r}, "
                f"which is {meant!r}; the tensors decide",
            )
    for key, repeated in _REPEATS.items():
        ours, theirs = metadata.get(repeated), metadata.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            yield ArchitectureClaim(
                path,
                f"metadata has {repeated}={short(repr(ours))} but {key}={short(repr(theirs))}; "
                "keep the true one",
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


def contradiction(config: Qwen2Config, found: Coverage, names: Sequence[str]) -> str:
    """What a known pattern of differences means, as the start of a message; empty if none is."""
    family = family_of(names)
    if found.complete:
        return ""
    if lacks_prefix(names):
        return "the names lack the `model.` at their start, which import_checkpoint puts back; "
    if family in (None, config.architecture):
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


def lacks_prefix(names: Iterable[str]) -> bool:
    """Whether a writer stripped the `model.` from the names, as in files of January 2026."""
    names = set(names)
    stripped = EMBEDDING.removeprefix(_PREFIX) in names
    return stripped and not any(name.startswith(_PREFIX) for name in names)


def with_prefix(name: str) -> str:
    """A tensor's name with the `model.` that was stripped; a head never had it."""
    return name if name == HEAD else f"{_PREFIX}{name}"


def unkept(config: Mapping[str, Any], stored: set[str]) -> Iterator[str]:
    """What a `config.json` says and an `.apr` file does not keep, or that is not so.

    Args:
      config: the content of the file.
      stored: the types of the tensors, as `.apr` files name them.
    """
    for key in ("bos_token_id", "eos_token_id"):
        ids = config.get(key)
        if isinstance(ids, list) and len(ids) > 1:
            yield f"config.json has {key}={short(repr(ids))}, of which the first is kept"
    if (pad := config.get("pad_token_id")) is not None:
        yield f"config.json has pad_token_id={short(repr(pad))}, which .apr files do not keep"
    claim = config.get("dtype") or config.get("torch_dtype")
    held = sorted(str(dtypes.BY_NAME[name].torch) for name in stored)
    if claim is not None and held != [claim]:
        yield f"config.json says {short(repr(claim))}, the tensors are of {' and '.join(held)}"
