"""Hex vocabularies: `vocab.json` and `merges.txt` as `apr tokenize train` writes them.

Bytes are spelled by two lower-case hexadecimal digits, so `616263` is the token `abc`. A document
is one word: merges run over spaces and line ends.

The two files say nothing of normalisation. Ours is kept in `tokenizer_config.json` beside them,
under `normalization`; where that is missing, it is the original's default, NFC.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apr_jax.codec.tokenizer_config import tokenizer_config
from apr_jax.errors import UserError
from apr_jax.files import read_json, write_bytes, write_json
from apr_jax.text.tokenizer_json import tokenizer_json
from apr_jax.text.vocabulary import (
    NORMALIZATIONS,
    AddedToken,
    Normalization,
    TokenizerError,
    Vocabulary,
    read_merges,
    resolve_merges,
)

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<mask>")
BYTE_TOKENS = tuple(f"{byte:02x}" for byte in range(256))
FIRST_MERGED = len(SPECIALS) + len(BYTE_TOKENS)
CONFIG = "tokenizer_config.json"

_HEX = re.compile(r"(?:[0-9a-f]{2})+")


def read_hex(folder: pathlib.Path, ids: Mapping[str, int]) -> Vocabulary:
    """The hex vocabulary whose vocab.json holds `ids`."""
    path = folder / "merges.txt"
    try:
        lines = read_merges(path, path.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read as a hex vocabulary's: {error}") from error
    return Vocabulary(
        format="hex",
        tokens={id_: bytes.fromhex(token) for token, id_ in ids.items() if _HEX.fullmatch(token)},
        merges_M3=resolve_merges(ids, lines),
        added=tuple(
            AddedToken(id_, token, special=True)
            for token, id_ in ids.items()
            if not _HEX.fullmatch(token)
        ),
        finds_added=False,
        normalization=_read_normalization(folder / CONFIG),
        pretokenizer=None,
        eos_id=ids.get("</s>"),
        unk_id=ids.get("<unk>"),
    )


def hex_vocabulary(merges: Sequence[tuple[int, int]], normalization: Normalization) -> Vocabulary:
    """The vocabulary of these merges, which make the ids from FIRST_MERGED on, in order."""
    tokens = {len(SPECIALS) + byte: bytes([byte]) for byte in range(256)}
    for id_, (left, right) in enumerate(merges, FIRST_MERGED):
        tokens[id_] = tokens[left] + tokens[right]
    results = np.arange(FIRST_MERGED, FIRST_MERGED + len(merges))
    pairs_M2 = np.array(merges, np.int32).reshape(-1, 2)
    return Vocabulary(
        format="hex",
        tokens=tokens,
        merges_M3=np.column_stack([pairs_M2, results]).astype(np.int32),
        added=tuple(AddedToken(id_, token, True) for id_, token in enumerate(SPECIALS)),
        finds_added=False,
        normalization=normalization,
        pretokenizer=None,
        eos_id=SPECIALS.index("</s>"),
        unk_id=SPECIALS.index("<unk>"),
    )


def write_hex(folder: pathlib.Path, vocabulary: Vocabulary) -> None:
    """Write the two files byte for byte as the original does.

    Beside them the normalisation, and a `tokenizer.json` that gives HuggingFace the same ids. The
    last file is merges.txt: without it, when this is cut short, the folder loads as nothing.
    """
    (folder / "merges.txt").unlink(missing_ok=True)
    spelling = {id_: token.hex() for id_, token in vocabulary.tokens.items()}
    names = spelling | {token.id: token.content for token in vocabulary.added}
    ids = {names[id_]: id_ for id_ in sorted(names)}
    write_bytes(folder / "vocab.json", json.dumps(ids, indent=2).encode())
    config = hex_config() | {"normalization": vocabulary.normalization}
    write_json(folder / CONFIG, config)
    write_json(folder / "tokenizer.json", tokenizer_json(vocabulary))
    merges = vocabulary.merges_M3.tolist()
    lines = (f"{spelling[left]} {spelling[right]}\n" for left, right, _ in merges)
    write_bytes(folder / "merges.txt", ("#version: 0.2\n" + "".join(lines)).encode())


def hex_config() -> dict[str, Any]:
    """The `tokenizer_config.json` with which `transformers` loads a hex vocabulary's tokenizer."""
    roles = ("unk_token", "bos_token", "eos_token", "pad_token", "mask_token")
    return tokenizer_config(**dict(zip(roles, SPECIALS, strict=True)))


def _read_normalization(path: pathlib.Path) -> Normalization:
    if not path.exists():
        return "nfc"
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds a {type(config).__name__}, not an object")
    value = config.get("normalization", "nfc")
    if value not in NORMALIZATIONS:
        raise TokenizerError(f"{path}: normalization {value!r} is not one of {NORMALIZATIONS}")
    return value
