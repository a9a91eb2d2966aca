"""Vocabularies inside model files: GGUF, and `.apr` of this project or the original program."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from apr_jax.text.byte_level import byte_level
from apr_jax.text.sentencepiece_format import SentencePieceTokenizer
from apr_jax.text.special_tokens import SpecialTokens
from apr_jax.text.tokenizer_json import from_tokenizer_json
from apr_jax.text.vocabulary import TokenizerError, Vocabulary

# The codec is imported where a model is read: it brings packages that no other format needs.

_VOCABULARY, _MERGES = "tokenizer.vocabulary", "tokenizer.merges"
_GGUF = b"GGUF"
_HOLE = "<unk>"  # how the original fills ids that have no token


def is_model(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a GGUF or `.apr` model."""
    return start.startswith((_GGUF, b"APR"))


def folder_of(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of tokenizer files that goes with an `.apr` model, None if there is none."""
    from apr_jax.codec.folders import companions, tokenizer_folder

    folder = tokenizer_folder(path)
    return folder if companions(folder) else None


def read_embedded(
    path: pathlib.Path, pretokenizer: str | None
) -> Vocabulary | SentencePieceTokenizer:
    """The vocabulary in the model's metadata.

    A GGUF names the rule that cuts text into words. The original's `.apr` files do not: there
    `pretokenizer` must.

    Raises:
      TokenizerError: there is none, it is incomplete, or it cannot be read without guessing.
    """
    from apr_jax.codec import embedded, open_apr
    from apr_jax.codec.gguf_file import GgufKeys

    with path.open("rb") as file:
        is_gguf = file.read(len(_GGUF)) == _GGUF
    if is_gguf:
        with GgufKeys(path) as gguf:
            files, problem = embedded.of_gguf(gguf)
            eos_id = gguf.keys.get("tokenizer.ggml.eos_token_id")
    else:
        with open_apr(path) as apr:
            metadata = apr.metadata
            eos_id = metadata.get("tokenizer.eos_token_id")
            if metadata.get(_VOCABULARY) and metadata.get("tokenizer.pre_type") is None:
                return _with_eos(_of_original(path, metadata, pretokenizer), eos_id)
            files, problem = embedded.of_apr(apr)
    if not files:
        raise TokenizerError(problem or f"{path}: holds no vocabulary")
    if pretokenizer is not None and pretokenizer != "whitespace":
        raise TokenizerError(f"{path}: names its pre-tokeniser itself: leave --pretokenizer out")
    if "tokenizer.model" in files:
        return SentencePieceTokenizer(files["tokenizer.model"], path)
    return _with_eos(from_tokenizer_json(path, json.loads(files["tokenizer.json"])), eos_id)


def _of_original(
    path: pathlib.Path, metadata: Mapping[str, Any], pretokenizer: str | None
) -> Vocabulary:
    tokens, merges = metadata[_VOCABULARY], metadata.get(_MERGES)
    if not merges:
        raise TokenizerError(
            f"{path}: holds a vocabulary without {_MERGES}, as aprender imported from newer "
            "tokenizer.json files: take the tokenizer files from the model's source"
        )
    for name, values in ((_VOCABULARY, tokens), (_MERGES, merges)):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise TokenizerError(f"{path}: {name} is not a list of strings")
    if pretokenizer is None:
        raise TokenizerError(
            f"{path}: its vocabulary does not say how text is cut into words: give --pretokenizer"
        )
    ids: dict[str, int] = {}
    for id_, token in enumerate(tokens):
        if ids.setdefault(token, id_) != id_ and token != _HOLE:
            raise TokenizerError(f"{path}: token {token!r} has ids {ids[token]} and {id_}")
    sides = [merge.split(" ") for merge in merges]
    for rank, merge in enumerate(sides):
        if len(merge) != 2 or not all(merge):
            raise TokenizerError(f"{path}: merge {rank} is {merges[rank]!r}, not two tokens")
    if tokens.count(_HOLE) and not any("".join(merge) == _HOLE for merge in sides):
        del ids[_HOLE]
    lines = ((f"{path}: merge {rank}", *merge) for rank, merge in enumerate(sides))
    return byte_level(path, ids, lines, pretokenizer, SpecialTokens())


def _with_eos(vocabulary: Vocabulary, eos_id: Any) -> Vocabulary:
    """With the file's own end-of-text id where no token has a usual name for it."""
    if vocabulary.eos_id is None and any(token.id == eos_id for token in vocabulary.added):
        return dataclasses.replace(vocabulary, eos_id=eos_id)
    return vocabulary
