"""Byte-level vocabularies of our own: numbered as HuggingFace's trainer numbers them, and written.

Ids: the special tokens as given, the 256 bytes in the order of their symbols, what was learned.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from apr_jax.codec.tokenizer_config import tokenizer_config
from apr_jax.errors import UserError
from apr_jax.files import write_json
from apr_jax.text.alphabet import SYMBOLS, unspell
from apr_jax.text.special_tokens import EOS
from apr_jax.text.tokenizer_json import tokenizer_json
from apr_jax.text.vocabulary import AddedToken, Normalization, Vocabulary

JSON, CONFIG = "tokenizer.json", "tokenizer_config.json"


def byte_level_ids(num_special: int) -> np.ndarray:
    """int32 [256]: the token of each byte, behind so many special ones."""
    order = sorted(range(256), key=SYMBOLS.__getitem__)
    ids = np.empty(256, np.int32)
    ids[order] = np.arange(num_special, num_special + 256)
    return ids


def check_special_tokens(contents: Sequence[str]) -> None:
    """Raise UserError for what cannot be the special tokens of a byte-level vocabulary."""
    for number, content in enumerate(contents):
        if not content or not content.isprintable():
            raise UserError(f"special token {content!r} is not of one or more printable characters")
        if content in SYMBOLS:
            raise UserError(f"special token {content!r} is the symbol of a byte: make it longer")
        if content in contents[:number]:
            raise UserError(f"special token {content!r} is given twice")


def byte_level_vocabulary(
    merges_M3: np.ndarray,
    special_tokens: Sequence[str],
    normalization: Normalization,
    pretokenizer: str | None,
) -> Vocabulary:
    """The vocabulary of these merges: int32, by rank, left id, right id, id of the result.

    A special token may be the result of a merge as well.
    """
    tokens = {
        int(id_): bytes([byte]) for byte, id_ in enumerate(byte_level_ids(len(special_tokens)))
    }
    for left, right, result in merges_M3.tolist():
        tokens[result] = tokens[left] + tokens[right]
    by_content = {content: id_ for id_, content in enumerate(special_tokens)}
    return Vocabulary(
        format="tokenizer.json",
        tokens=tokens,
        merges_M3=merges_M3,
        added=tuple(AddedToken(id_, content, True) for content, id_ in by_content.items()),
        finds_added=True,
        normalization=normalization,
        pretokenizer=pretokenizer,
        eos_id=next((by_content[name] for name in EOS if name in by_content), None),
        unk_id=None,
    )


def write_byte_level(folder: pathlib.Path, vocabulary: Vocabulary) -> None:
    """Write `tokenizer.json`, and beside it what `transformers` needs to load it."""
    check_folder(folder)
    write_json(folder / JSON, tokenizer_json(vocabulary))
    eos = [token.content for token in vocabulary.added if token.id == vocabulary.eos_id]
    write_json(folder / CONFIG, tokenizer_config(**({"eos_token": eos[0]} if eos else {})))


def check_folder(folder: pathlib.Path) -> None:
    """Raise UserError if a tokenizer.json in the folder would not be the one that is loaded."""
    if (folder / "vocab.json").exists():
        raise UserError(
            f"{folder / 'vocab.json'}: is of another tokenizer, and would be read in place of a "
            f"{JSON}: remove it or choose another folder"
        )


def reserved_ids(special_tokens: Sequence[str]) -> dict[bytes, int]:
    """The ids of special tokens by the bytes that their content spells, where it does."""
    spelled = {unspell(content): id_ for id_, content in enumerate(special_tokens)}
    return {text: id_ for text, id_ in spelled.items() if text is not None}
