"""A tokenizer from wherever it lies into a folder that `load_tokenizer` and HuggingFace read."""

import json
import os
import pathlib
from typing import Any

from apr_jax.codec.folders import atomic_folder, require_only
from apr_jax.codec.tokenizer_config import tokenizer_config
from apr_jax.text.hex_format import write_hex
from apr_jax.text.loading import AnyTokenizer, load_tokenizer
from apr_jax.text.sentencepiece_format import SentencePieceTokenizer
from apr_jax.text.special_tokens import CONFIG
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.vocabulary import TokenizerError

_COPIED = (CONFIG, "special_tokens_map.json", "chat_template.jinja")
_OURS = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "report.json")


def import_tokenizer(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    pretokenizer: str | None = None,
) -> dict[str, Any]:
    """Write what encoding needs into `out`, load it again and compare.

    Byte-level vocabularies become a tokenizer.json, byte for byte where `source` has one; hex ones
    keep their pair and get a tokenizer.json beside; a SentencePiece model is copied. A
    configuration and a chat template beside the source come along.

    Args:
      source: see `load_tokenizer`.
      out: the folder, new or holding nothing but an earlier import.
      pretokenizer: see `load_tokenizer`.

    Returns:
      The report: format, vocab_size, sha256, eos_id and its spelling, counts, the files written.

    Raises:
      UserError: the source cannot be read, or `out` holds something else.
    """
    tokenizer = load_tokenizer(source, pretokenizer=pretokenizer)
    target, origin = pathlib.Path(out), pathlib.Path(source)
    folder = origin if origin.is_dir() else origin.parent
    if target.resolve() == folder.resolve():
        raise TokenizerError(f"{target}: is the source: choose another folder")
    require_only(target, {*_COPIED, *_OURS})
    with atomic_folder(target) as new:
        _write(tokenizer, origin, new)
        for name in _COPIED:
            if (folder / name).is_file() and not (new / name).exists():
                (new / name).write_bytes((folder / name).read_bytes())
        if isinstance(tokenizer, Tokenizer) and not (new / CONFIG).exists():
            eos = _spelling(tokenizer, tokenizer.eos_id)
            config = tokenizer_config(**({} if eos is None else {"eos_token": eos}))
            (new / CONFIG).write_text(json.dumps(config, indent=2))
        _require_same(tokenizer, load_tokenizer(new), origin)
        files = sorted(file.name for file in new.iterdir())
    return _report(tokenizer, origin, files)


def _write(tokenizer: AnyTokenizer, origin: pathlib.Path, new: pathlib.Path) -> None:
    if isinstance(tokenizer, SentencePieceTokenizer):
        (new / "tokenizer.model").write_bytes(tokenizer.model)
    elif tokenizer.format == "hex":
        write_hex(new, tokenizer.vocabulary)
    else:
        file = origin / "tokenizer.json" if origin.is_dir() else origin
        as_it_is = tokenizer.format == "tokenizer.json" and file.name == "tokenizer.json"
        content = tokenizer.to_tokenizer_json
        data = file.read_bytes() if as_it_is else json.dumps(content(), ensure_ascii=False).encode()
        (new / "tokenizer.json").write_bytes(data)


def _require_same(tokenizer: AnyTokenizer, written: AnyTokenizer, origin: pathlib.Path) -> None:
    for name in ("sha256", "vocab_size", "eos_id"):
        if getattr(tokenizer, name) != getattr(written, name):
            raise TokenizerError(
                f"{origin}: {name} is {getattr(tokenizer, name)!r}, but {getattr(written, name)!r} "
                "in the copy: a file beside it contradicts it"
            )


def _report(tokenizer: AnyTokenizer, origin: pathlib.Path, files: list[str]) -> dict[str, Any]:
    report: dict[str, Any] = {
        "source": str(origin),
        "format": tokenizer.format,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "normalization": tokenizer.normalization,
        "eos_id": tokenizer.eos_id,
        "eos_token": _spelling(tokenizer, tokenizer.eos_id),
        "unk_id": tokenizer.unk_id,
        "files": files,
    }
    if isinstance(tokenizer, Tokenizer):
        vocabulary = tokenizer.vocabulary
        report["pretokenizer"] = vocabulary.pretokenizer
        report["ordinary_tokens"] = len(vocabulary.tokens)
        report["added_tokens"] = len(vocabulary.added)
        report["merges"] = len(vocabulary.merges_M3)
    return report


def _spelling(tokenizer: AnyTokenizer, id_: int | None) -> str | None:
    if id_ is None:
        return None
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.piece(id_)
    return next(token.content for token in tokenizer.vocabulary.added if token.id == id_)
