"""Finding out which kind of tokenizer lies at a path, from its content, and loading it."""

import dataclasses
import logging
import os
import pathlib

from apr_jax.files import read_json
from apr_jax.text import compat as compat_lib
from apr_jax.text.alphabet import SYMBOLS
from apr_jax.text.byte_level import read_pair
from apr_jax.text.embedded import folder_of, is_model, read_embedded
from apr_jax.text.hex_format import BYTE_TOKENS, read_hex
from apr_jax.text.pretokenizers import NAMEABLE
from apr_jax.text.sentencepiece_format import SentencePieceTokenizer, read_sentencepiece
from apr_jax.text.special_tokens import SpecialTokens
from apr_jax.text.tiktoken_format import is_ranks, read_tiktoken
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.tokenizer_json import read_tokenizer_json
from apr_jax.text.vocabulary import TokenizerError, Vocabulary, check_ids

AnyTokenizer = Tokenizer | SentencePieceTokenizer

COMPATS = (compat_lib.NAME,)

_JSON, _VOCAB, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_ALONE = ("*.model", "*.tiktoken")
_START = 4096  # bytes by which the kind of a file is told


def load_tokenizer(
    path: str | os.PathLike[str], *, pretokenizer: str | None = None, compat: str | None = None
) -> AnyTokenizer:
    """The tokenizer in a folder, or in a file, told by content.

    In a folder `vocab.json` is looked at first. With all 256 hex byte tokens it is a hex
    vocabulary, and a tokenizer.json beside it is not read, as in the original program. With all
    256 byte-level symbols, or without a vocab.json, tokenizer.json is read. Without a
    tokenizer.json a byte-level pair has lost the rule that cuts text into words, so it loads only
    when `pretokenizer` names that rule. A vocabulary with a part of either set is refused; the
    original takes 200 hex byte tokens or more for a hex vocabulary, and all else for byte-level.
    A folder without any of these may hold one SentencePiece model or one rank file of tiktoken.

    A file may be any of those, or an `.apr` or GGUF model with its vocabulary in it.

    Args:
      path: a folder or a file.
      pretokenizer: one of `pretokenizers.NAMEABLE`, for what does not say how text is cut: a
        byte-level pair without tokenizer.json, a rank file that is not known. Otherwise None.
      compat: "aprender-1598" for the ids that aprender wrote at that time, to check old corpora;
        they are not the model's, and a warning says so. Otherwise None.

    Raises:
      TokenizerError: no tokenizer is there, or it is damaged or of a kind not supported.
    """
    if pretokenizer is not None and pretokenizer not in NAMEABLE:
        raise TokenizerError(f"pretokenizer={pretokenizer!r} is not one of {[*NAMEABLE]}")
    if compat is not None and compat not in COMPATS:
        raise TokenizerError(f"compat={compat!r} is not one of {[*COMPATS]}")
    if pretokenizer is not None and compat is not None:
        raise TokenizerError(f"compat={compat!r} has a pre-tokeniser of its own: name no other")
    found = _read(pathlib.Path(path), "whitespace" if compat else pretokenizer)
    if pretokenizer is not None and found.format not in ("byte-level", "tiktoken"):
        raise TokenizerError(
            f"{path}: is a {found.format} tokenizer and settles its pre-tokeniser itself: "
            "leave --pretokenizer out"
        )
    if isinstance(found, SentencePieceTokenizer):
        if compat:
            raise TokenizerError(f"{path}: compat={compat!r} is not for SentencePiece models")
        return found
    if compat:
        logging.getLogger(__name__).warning("%s: %s", path, compat_lib.WARNING)
        found = compat_lib.as_aprender(found, path)
    return Tokenizer(found)


def _read(path: pathlib.Path, pretokenizer: str | None) -> Vocabulary | SentencePieceTokenizer:
    if path.is_dir():
        return _read_folder(path, pretokenizer)
    if not path.exists():
        raise TokenizerError(f"{path}: no such file or folder")
    if not path.is_file():
        raise TokenizerError(f"{path}: is not a regular file")
    if path.name in (_VOCAB, _MERGES):
        return _read_pair(path.parent, pretokenizer)
    if path.suffix == ".json":
        return _with_eos(read_tokenizer_json(path), path.parent)
    return _read_content(path, pretokenizer)


def _read_content(
    path: pathlib.Path, pretokenizer: str | None
) -> Vocabulary | SentencePieceTokenizer:
    with path.open("rb") as file:
        start = file.read(_START)
    if is_model(start):
        folder = folder_of(path)
        return _read_folder(folder, pretokenizer) if folder else read_embedded(path, pretokenizer)
    if is_ranks(start):
        return read_tiktoken(path, pretokenizer)
    if path.suffix == ".model":
        return read_sentencepiece(path)
    raise TokenizerError(
        f"{path}: is no tokenizer that can be read: give a folder with {_JSON}, or with {_VOCAB} "
        f"and {_MERGES}, a SentencePiece .model, a rank file, or an .apr or GGUF model"
    )


def _read_folder(
    folder: pathlib.Path, pretokenizer: str | None
) -> Vocabulary | SentencePieceTokenizer:
    if (folder / _VOCAB).exists():
        return _read_pair(folder, pretokenizer)
    if (folder / _JSON).exists():
        return _with_eos(read_tokenizer_json(folder / _JSON), folder)
    others = sorted(file for kind in _ALONE for file in folder.glob(kind))
    if len(others) == 1:
        return _read_content(others[0], pretokenizer)
    if others:
        raise TokenizerError(
            f"{folder}: holds {others[0].name} and {others[1].name}: name the file that is meant"
        )
    raise TokenizerError(
        f"{folder}: holds neither {_JSON} nor {_VOCAB} and {_MERGES}, nor a .model or .tiktoken"
    )


def _read_pair(folder: pathlib.Path, pretokenizer: str | None) -> Vocabulary:
    path = folder / _VOCAB
    content = read_json(path)
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: holds a {type(content).__name__}, not tokens with their ids")
    ids = check_ids(path, content)
    hex_bytes = sum(token in ids for token in BYTE_TOKENS)
    symbols = sum(symbol in ids for symbol in SYMBOLS)
    if hex_bytes == 256:
        return read_hex(folder, ids)
    if symbols > hex_bytes and (folder / _JSON).exists():
        return _with_eos(read_tokenizer_json(folder / _JSON), folder)
    if symbols < 256:
        raise TokenizerError(
            f"{path}: has {hex_bytes} of the 256 byte tokens of a hex vocabulary and {symbols} of "
            "the 256 symbols of a byte-level one; only a whole set can be read"
        )
    return read_pair(folder, ids, pretokenizer)


def _with_eos(vocabulary: Vocabulary, folder: pathlib.Path) -> Vocabulary:
    """With the end of text that tokenizer_config.json names, where no token has a usual name."""
    if vocabulary.eos_id is not None:
        return vocabulary
    eos = SpecialTokens.beside(folder).eos
    ids = [token.id for token in vocabulary.added if token.content == eos]
    return dataclasses.replace(vocabulary, eos_id=ids[0]) if ids else vocabulary
