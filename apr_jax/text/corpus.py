"""A corpus into shards of token ids, in one folder or split into two by the documents' hashes."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

from apr_jax.errors import UserError
from apr_jax.progress import Progress
from apr_jax.text.batches import Shards
from apr_jax.text.documents import Documents, read_documents
from apr_jax.text.loading import AnyTokenizer, load_tokenizer
from apr_jax.text.shard_writer import ShardWriter
from apr_jax.text.statistics import statistics

EOS_POLICIES = ("after", "between", "none")
_BATCH_CHARACTERS = 4_000_000  # encoded together: enough for the vectorised parts to pay off
_BATCH_DOCUMENTS = 10_000


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What `encode_corpus` is to do.

    Attributes:
      inputs: files and folders, see `read_documents`.
      tokenizer: path of the tokenizer, see `load_tokenizer`.
      out: folder for the shards.
      pretokenizer: for a byte-level pair without tokenizer.json, see `load_tokenizer`.
      shard_tokens: a shard is closed after the document with which it has so many tokens.
      content_field: the key of the text in JSONL.
      eos_policy: where the end-of-text id goes. "after" every document: each one then ends in the
        same way, whatever follows it, and shards may be concatenated. "between" documents, as the
        original does by default. Or "none".
      val_fraction: share of the documents that is held out, 0 to 1 exclusive.
      val_out: folder for the shards of the held-out documents.
      max_bad: how many damaged lines or files may be skipped.
    """

    inputs: tuple[str, ...]
    tokenizer: str
    out: str
    pretokenizer: str | None = None
    shard_tokens: int = 10_000_000
    content_field: str = "content"
    eos_policy: str = "after"
    val_fraction: float = 0.0
    val_out: str | None = None
    max_bad: int = 0


def split_of(document: bytes, fraction: float) -> bool:
    """Whether the document is held out. Equal documents fall on the same side, in every corpus."""
    digest = hashlib.blake2b(document, digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def encode_corpus(config: CorpusConfig) -> dict[str, Any]:
    """Encode the corpus; a run that was cut off goes on where it was, to the same bytes.

    Returns:
      The report: `statistics` of the shards in `out`, what was skipped, the settings; under `val`
      the statistics of the held-out shards, if any.

    Raises:
      UserError: a setting contradicts another or the tokenizer; the input cannot be read; a folder
        holds other shards; the disk is full.
    """
    documents = read_documents(config.inputs, config.content_field, config.max_bad)
    tokenizer = load_tokenizer(config.tokenizer, pretokenizer=config.pretokenizer)
    _check(config, tokenizer)
    train = ShardWriter(pathlib.Path(config.out), _settings(config, tokenizer, "train"))
    val = None
    if config.val_out:
        val = ShardWriter(pathlib.Path(config.val_out), _settings(config, tokenizer, "val"))
    with Progress("encoding", None, "documents") as progress:
        for batch in _batches(documents):
            _encode(batch, tokenizer, train, val, config.val_fraction)
            progress.update(len(batch))
    notes = {
        "inputs": list(config.inputs),
        "skipped": dict(documents.skipped),
        "bad": documents.bad,
    }
    for writer in (train, val):
        if writer is not None:
            writer.finish(tokenizer.token_bytes(), notes)
    report = _statistics(config.out, tokenizer)
    if config.val_out:
        report["val"] = _statistics(config.val_out, tokenizer)
    return report | notes | _settings(config, tokenizer, "train")


def _check(config: CorpusConfig, tokenizer: AnyTokenizer) -> None:
    if config.shard_tokens < 1:
        raise UserError(f"shard_tokens={config.shard_tokens}: must be at least 1")
    if config.eos_policy not in EOS_POLICIES:
        raise UserError(f"eos_policy={config.eos_policy!r} is not one of {EOS_POLICIES}")
    if config.eos_policy != "none" and tokenizer.eos_id is None:
        raise UserError(
            f"{config.tokenizer}: has no end-of-text token, so eos_policy={config.eos_policy!r} is "
            "impossible: use --eos_policy=none"
        )
    if not 0 <= config.val_fraction < 1:
        raise UserError(f"val_fraction={config.val_fraction}: must be at least 0 and below 1")
    if bool(config.val_fraction) != bool(config.val_out):
        raise UserError("val_fraction and val_out belong together: give both or neither")
    outs = [pathlib.Path(out).resolve() for out in (config.out, config.val_out) if out]
    if len(set(outs)) < len(outs):
        raise UserError(f"{config.out}: out and val_out must be different folders")
    for path in config.inputs:
        for out in outs:
            if out.is_relative_to(pathlib.Path(path).resolve()):
                raise UserError(f"{out}: lies inside the input {path}: choose another folder")


def _settings(config: CorpusConfig, tokenizer: AnyTokenizer, part: str) -> dict[str, Any]:
    """What decides the shards' bytes, besides the documents; `manifest.SETTINGS` names the keys."""
    has_eos = config.eos_policy != "none"
    split = {"part": part, "val_fraction": config.val_fraction} if config.val_out else None
    return {
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "normalization": tokenizer.normalization,
        "eos_policy": config.eos_policy,
        "eos_id": tokenizer.eos_id if has_eos else None,
        "shard_tokens": config.shard_tokens,
        "content_field": config.content_field,
        "split": split,
    }


def _batches(documents: Documents) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(
    batch: list[str],
    tokenizer: AnyTokenizer,
    train: ShardWriter,
    val: ShardWriter | None,
    val_fraction: float,
) -> None:
    waiting: list[tuple[ShardWriter, bytes, str]] = []
    for text in batch:
        document = text.encode()
        writer = val if val is not None and split_of(document, val_fraction) else train
        if not writer.is_written(document):
            waiting.append((writer, document, text))
    encoded = tokenizer.encode_batch([text for _, _, text in waiting])
    for (writer, document, _), ids in zip(waiting, encoded, strict=True):
        writer.add(document, ids)


def _statistics(folder: str, tokenizer: AnyTokenizer) -> dict[str, Any]:
    space = tokenizer.encode(" ")
    return statistics(Shards(folder), tokenizer.unk_id, int(space[0]) if len(space) == 1 else None)
