"""Finding out which kind of tokenizer lies at a path, from its content, and loading it."""

import os
import pathlib
from collections.abc import Mapping

from apr_jax.files import read_json
from apr_jax.text.alphabet import SYMBOLS, unspell
from apr_jax.text.hex_format import BYTE_TOKENS, read_hex
from apr_jax.text.pretokenizers import PRETOKENIZERS
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.tokenizer_json import read_tokenizer_json
from apr_jax.text.vocabulary import (
    AddedToken,
    TokenizerError,
    Vocabulary,
    check_ids,
    read_merges,
    resolve_merges,
)

_JSON, _VOCAB, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"


def load_tokenizer(path: str | os.PathLike[str], *, pretokenizer: str | None = None) -> Tokenizer:
    """The tokenizer in a folder, or of one of its files.

    In a folder `vocab.json` is looked at first. With all 256 hex byte tokens it is a hex
    vocabulary, and a tokenizer.json beside it is not read, as in the original program. With all
    256 byte-level symbols, or without a vocab.json, tokenizer.json is read. Without a
    tokenizer.json a byte-level pair has lost the rule that cuts text into words, so it loads only
    when `pretokenizer` names that rule. Everything else is refused.

    Args:
      path: a folder, its tokenizer.json, or its vocab.json.
      pretokenizer: for a byte-level pair without tokenizer.json, one of `PRETOKENIZERS`;
        otherwise None.

    Raises:
      TokenizerError: no tokenizer is there, or it is damaged or of a kind not supported.
    """
    if pretokenizer is not None and pretokenizer not in PRETOKENIZERS:
        raise TokenizerError(f"pretokenizer={pretokenizer!r} is not one of {[*PRETOKENIZERS]}")
    vocabulary = _read(pathlib.Path(path), pretokenizer)
    if pretokenizer is not None and vocabulary.format != "byte-level":
        raise TokenizerError(
            f"{path}: is a {vocabulary.format} tokenizer and settles its pre-tokeniser itself: "
            "leave --pretokenizer out"
        )
    return Tokenizer(vocabulary)


def _read(path: pathlib.Path, pretokenizer: str | None) -> Vocabulary:
    if path.is_dir():
        folder = path
    elif not path.exists():
        raise TokenizerError(f"{path}: no such file or folder")
    elif path.name == _JSON:
        return read_tokenizer_json(path)
    elif path.name == _VOCAB:
        folder = path.parent
    else:
        raise TokenizerError(
            f"{path}: {path.suffix or 'this'} is not a tokenizer that can be read; give a folder "
            f"with {_JSON}, or with {_VOCAB} and {_MERGES}"
        )
    if (folder / _VOCAB).exists():
        return _read_pair(folder, pretokenizer)
    if (folder / _JSON).exists():
        return read_tokenizer_json(folder / _JSON)
    others = sorted(file.name for file in folder.glob("*.model"))
    hint = f"; {others[0]} (SentencePiece) cannot be read yet" if others else ""
    raise TokenizerError(f"{folder}: holds neither {_JSON} nor {_VOCAB} and {_MERGES}{hint}")


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
    if symbols < 256:
        raise TokenizerError(
            f"{path}: has {hex_bytes} of the 256 byte tokens of a hex vocabulary and {symbols} of "
            "the 256 symbols of a byte-level one; only a whole set can be read"
        )
    if (folder / _JSON).exists():
        return read_tokenizer_json(folder / _JSON)
    if pretokenizer is None:
        raise TokenizerError(
            f"{folder}: a byte-level {_VOCAB} without {_JSON} does not say how text is cut into "
            f"words: put {_JSON} beside it, or give --pretokenizer"
        )
    return _byte_level(folder, ids, pretokenizer)


def _byte_level(folder: pathlib.Path, ids: Mapping[str, int], pretokenizer: str) -> Vocabulary:
    path = folder / _MERGES
    try:
        lines = read_merges(path, path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from error
    merges_M3 = resolve_merges(ids, lines)
    # An entry that no merge makes can only be a token that was added whole.
    made = {ids[symbol] for symbol in SYMBOLS} | set(merges_M3[:, 2].tolist())
    tokens, added = {}, []
    for token, id_ in ids.items():
        text = unspell(token)
        if id_ in made and text is not None:
            tokens[id_] = text
        else:
            added.append(AddedToken(id_, token, special=True))
    return Vocabulary(
        format="byte-level",
        tokens=tokens,
        merges_M3=merges_M3,
        added=tuple(added),
        finds_added=True,
        # As the models with these pre-tokenisers have it.
        normalization="nfc" if pretokenizer == "qwen2" else "none",
        pretokenizer=pretokenizer,
        eos_id=ids.get("<|endoftext|>") if ids.get("<|endoftext|>") not in made else None,
        unk_id=None,
        ignores_merges=pretokenizer == "llama3",
    )
