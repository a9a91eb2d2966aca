"""What a stream of token ids looks like: the figures by which a broken encoding shows."""

import concurrent.futures
import itertools
import math
from typing import Any

import numpy as np

from apr_jax.text.batches import Shards

_SPAN = 1 << 21  # tokens counted at a time


def statistics(
    shards: Shards, start: int = 0, stop: int | None = None, workers: int = 1
) -> dict[str, Any]:
    """Figures of the stream from token `start` to `stop`, counted in the shards themselves.

    Args:
      shards: a folder of shards, of this program or the original.
      start, stop: the window; without `stop` all that follows.
      workers: threads that count a long window.

    Returns:
      start, tokens: where the window lies.
      entropy_bits: Shannon entropy of the ids' frequencies, in bits per token.
      entropy_ceiling_bits: what it can be at most, with so many tokens of such a vocabulary.
        Windows of different lengths have different ceilings and do not compare.
      distinct_tokens: how many different ids occur.
      bytes_per_token: bytes of text, separators being tokens of none. None where the shards do not
        say how many bytes an id stands for.
      unk_fraction, single_space_fraction: the share of the id of what has no token, and of a single
        space, 0 when there is none; None where the shards do not say which these are. Many single
        spaces in source code say that the text was not cut into words as the model's own tokenizer
        does.

    Raises:
      IndexError: the window is empty or not inside the stream.
      ShardError: the files hold no ids.
    """
    stop = shards.num_tokens if stop is None else stop
    if not 0 <= start < stop <= shards.num_tokens:
        raise IndexError(f"tokens {start}:{stop} of a stream of {shards.num_tokens}")
    manifest = shards.manifest
    counts = _count(workers, shards, start, stop)
    size = stop - start
    shares = counts[counts > 0] / size
    vocab_size = len(counts) if manifest is None else manifest["vocab_size"]
    table = shards.token_bytes
    return {
        "start": start,
        "tokens": size,
        "entropy_bits": float(abs(np.sum(shares * np.log2(shares)))),
        "entropy_ceiling_bits": math.log2(min(size, vocab_size)),
        "distinct_tokens": len(shares),
        "bytes_per_token": None if table is None else float(table[: len(counts)] @ counts) / size,
        "unk_fraction": _share(manifest, "unk_id", counts),
        "single_space_fraction": _share(manifest, "space_id", counts),
    }


def corpus_statistics(shards: Shards, workers: int = 1) -> dict[str, Any]:
    """Figures of a whole folder that `encode_corpus` wrote: `statistics`, and beside them

    documents, shards: counts.
    bytes: of the documents' text, as UTF-8; bytes_per_token is by these.
    first_window: the figures of the first 32,768 tokens, which older reports speak of.
    """
    manifest = shards.manifest
    if manifest is None:
        raise ValueError(f"{shards.folder} was not written by encode_corpus")
    whole = statistics(shards, workers=workers)
    del whole["start"]
    return whole | {
        "documents": manifest["documents"],
        "shards": len(manifest["shards"]),
        "bytes": manifest["bytes"],
        "bytes_per_token": manifest["bytes"] / shards.num_tokens,
        "first_window": statistics(shards, 0, min(32_768, shards.num_tokens)),
    }


def _count(workers: int, shards: Shards, start: int, stop: int) -> np.ndarray:
    """int64 [highest id + 1]: how often each id occurs."""

    def count(at: int) -> np.ndarray:
        return np.bincount(shards.read(at, min(at + _SPAN, stop)))

    counts = np.zeros(0, np.int64)
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:  # NumPy counts without the GIL
        for lot in itertools.batched(range(start, stop, _SPAN), workers):
            for more in threads.map(count, lot):
                counts, more = sorted((counts, more), key=len)
                more[: len(counts)] += counts
                counts = more
    return counts


def _share(manifest: dict[str, Any] | None, key: str, counts: np.ndarray) -> float | None:
    if manifest is None or key not in manifest:
        return None
    id_ = manifest[key]
    return 0.0 if id_ is None or id_ >= len(counts) else float(counts[id_] / counts.sum())
