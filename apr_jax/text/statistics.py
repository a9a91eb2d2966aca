"""What a stream of token ids looks like: the figures by which a broken encoding shows."""

from typing import Any

import numpy as np

from apr_jax.text.batches import Shards


def statistics(shards: Shards, unk_id: int | None, space_id: int | None) -> dict[str, Any]:
    """Figures of the whole stream, counted in the shards themselves.

    Args:
      shards: a folder written by `encode_corpus`.
      unk_id: the id of what has no token, if there is one.
      space_id: the id of a single space, if there is one.

    Returns:
      tokens, documents, shards: counts.
      bytes: of the documents' text, as UTF-8.
      bytes_per_token: the mean, separators included.
      entropy_bits: Shannon entropy of the ids' frequencies, in bits per token.
      distinct_tokens: how many different ids occur.
      unk_fraction, single_space_fraction: shares of these ids, between 0 and 1. Many single spaces
        in source code say that the text was not cut into words as the model's own tokenizer does.
    """
    manifest = shards.manifest
    if manifest is None:
        raise ValueError(f"{shards.folder} was not written by encode_corpus")
    counts = np.zeros(manifest["vocab_size"], np.int64)
    for ids in shards.chunks():
        counts += np.bincount(ids, minlength=len(counts))
    shares = counts[counts > 0] / shards.num_tokens
    return {
        "tokens": shards.num_tokens,
        "documents": manifest["documents"],
        "shards": len(manifest["shards"]),
        "bytes": manifest["bytes"],
        "bytes_per_token": manifest["bytes"] / shards.num_tokens,
        "entropy_bits": float(abs(np.sum(shares * np.log2(shares)))),
        "distinct_tokens": len(shares),
        "unk_fraction": _share(counts, unk_id),
        "single_space_fraction": _share(counts, space_id),
    }


def _share(counts: np.ndarray, id_: int | None) -> float:
    return 0.0 if id_ is None else float(counts[id_] / counts.sum())
