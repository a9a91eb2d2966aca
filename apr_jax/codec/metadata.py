"""The JSON object of an `.apr` file: checked when read, canonical when written.

One table of known keys serves both directions, so nothing is written that would not be read. To a
reader null and absent are the same; the spelling of keys that are not in the table is free.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from apr_jax.codec.errors import MetadataAlias, MetadataError
from apr_jax.errors import short

# The vocabularies and merges of the largest models take some 20 MB and a million elements.
MAX_BYTES = 1 << 26
MAX_ELEMENTS = 1 << 22
MAX_DEPTH = 128

# Its docstring names the type in messages.
_Check = Callable[[Any], bool]


def _string(value: Any) -> bool:
    """a string"""
    return isinstance(value, str)


def _number(value: Any) -> bool:
    """a number"""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unsigned(bits: int) -> _Check:
    def check(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << bits

    check.__doc__ = f"an integer from 0 to 2^{bits} - 1"
    return check


def _object(required: Mapping[str, _Check], optional: Mapping[str, _Check]) -> _Check:
    def check(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and all(key in value and kind(value[key]) for key, kind in required.items())
            and all(value.get(key) is None or kind(value[key]) for key, kind in optional.items())
        )

    check.__doc__ = f"an object with {', '.join(required) or 'strings'} of the right types"
    return check


_U64 = _unsigned(64)
_QUANTIZATION = _object(
    {"quant_type": _string, "bits": _unsigned(8), "symmetric": lambda v: isinstance(v, bool)},
    {"block_size": _U64},
)
_SHARDING = _object(
    {"shard_count": _U64, "shard_index": _U64, "total_size": _U64}, {"pattern": _string}
)
_SPECIAL_TOKENS = _object(
    {}, {f"{kind}_token": _string for kind in ("bos", "eos", "unk", "pad", "im_start", "im_end")}
)

# In the order in which they are written.
_KNOWN: dict[str, _Check] = {
    "model_type": _string,
    "name": _string,
    "description": _string,
    "author": _string,
    "license": _string,
    "data_source": _string,
    "data_license": _string,
    "version": _string,
    "source": _string,
    "original_format": _string,
    "created_at": _string,
    "total_size": _U64,
    "param_count": _U64,
    "quantization": _QUANTIZATION,
    "sharding": _SHARDING,
    "chat_template": _string,
    "chat_format": _string,
    "special_tokens": _SPECIAL_TOKENS,
    "architecture": _string,
    "hf_architecture": _string,
    "hf_model_type": _string,
    "hidden_size": _U64,
    "num_layers": _U64,
    "num_heads": _U64,
    "num_kv_heads": _U64,
    "vocab_size": _U64,
    "intermediate_size": _U64,
    "max_position_embeddings": _U64,
    "rope_theta": _number,
    "rope_type": _unsigned(32),
    "rms_norm_eps": _number,
    "head_dim": _U64,
    "num_experts": _U64,
    "num_experts_per_tok": _U64,
    "moe_intermediate_size": _U64,
}
_NEVER_NULL = {"model_type": "", "total_size": 0, "param_count": 0}
_NULL_WHEN_UNSET = ("license", "data_source", "data_license")

# Other spellings of known keys. A reader in use loses all metadata when a key stands beside one.
_ALIASES = {
    "hidden_size": ("hidden_dim", "d_model", "n_embd"),
    "num_layers": ("n_layers", "num_hidden_layers", "n_layer"),
    "num_heads": ("n_heads", "num_attention_heads", "n_head"),
    "num_kv_heads": ("n_kv_heads", "num_key_value_heads"),
    "vocab_size": ("n_vocab",),
    "intermediate_size": ("ffn_dim", "intermediate_dim", "n_inner"),
    "max_position_embeddings": ("max_seq_len", "context_length", "n_ctx"),
    "rms_norm_eps": ("layer_norm_eps", "norm_eps"),
}


def parse(data: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object as the file spells it, its known keys checked.

    Raises:
      MetadataError: not JSON, too large or deep, not an object, or a known key of a wrong type.
    """
    require_size(len(data), path)
    # No element comes without one of these; those in strings count too, which the bound allows for.
    elements = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if elements > MAX_ELEMENTS:
        raise MetadataError(
            path, f"metadata has {elements:,} commas and brackets, more than {MAX_ELEMENTS:,}"
        )
    try:
        value = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()  # finds halves of surrogate pairs
    except (ValueError, RecursionError) as error:
        raise MetadataError(
            path, f"metadata is not valid JSON ({error}); write the file again"
        ) from error
    if not isinstance(value, dict):
        raise MetadataError(
            path, f"metadata is a JSON {type(value).__name__}, not an object; write the file again"
        )
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise MetadataError(path, f"metadata nests deeper than {MAX_DEPTH} levels")
    _check(value, path)
    return value


