"""manifest.json: what a folder of shards holds, and the settings that decided its bytes."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from apr_jax.errors import UserError
from apr_jax.files import read_json

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


class ShardError(UserError):
    """A folder of shards is incomplete, mixed up, or not what its manifest says."""


def settings_sha256(manifest: Mapping[str, Any]) -> str:
    """The hash of the settings among the manifest's keys."""
    settings = {key: manifest[key] for key in SETTINGS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    """The folder's manifest, ours or the original's; None when there is none.

    Raises:
      ShardError: the schema is unknown, a key is missing, or the settings were changed by hand.
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
    return manifest


def is_record(value: Any) -> bool:
    """Whether a manifest, finished or not, is an object with a sound list of shards."""
    entries = value.get("shards") if isinstance(value, dict) else None
    return isinstance(entries, list) and all(map(_is_entry, entries))


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in ("name", "sha256", "documents_sha256"))
        and all(isinstance(entry.get(key), int) for key in ("tokens", "documents", "bytes"))
    )
