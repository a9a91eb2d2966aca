"""HuggingFace's tokenizer.json, read into a `Vocabulary` and written from one.

Whatever the file asks for and is not supported is refused by its name: nothing is guessed.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from apr_jax.files import read_json
from apr_jax.text.alphabet import spell, unspell
from apr_jax.text.pretokenizers import PATTERNS
from apr_jax.text.vocabulary import (
    AddedToken,
    Normalization,
    TokenizerError,
    Vocabulary,
    check_id,
    check_ids,
    resolve_merges,
)

# The added tokens that end a document, in order of preference. An ordinary entry of this spelling,
# such as Qwen's `</s>`, is a piece of text that no model was taught to stop at.
EOS = ("<|endoftext|>", "</s>", "<eos>", "<|eos|>")


def read_tokenizer_json(path: pathlib.Path) -> Vocabulary:
    """The vocabulary in the file.

    Truncation and padding are ignored: they are no part of what a text's ids are.

    Raises:
      TokenizerError: the file is damaged, or asks for something not supported.
    """
    root = read_json(path)
    model = _field(path, root, "model", dict)
    if model.get("type") != "BPE":
        raise TokenizerError(f"{path}: model type {model.get('type')!r} is not supported, only BPE")
    _refuse_model_options(path, model)
    ids = check_ids(path, _field(path, model, "vocab", dict))
    added = tuple(_added_token(path, token) for token in root.get("added_tokens") or ())
    contents = {token.content for token in added}
    tokens = {}
    for token, id_ in ids.items():
        text = unspell(token)
        if token not in contents:
            if text is None:
                raise TokenizerError(
                    f"{path}: token {token!r} (id {id_}) is not spelled in the byte-level alphabet"
                )
            tokens[id_] = text
    missing = 256 - len({text for text in tokens.values() if len(text) == 1})
    if missing:
        raise TokenizerError(f"{path}: {missing} of the 256 byte symbols are not in the vocabulary")
    _check_added_ids(path, added, ids)
    _refuse_post_processing(path, root)
    by_content = {token.content: token.id for token in added}
    return Vocabulary(
        format="tokenizer.json",
        tokens=tokens,
        merges_M3=resolve_merges(ids, _merges(path, model)),
        added=added,
        finds_added=True,
        normalization=_normalization(path, root.get("normalizer")),
        pretokenizer=_pretokenizer(path, root.get("pre_tokenizer")),
        eos_id=next((by_content[name] for name in EOS if name in by_content), None),
        unk_id=ids.get(model.get("unk_token") or ""),
    )


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The contents of a tokenizer.json with which HuggingFace gives the same ids."""
    spelling = {id_: spell(token) for id_, token in vocabulary.tokens.items()}
    names = spelling | {token.id: token.content for token in vocabulary.added}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    steps: list[dict[str, Any]] = [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern, name in PATTERNS.items()
        if name == vocabulary.pretokenizer
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token.id,
                "content": token.content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token.special,
            }
            for token in sorted(vocabulary.added, key=lambda token: token.id)
        ],
        "normalizer": {"type": "NFC"} if vocabulary.normalization == "nfc" else None,
        "pre_tokenizer": (
            {"type": "Sequence", "pretokenizers": [*steps, byte_level]} if steps else byte_level
        ),
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {names[id_]: id_ for id_ in sorted(names)},
            "merges": [
                [names[left], names[right]] for left, right, _ in vocabulary.merges_M3.tolist()
            ],
        },
    }