def require_size(nbytes: int, path: str | os.PathLike[str]) -> None:
    """Refuse metadata of so many bytes before they are copied.

    Raises:
      MetadataError: more than any model has.
    """
    if nbytes > MAX_BYTES:
        raise MetadataError(path, f"metadata has {nbytes:,} bytes, more than {MAX_BYTES:,}")


def normalise(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Known keys in order, without nulls but with those that always exist; then the others."""
    known: dict[str, Any] = {}
    for key in _KNOWN:
        if (value := metadata.get(key)) is not None:
            known[key] = value
        elif key in _NEVER_NULL:
            known[key] = _NEVER_NULL[key]
        elif key in _NULL_WHEN_UNSET:
            known[key] = None
    return known | {key: value for key, value in metadata.items() if key not in _KNOWN}


def dump(metadata: Mapping[str, Any], path: str | os.PathLike[str]) -> bytes:
    """The canonical bytes: compact, known keys in the format's order, the others sorted.

    Raises:
      MetadataError: a known key of a wrong type, or something that JSON cannot express.
      MetadataAlias: a key beside another spelling of it.
    """
    _check(metadata, path)
    for clash in aliases(metadata, path):
        raise clash
    values = normalise(metadata)
    order = [key for key in values if key in _KNOWN]
    try:
        order += sorted(key for key in values if key not in _KNOWN)
        fields = (f"{_compact(key)}:{_compact(_plain(key, values[key]))}" for key in order)
        data = f"{{{','.join(fields)}}}".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise MetadataError(path, f"metadata cannot be written as JSON ({error})") from error
    parse(data, path)
    return data


def aliases(metadata: Mapping[str, Any], path: str | os.PathLike[str]) -> Iterable[MetadataAlias]:
    """One oddity for each key that stands, even as null, beside another spelling of it."""
    for key, others in _ALIASES.items():
        present = [spelling for spelling in (key, *others) if spelling in metadata]
        if len(present) > 1:
            yield MetadataAlias(
                path, f"metadata has {' and '.join(present)}, which are one field; keep {key}"
            )


def without_aliases(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`metadata` less the other spellings of keys that say nothing, or the same as the key."""
    known = {spelling: key for key, others in _ALIASES.items() for spelling in others}
    return {
        key: value
        for key, value in metadata.items()
        if key not in known or value not in (None, metadata.get(known[key]))
    }


def _check(metadata: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    for key, kind in _KNOWN.items():
        if key not in metadata or (metadata[key] is None and key not in _NEVER_NULL):
            continue
        if not kind(metadata[key]):
            shown = short(repr(metadata[key]))
            raise MetadataError(path, f"metadata has {key}={shown}, which is not {kind.__doc__}")


def _plain(key: str, value: Any) -> Any:
    """Known numbers that are not counts are always written with a decimal point."""
    return float(value) if value is not None and _KNOWN.get(key) is _number else value


def _compact(value: Any) -> str:
    return json.dumps(
        value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{short(text)} is out of range")
    return value


def _deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return any(isinstance(child, dict | list) for child in level)
