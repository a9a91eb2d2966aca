"""A corpus into shards of token ids, in one folder or split into two by the documents' hashes."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from apr_jax.errors import UserError
from apr_jax.lock import locked
from apr_jax.progress import Progress
from apr_jax.text import blocks
from apr_jax.text.batches import Shards
from apr_jax.text.block_encoder import DIGEST, BlockEncoder, Task, hash_of, is_held_out
from apr_jax.text.loading import AnyTokenizer, load_tokenizer
from apr_jax.text.shard_writer import ShardWriter
from apr_jax.text.sources import Source, Sources, find_sources
from apr_jax.text.statistics import corpus_statistics
from apr_jax.text.workers import Workers, default_count

EOS_POLICIES = ("after", "between", "none")
_WORTH_COMPILING = 600_000_000  # bytes of input for each worker
_WORTH_COMPILING_MERGES = 2_000_000_000  # the same
_WORTH_A_WORKER = 16_000_000  # bytes of input; for less, starting a process takes longer


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
      eos_token: the special token that separates documents; None for the tokenizer's end of text.
      compat: see `load_tokenizer`.
      workers: processes that encode; they do not change the shards. 0: as many as there are cores,
        and as the input is worth.
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
    eos_token: str | None = None
    compat: str | None = None
    workers: int = 0


def split_of(document: bytes, fraction: float) -> bool:
    """Whether the document is held out. Equal documents fall on the same side, in every corpus."""
    digests_D16 = np.frombuffer(hash_of(document), np.uint8).reshape(1, DIGEST)
    return bool(is_held_out(digests_D16, fraction)[0])


def encode_corpus(config: CorpusConfig) -> dict[str, Any]:
    """Encode the corpus; a run that was cut off goes on where it was, to the same bytes.

    Returns:
      The report: `corpus_statistics` of the shards in `out`, what was skipped, the settings; under
      `val` those of the held-out shards, if any.

    Raises:
      UserError: a setting contradicts another or the tokenizer; the input cannot be read; a folder
        holds other shards, or another run is writing there; the disk is full.
    """
    sources = find_sources(config.inputs)
    tokenizer = load_tokenizer(
        config.tokenizer, pretokenizer=config.pretokenizer, compat=config.compat
    )
    eos_id = _eos_id(config, tokenizer)
    _check(config)
    with contextlib.ExitStack() as locks:
        for out in filter(None, (config.out, config.val_out)):
            locks.enter_context(locked(out))
        return _encode(config, sources, tokenizer, eos_id)


def _encode(
    config: CorpusConfig, sources: Sources, tokenizer: AnyTokenizer, eos_id: int | None
) -> dict[str, Any]:
    settings = {part: _settings(config, tokenizer, eos_id, part) for part in ("train", "val")}
    writers = [ShardWriter(pathlib.Path(config.out), settings["train"])]
    if config.val_out:
        writers.append(ShardWriter(pathlib.Path(config.val_out), settings["val"]))
    total = sum(source.size for source in sources.files)
    count = config.workers or min(default_count(), 1 + total // _WORTH_A_WORKER)
    encoder = BlockEncoder(
        tokenizer=tokenizer,
        content_field=config.content_field,
        most_bad=config.max_bad + 1,
        eos_id=eos_id,
        eos_first=config.eos_policy == "between",
        val_fraction=config.val_fraction if config.val_out else None,
        # With one worker this is the caller's process, in which JAX is not ours to start.
        compiles=count > 1 and total // count >= _WORTH_COMPILING,
        compiles_merges=total // count >= _WORTH_COMPILING_MERGES,
    )
    tally = blocks.Tally(config.max_bad, sources.hidden)
    with Workers(count, encoder) as workers, Progress("encoding", total, "B") as progress:
        _write(config, sources.files, workers, writers, tally, progress)
    space = tokenizer.encode(" ")
    notes = {
        "inputs": list(config.inputs),
        "compat": config.compat,
        "unk_id": tokenizer.unk_id,
        "space_id": int(space[0]) if len(space) == 1 else None,
        "skipped": dict(tally.skipped),
        "bad": tally.bad,
    }
    for writer in writers:
        writer.finish(tokenizer.token_bytes(), notes)
    report = corpus_statistics(Shards(config.out), count)
    if config.val_out:
        report["val"] = corpus_statistics(Shards(config.val_out), count)
    return report | notes | settings["train"]


def _write(
    config: CorpusConfig,
    sources: Sequence[Source],
    workers: Workers,
    writers: Sequence[ShardWriter],
    tally: blocks.Tally,
    progress: Progress,
) -> None:
    """Encode what the writers have not written yet, in order."""

    def tasks() -> Iterator[Task]:
        for block in blocks.cut(sources, config.content_field):
            yield Task(block, tuple(writer.needs_ids(1) for writer in writers))

    for task, answer in workers.ordered(tasks()):
        tally.add(task.block, answer.contents, answer.documents)
        for part, writer in zip(answer.parts, writers, strict=True):
            if part.counts is None and writer.needs_ids(len(part.sizes)):
                # The finished shards end in this block.
                answer = workers(Task(task.block, (True,) * len(writers)))
        for part, writer in zip(answer.parts, writers, strict=True):
            writer.add(part)
        progress.update(task.block.size)
    tally.require_some(len(sources), config.content_field)


def _eos_id(config: CorpusConfig, tokenizer: AnyTokenizer) -> int | None:
    """The separator: the token that is named, or the tokenizer's own; None for no separator."""
    if config.eos_policy not in EOS_POLICIES:
        raise UserError(f"eos_policy={config.eos_policy!r} is not one of {EOS_POLICIES}")
    if config.eos_policy == "none":
        if config.eos_token is not None:
            raise UserError("eos_token is of no use with eos_policy='none': leave it out")
        return None
    eos_id = tokenizer.eos_id
    if config.eos_token is not None:
        eos_id = tokenizer.token_id(config.eos_token)
        if eos_id is None:
            raise UserError(f"{config.tokenizer}: has no special token {config.eos_token!r}")
    if eos_id is None:
        raise UserError(
            f"{config.tokenizer}: has no end-of-text token, so eos_policy={config.eos_policy!r} is "
            "impossible: use --eos_policy=none, or name one by --eos_token"
        )
    return eos_id


def _check(config: CorpusConfig) -> None:
    if config.shard_tokens < 1:
        raise UserError(f"shard_tokens={config.shard_tokens}: must be at least 1")
    if config.workers < 0:
        raise UserError(f"workers={config.workers}: must be at least 1, or 0 for every core")
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


def _settings(
    config: CorpusConfig, tokenizer: AnyTokenizer, eos_id: int | None, part: str
) -> dict[str, Any]:
    """What decides the shards' bytes, besides the documents; `manifest.SETTINGS` names the keys."""
    split = {"part": part, "val_fraction": config.val_fraction} if config.val_out else None
    return {
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "normalization": tokenizer.normalization,
        "eos_policy": config.eos_policy,
        "eos_id": eos_id,
        "shard_tokens": config.shard_tokens,
        "content_field": config.content_field,
        "split": split,
    }
