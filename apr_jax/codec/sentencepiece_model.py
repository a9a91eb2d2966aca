"""A SentencePiece vocabulary between GGUF keys and a `tokenizer.model` of the library.

GGUF keeps pieces, scores and types, and little of how text is normalised. What it leaves unsaid is
taken as llama.cpp takes it: no normal form, a space in front, runs of spaces stay.
"""

import collections
import math
import os
import re
import struct
from collections.abc import Mapping
from typing import Any

from gguf import TokenType

from apr_jax.codec.errors import TokenizerLeftOut
from apr_jax.errors import short

_Path = str | os.PathLike[str]

# Numbers of fields in sentencepiece_model.proto; the types of pieces are those of GGUF.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _TYPE = 1, 3
_SCORE = b"\x15"  # field 2, a float
_MODEL_TYPE, _BPE, _BYTE_FALLBACK = 3, 2, 35
_NAMES = {"unknown": 45, "bos": 46, "eos": 47, "padding": 48}
_RULE, _SPACE_IN_FRONT, _FEWER_SPACES, _MARK_SPACES = 1, 3, 4, 5

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def sentencepiece_model(keys: Mapping[str, Any], path: _Path) -> bytes:
    """The bytes of a `tokenizer.model` that gives the ids of this vocabulary.

    Args:
      keys: the values of `tokenizer.ggml.*` of a vocabulary of kind "llama", the prefix left away.
      path: names the file in errors.

    Raises:
      TokenizerLeftOut: it is incomplete, or not one that the library takes.
    """
    tokens, scores, types = (keys.get(key, ()) for key in ("tokens", "scores", "token_type"))
    if not (_all(tokens, str) and _all(scores, float) and _all(types, int)):
        raise TokenizerLeftOut(path, "has not all of tokens, scores and token_type")
    if not len(tokens) == len(scores) == len(types):
        raise TokenizerLeftOut(
            path, f"has {len(tokens)} tokens, {len(scores)} scores and {len(types)} types"
        )
    ids = {
        kind: id_
        for kind in _NAMES
        if type(id_ := keys.get(f"{kind}_token_id")) is int and 0 <= id_ < len(tokens)
    }
    types = _with_one_unknown(types, ids.get("unknown"), path)
    _check(tokens, scores, types, path)
    pieces = (
        _block(_PIECE, token.encode()) + _SCORE + struct.pack("<f", score) + _number(_TYPE, kind)
        for token, score, kind in zip(tokens, scores, types, strict=True)
    )
    ids["unknown"] = types.index(TokenType.UNKNOWN)
    trainer = _number(_MODEL_TYPE, _BPE) + _number(_BYTE_FALLBACK, TokenType.BYTE in types)
    trainer += b"".join(_block(_NAMES[kind], tokens[id_].encode()) for kind, id_ in ids.items())
    normalizer = (
        _block(_RULE, b"identity")
        + _number(_SPACE_IN_FRONT, keys.get("add_space_prefix") is not False)
        + _number(_FEWER_SPACES, keys.get("remove_extra_whitespaces") is True)
        + _number(_MARK_SPACES, True)
    )
    model = b"".join(_block(_PIECES, piece) for piece in pieces)
    return model + _block(_TRAINER, trainer) + _block(_NORMALIZER, normalizer)


def _with_one_unknown(types: list[int], unknown: int | None, path: _Path) -> list[int]:
    """Older converters called the rows that a model has to spare unknown as well."""
    if unknown is None:
        unknown = next((i for i, kind in enumerate(types) if kind == TokenType.UNKNOWN), None)
    if unknown is None:
        raise TokenizerLeftOut(path, "has no token for what is unknown")
    types = [TokenType.UNUSED if kind == TokenType.UNKNOWN else kind for kind in types]
    types[unknown] = TokenType.UNKNOWN
    return types


def _check(tokens: list[str], scores: list[float], types: list[int], path: _Path) -> None:
    for token, count in collections.Counter(tokens).items():
        if count > 1 or not token or "\0" in token:
            raise TokenizerLeftOut(path, f"has {count} tokens {short(repr(token))}")
    for token, score, kind in zip(tokens, scores, types, strict=True):
        if kind not in TokenType or not math.isfinite(score):
            raise TokenizerLeftOut(
                path, f"token {short(repr(token))} has type {kind} and score {score}"
            )
        if kind == TokenType.BYTE and not _BYTE.fullmatch(token):
            raise TokenizerLeftOut(path, f"token {short(repr(token))} is no byte as its type says")
    found = types.count(TokenType.BYTE)
    if found not in (0, 256):
        raise TokenizerLeftOut(path, f"has {found} of the 256 bytes")


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _block(field: int, data: bytes) -> bytes:
    """A field of bytes, text or fields, as protocol buffers have it."""
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])
