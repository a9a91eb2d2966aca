"""Companions that a model file holds in itself: its vocabulary and its chat template, as files."""

import json
from collections.abc import Mapping
from typing import Any

from gguf import TokenType

from apr_jax.codec.bpe import Bpe
from apr_jax.codec.errors import TokenizerLeftOut
from apr_jax.codec.gguf_file import GgufKeys
from apr_jax.codec.reader import AprFile
from apr_jax.codec.sentencepiece_model import sentencepiece_model
from apr_jax.codec.tokenizer_config import tokenizer_config

GGML = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"

# How `.apr` metadata names what GGUF keeps under `tokenizer.ggml.`.
_APR_KEYS = {
    "tokens": "tokenizer.vocabulary",
    "merges": "tokenizer.merges",
    "token_type": "tokenizer.token_type",
    "model": "tokenizer.model",
    "pre": "tokenizer.pre_type",
    "add_bos_token": "tokenizer.add_bos_token",
    **{f"{kind}_token_id": f"tokenizer.{kind}_token_id" for kind in ("bos", "eos", "padding")},
}
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
"""How GGUF and `tokenizer_config.json` call one token."""

Embedded = tuple[dict[str, bytes], str | None]


def of_gguf(file: GgufKeys) -> Embedded:
    """The files that a GGUF yields, content by name, and why not its vocabulary."""
    keys = {
        key.removeprefix(GGML): value for key, value in file.keys.items() if key.startswith(GGML)
    }
    arrays = ("tokens", "token_type", "merges", "scores")
    keys |= {key: file.array(GGML + key) for key in arrays}
    return _files(keys, file.keys.get(TEMPLATE), file)


def of_apr(file: AprFile) -> Embedded:
    """The files that the metadata of an `.apr` file yields, as for a GGUF."""
    keys = {key: file.metadata.get(own) for key, own in _APR_KEYS.items()}
    if keys["model"] is None and file.metadata.get("tokenizer.model_type") == "BPE":
        keys["model"] = "gpt2"  # which of its kinds, the name of the pre-tokeniser has to tell
    return _files(keys, file.metadata.get("chat_template"), file)


def _files(keys: Mapping[str, Any], template: Any, file: GgufKeys | AprFile) -> Embedded:
    files: dict[str, bytes] = {}
    problem = None
    if keys.get("tokens"):
        try:
            if keys.get("model") == "llama":
                files["tokenizer.model"] = sentencepiece_model(keys, file.path)
            else:
                content = Bpe.from_keys(keys, file.path).to_json(file.path)
                files["tokenizer.json"] = _json(content)
                files["tokenizer_config.json"] = _json(_config(keys))
        except TokenizerLeftOut as error:
            problem = str(error)
    if isinstance(template, str) and files:
        files["chat_template.jinja"] = template.encode()
    return files, problem


def _config(keys: Mapping[str, Any]) -> dict[str, Any]:
    """What tells `transformers` which tokens are special; it adds one that is not in use."""
    tokens, types = keys["tokens"], keys["token_type"]
    names: dict[str, str | None] = dict.fromkeys(_SPECIAL.values())
    for kind, name in _SPECIAL.items():
        id_ = keys.get(f"{kind}_token_id")
        if type(id_) is int and 0 <= id_ < len(tokens) and types[id_] != TokenType.UNUSED:
            names[name] = tokens[id_]
    return tokenizer_config(**names)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
