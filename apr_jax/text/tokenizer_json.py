"""HuggingFace's tokenizer.json, read into a `Vocabulary` and written from one.

Whatever the file asks for and is not supported is refused by its name: nothing is guessed.
"""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from apr_jax.files import read_json
from apr_jax.text.alphabet import spell, unspell
from apr_jax.text.pretokenizers import PATTERNS
from apr_jax.text.special_tokens import EOS
from apr_jax.text.vocabulary import (
    AddedToken,
    Normalization,
    TokenizerError,
    Vocabulary,
    check_id,
    check_ids,
    resolve_merges,
)

_NEEDED = {*b"\t\n\r", *range(0x20, 0x7F)}
_MOST_MISSING = 32
_MATCHES_ARE_WORDS = (("Isolated", False), ("Removed", True))  # a Split's behavior and invert


def read_tokenizer_json(path: pathlib.Path) -> Vocabulary:
    """The vocabulary in the file.

    Truncation, padding and templates that put special tokens around a text are ignored: they are no
    part of what a text's ids are.

    Raises:
      TokenizerError: the file is damaged, or asks for something not supported.
    """
    return from_tokenizer_json(path, read_json(path))


def from_tokenizer_json(path: pathlib.Path, root: Any) -> Vocabulary:
    """The vocabulary in the contents of a tokenizer.json; `path` names them in errors."""
    model = _field(path, root, "model", dict)
    if model.get("type") != "BPE":
        raise TokenizerError(f"{path}: model type {model.get('type')!r} is not supported, only BPE")
    _refuse_model_options(path, model)
    ids = check_ids(path, _field(path, model, "vocab", dict))
    normalization = _normalization(path, root.get("normalizer"))
    added = _added_tokens(path, root.get("added_tokens") or (), normalization)
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
    _check_bytes(path, {text[0] for text in tokens.values() if len(text) == 1}, model)
    _check_added_ids(path, added, ids)
    _refuse_post_processing(path, root)
    by_content = {token.content: token.id for token in added}
    pretokenizer, prefix_space = _pretokenizer(path, root.get("pre_tokenizer"))
    return Vocabulary(
        format="tokenizer.json",
        tokens=tokens,
        merges_M3=_resolved(path, model, ids),
        added=added,
        finds_added=True,
        normalization=normalization,
        pretokenizer=pretokenizer,
        eos_id=next((by_content[name] for name in EOS if name in by_content), None),
        unk_id=_unk_id(path, model, ids),
        ignores_merges=bool(model.get("ignore_merges")),
        prefix_space=prefix_space,
    )