def tokenizer_config(**special_tokens: str) -> dict[str, Any]:
    """The `tokenizer_config.json` with which `transformers` loads a tokenizer.json as it stands.

    `special_tokens` are by their role, such as eos_token="</s>".
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # transformers 5 takes its own tokenizer, with Qwen's pre-tokeniser, for every model of
        # type qwen2 whatever the class above says, unless there is an entry here. Nothing runs it.
        "auto_map": {"AutoTokenizer": [None, "tokenizer.Tokenizer"]},
        **special_tokens,
        "clean_up_tokenization_spaces": False,
    }


def _field(path: pathlib.Path, node: Any, key: str, kind: type) -> Any:
    value = node.get(key) if isinstance(node, dict) else None
    if not isinstance(value, kind):
        raise TokenizerError(f"{path}: has no {key!r} of type {kind.__name__}")
    return value


def _refuse_model_options(path: pathlib.Path, model: dict[str, Any]) -> None:
    # byte_fallback and fuse_unk change nothing when every byte has its symbol.
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise TokenizerError(f"{path}: model option {key}={model[key]!r} is not supported")


def _refuse_post_processing(path: pathlib.Path, root: dict[str, Any]) -> None:
    # Neither of these adds an id; and decoding bytes is all that `decode` does.
    for key, allowed in (("post_processor", ("None", "ByteLevel")), ("decoder", ("ByteLevel",))):
        kind = _brief(root.get(key))
        if kind not in allowed:
            raise TokenizerError(f"{path}: {key} {kind} is not supported")


def _added_token(path: pathlib.Path, token: Any) -> AddedToken:
    content = _field(path, token, "content", str)
    id_ = check_id(path, content, token.get("id"))
    for flag in ("single_word", "lstrip", "rstrip", "normalized"):
        if token.get(flag):
            raise TokenizerError(f"{path}: added token {content!r}: {flag}=true is not supported")
    if not content:
        raise TokenizerError(f"{path}: added token {id_} is empty")
    return AddedToken(id_, content, bool(token.get("special")))


def _check_added_ids(
    path: pathlib.Path, added: tuple[AddedToken, ...], ids: dict[str, int]
) -> None:
    owners = {id_: token for token, id_ in ids.items()}
    for token in added:
        if ids.get(token.content, token.id) != token.id:
            raise TokenizerError(
                f"{path}: added token {token.content!r} has id {token.id}, but "
                f"{ids[token.content]} in the vocabulary"
            )
        if owners.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(
                f"{path}: {owners[token.id]!r} and {token.content!r} share the id {token.id}"
            )


def _merges(path: pathlib.Path, model: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for rank, merge in enumerate(_field(path, model, "merges", list)):
        sides = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(sides, list)
            or len(sides) != 2
            or not all(isinstance(side, str) and side for side in sides)
        ):
            raise TokenizerError(f"{path}: merge {rank} is {merge!r}, not two tokens")
        yield f"{path}: merge {rank}", sides[0], sides[1]


def _normalization(path: pathlib.Path, node: Any) -> Normalization:
    match node:
        case None | {"type": "Sequence", "normalizers": []}:
            return "none"
        case {"type": "NFC"} | {"type": "Sequence", "normalizers": [{"type": "NFC"}]}:
            return "nfc"
    raise TokenizerError(f"{path}: normalizer {_brief(node)} is not supported, only NFC")


def _pretokenizer(path: pathlib.Path, node: Any) -> str | None:
    steps = node.get("pretokenizers") if _brief(node) == "Sequence" else [node]
    match steps:
        case [{"type": "ByteLevel"} as byte_level]:
            name = None
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"} as split,
            {"type": "ByteLevel"} as byte_level,
        ] if not split.get("invert"):
            if pattern not in PATTERNS:
                raise TokenizerError(f"{path}: pre_tokenizer pattern {pattern!r} is not supported")
            name = PATTERNS[pattern]
        case _:
            kinds = ", ".join(map(_brief, steps if isinstance(steps, list) else [node]))
            raise TokenizerError(f"{path}: pre_tokenizer {kinds} is not supported")
    for option, default in (("add_prefix_space", True), ("use_regex", True)):
        if byte_level.get(option, default):
            raise TokenizerError(
                f"{path}: pre_tokenizer ByteLevel with {option}=true is not supported"
            )
    return name


def _brief(node: Any) -> str:
    return str(node.get("type")) if isinstance(node, dict) else repr(node)
