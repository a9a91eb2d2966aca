"""manifest.json: what a folder of shards holds, and the settings that decided its bytes."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from apr_jax.errors import UserError, short
from apr_jax.files import read_json
from apr_jax.text.vocabulary import MAX_IDS

NAME = "manifest.json"
# Stands in the manifest's place, with the shards finished so far, until the last one is written.
UNFINISHED = "unfinished.json"
TOKEN_BYTES = "token_bytes.npy"
SCHEMA = "apr-jax-shards-v1"
# What the original program writes: totals, but no hashes and no list of its shards.
ORIGINAL_SCHEMA = "pretokenize-bin-v1"

# Together with the documents these decide every byte of every shard.
SETTINGS = (
    "tokenizer_sha256",
    "vocab_size",
    "normalization",
    "eos_policy",
    "eos_id",
    "shard_tokens",
    "content_field",
    "split",
)
_IDS = ("eos_id", "unk_id", "space_id")


class ShardError(UserError):
    """A folder of shards is incomplete, mixed up, or not what its manifest says."""


def settings_sha256(manifest: Mapping[str, Any]) -> str:
    """The hash of the settings among the manifest's keys."""
    settings = {key: manifest[key] for key in SETTINGS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    """The folder's manifest, ours or the original's; None when there is none.

    Raises:
      ShardError: the schema is unknown, a key is missing, the settings were changed by hand, or an
        id is none.
    """
    path = folder / NAME
    if not path.exists():
        return None
    manifest = read_json(path)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema not in (SCHEMA, ORIGINAL_SCHEMA):
        raise ShardError(
            f"{path}: schema {schema!r} is not one of {SCHEMA!r} and {ORIGINAL_SCHEMA!r}: "
            "is this a folder of shards?"
        )
    if schema == SCHEMA:
        keys = (*SETTINGS, "settings_sha256", "tokens", "shards")
        missing = [key for key in keys if key not in manifest]
        if missing:
            raise ShardError(f"{path}: has no {', '.join(missing)}: encode the corpus again")
        if not is_record(manifest):
            raise ShardError(f"{path}: its list of shards is damaged: encode the corpus again")
        if settings_sha256(manifest) != manifest["settings_sha256"]:
            raise ShardError(
                f"{path}: its settings do not hash to its settings_sha256, so they were changed "
                "after the shards were written: encode the corpus again"
            )
        _check_ids(path, manifest)
    else:
        _check_id(path, "eos_token_id", manifest.get("eos_token_id"), MAX_IDS)
    return manifest


def shard_name(number: int) -> str:
    """The file of the shard with this place in the stream, the first being 0."""
    return f"shard-{number:05d}.bin"


def is_record(value: Any) -> bool:
    """Whether a manifest, finished or not, is an object with a sound list of shards."""
    entries = value.get("shards") if isinstance(value, dict) else None
    return isinstance(entries, list) and all(
        _is_entry(entry, shard_name(number)) for number, entry in enumerate(entries)
    )


def _is_entry(entry: Any, name: str) -> bool:
    return (
        isinstance(entry, dict)
        and entry.get("name") == name
        and all(isinstance(entry.get(key), str) for key in ("sha256", "documents_sha256"))
        and all(_is_count(entry.get(key)) for key in ("tokens", "documents", "bytes"))
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _check_ids(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    vocab_size = manifest["vocab_size"]
    if not (_is_count(vocab_size) and 0 < vocab_size <= MAX_IDS):
        raise ShardError(
            f"{path}: vocab_size is {short(repr(vocab_size))}, not an integer from 1 to "
            f"{MAX_IDS}: encode the corpus again"
        )
    for key in _IDS:
        _check_id(path, key, manifest.get(key), vocab_size)


def _check_id(path: pathlib.Path, key: str, value: Any, vocab_size: int) -> None:
    if value is not None and not (_is_count(value) and value < vocab_size):
        raise ShardError(
            f"{path}: {key} is {short(repr(value))}, not an id below {vocab_size} or null: "
            "encode the corpus again"
        )