def _unk_id(path: pathlib.Path, model: dict[str, Any], ids: dict[str, int]) -> int | None:
    unk = model.get("unk_token")
    if unk is not None and not isinstance(unk, str):
        raise TokenizerError(f"{path}: unk_token is {unk!r}, not a token")
    return ids.get(unk or "")


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The contents of a tokenizer.json with which HuggingFace gives the same ids."""
    spelling = {id_: spell(token) for id_, token in vocabulary.tokens.items()}
    names = spelling | {token.id: token.content for token in vocabulary.added}
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
        "pre_tokenizer": _steps(vocabulary),
        "post_processor": None,
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.ignores_merges,
            "vocab": {names[id_]: id_ for id_ in sorted(names)},
            "merges": [
                [names[left], names[right]] for left, right, _ in vocabulary.merges_M3.tolist()
            ],
        },
    }


def _steps(vocabulary: Vocabulary) -> dict[str, Any]:
    """The pre-tokeniser, as `_pretokenizer` reads it."""
    name = vocabulary.pretokenizer
    if name == "gpt2":
        return _byte_level(add_prefix_space=vocabulary.prefix_space, use_regex=True)
    if name == "smollm2":
        digits = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [digits, _byte_level(use_regex=True)]}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    pattern = next((pattern for pattern, rule in PATTERNS.items() if rule == name), None)
    if pattern is None:
        return _byte_level()
    steps = [split | {"pattern": {"Regex": pattern}}, _byte_level()]
    return {"type": "Sequence", "pretokenizers": steps}


def _byte_level(*, add_prefix_space: bool = False, use_regex: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": False,
        "use_regex": use_regex,
    }


def _field(path: pathlib.Path, node: Any, key: str, kind: type) -> Any:
    value = node.get(key) if isinstance(node, dict) else None
    if not isinstance(value, kind):
        raise TokenizerError(f"{path}: has no {key!r} of type {kind.__name__}")
    return value


def _refuse_model_options(path: pathlib.Path, model: dict[str, Any]) -> None:
    # byte_fallback and fuse_unk change nothing when every byte has its symbol.
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise TokenizerError(f"{path}: model option {key}={model[key]!r} is not supported")


def _refuse_post_processing(path: pathlib.Path, root: dict[str, Any]) -> None:
    node: Any = root.get("post_processor")
    steps = node.get("processors") if _brief(node) == "Sequence" else [node]
    for step in steps if isinstance(steps, list) else [node]:
        # None of these changes an id of the text itself.
        if _brief(step) not in ("None", "ByteLevel", "TemplateProcessing"):
            raise TokenizerError(f"{path}: post_processor {_brief(step)} is not supported")
    if _brief(root.get("decoder")) != "ByteLevel":  # decoding bytes is all that `decode` does
        raise TokenizerError(f"{path}: decoder {_brief(root.get('decoder'))} is not supported")


def _added_tokens(
    path: pathlib.Path, nodes: Iterable[Any], normalization: Normalization
) -> tuple[AddedToken, ...]:
    found, kinds = [], set()
    if not isinstance(nodes, list | tuple):
        raise TokenizerError(f"{path}: added_tokens is {nodes!r}, not a list")
    for node in nodes:
        content = _field(path, node, "content", str)
        if not content.isprintable() and any("\ud800" <= c <= "\udfff" for c in content):
            raise TokenizerError(f"{path}: added token {content!r} holds a lone surrogate")
        id_ = check_id(path, content, node.get("id"))
        for flag in ("single_word", "lstrip", "rstrip"):
            if node.get(flag):
                raise TokenizerError(
                    f"{path}: added token {content!r}: {flag}=true is not supported"
                )
        if not content:
            raise TokenizerError(f"{path}: added token {id_} is empty")
        kinds.add(bool(node.get("normalized")))
        # Such tokens are looked for after the others, and in normalised text. That makes no
        # difference if there are no others and no normal form.
        if True in kinds and (normalization != "none" or len(kinds) > 1):
            raise TokenizerError(
                f"{path}: added token {content!r}: normalized=true is not supported beside a "
                "normalizer or tokens without it"
            )
        found.append(AddedToken(id_, content, bool(node.get("special"))))
    return tuple(found)


def _check_bytes(path: pathlib.Path, found: set[int], model: dict[str, Any]) -> None:
    """Refuse a vocabulary without the tokens of some bytes, but for a few that texts hardly have.

    HuggingFace leaves such bytes out. SmolLM2's vocabulary has no tokens for 21.
    """
    missing = set(range(256)) - found
    if not missing:
        return
    what = f"{path}: {len(missing)} of the 256 byte symbols are not in the vocabulary"
    if model.get("unk_token") is not None:
        raise TokenizerError(f"{what}, and an unk_token in their place is not supported")
    if len(missing) > _MOST_MISSING or missing & _NEEDED:
        raise TokenizerError(f"{what}: texts would lose the characters {_named(missing)}")


def _named(octets: set[int]) -> str:
    named = [
        repr(chr(octet)) if octet < 0x80 else f"of byte {octet:#x}" for octet in sorted(octets)
    ]
    return ", ".join(named[:5]) + (" and others" if len(named) > 5 else "")


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
    _check_numbering(path, added, ids)


def _check_numbering(
    path: pathlib.Path, added: tuple[AddedToken, ...], ids: dict[str, int]
) -> None:
    """HuggingFace numbers tokens that are not in the vocabulary itself, whatever the file says."""
    known = dict(ids)
    for token in added:
        number = known.setdefault(token.content, len(known))
        if number != token.id:
            raise TokenizerError(
                f"{path}: added token {token.content!r} has id {token.id}, but HuggingFace gives "
                f"it {number}; put it into the vocabulary with its id"
            )


def _resolved(path: pathlib.Path, model: dict[str, Any], ids: dict[str, int]) -> np.ndarray:
    """As `resolve_merges`, which is asked only where something is wrong: it takes long."""
    merges = _field(path, model, "merges", list)
    try:
        if "" in ids or not {type(merge) for merge in merges} <= {str, list}:
            raise ValueError
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        rows = [(ids[left], ids[right], ids[left + right]) for left, right in pairs]
        if len({row[:2] for row in rows}) == len(rows):
            return np.array(rows, np.int32).reshape(-1, 3)
    except (KeyError, TypeError, ValueError):
        pass
    return resolve_merges(ids, _merges(path, model))


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


def _pretokenizer(path: pathlib.Path, node: Any) -> tuple[str | None, bool]:
    """The name of the rule, and whether texts get a space in front."""
    steps = node.get("pretokenizers") if _brief(node) == "Sequence" else [node]
    name, has_regex, may_prefix = None, False, False
    match steps:
        case [{"type": "ByteLevel"} as byte_level]:
            has_regex = may_prefix = byte_level.get("use_regex", True)
            name = "gpt2" if has_regex else None
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"} as byte_level]:
            name, has_regex = "smollm2", True
        # All that the known patterns do not match is to be removed in the second form: nothing.
        case [
            {"type": "Split", "pattern": {"Regex": pattern}} as split,
            {"type": "ByteLevel"} as byte_level,
        ] if (split.get("behavior"), bool(split.get("invert"))) in _MATCHES_ARE_WORDS:
            if pattern not in PATTERNS:
                raise TokenizerError(f"{path}: pre_tokenizer pattern {pattern!r} is not supported")
            name = PATTERNS[pattern]
        case _:
            kinds = ", ".join(map(_brief, steps if isinstance(steps, list) else [node]))
            raise TokenizerError(f"{path}: pre_tokenizer {kinds} is not supported")
    options = {key: byte_level.get(key, True) for key in ("use_regex", "add_prefix_space")}
    for option, may_be in (("use_regex", [has_regex]), ("add_prefix_space", [False, may_prefix])):
        if options[option] not in may_be:
            raise TokenizerError(
                f"{path}: pre_tokenizer ByteLevel with {option}={str(options[option]).lower()} "
                "is not supported here"
            )
    return name, options["add_prefix_space"]


def _brief(node: Any) -> str:
    return str(node.get("type")) if isinstance(node, dict) else repr(node)
