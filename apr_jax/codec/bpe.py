"""A byte-level BPE vocabulary between GGUF keys, `.apr` metadata and HuggingFace's tokenizer.json.

GGUF and `.apr` name the rule that cuts text into words; tokenizer.json spells it out. Only rules of
the table here are translated: another one would tokenise, and wrongly.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gguf import TokenType

from apr_jax.codec.errors import TokenizerLeftOut
from apr_jax.errors import short

_Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What the name of a pre-tokeniser stands for in tokenizer.json."""

    steps: tuple[dict[str, Any], ...]
    normalizer: dict[str, str] | None = None
    ignore_merges: bool = False


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
_BYTE_LEVEL_WORDS = _BYTE_LEVEL | {"use_regex": True}  # by GPT-2's expression

_DIGITS_FIRST = _Rule(({"type": "Digits", "individual_digits": True}, _BYTE_LEVEL_WORDS))

# Of names for one rule the first is written.
_RULES = {
    "qwen2": _Rule(
        (
            _split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            _BYTE_LEVEL,
        ),
        normalizer={"type": "NFC"},
    ),
    "llama-bpe": _Rule(
        (
            _split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            _BYTE_LEVEL,
        ),
        ignore_merges=True,
    ),
    "smollm": _DIGITS_FIRST,
    "starcoder": _DIGITS_FIRST,
    "refact": _DIGITS_FIRST,
    "gpt-2": _Rule((_BYTE_LEVEL_WORDS,)),
}
_DEFAULTS = {"add_prefix_space": True, "use_regex": True, "individual_digits": False}
"""What tokenizer.json may leave out."""
_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)


@dataclasses.dataclass(frozen=True)
class Bpe:
    """A vocabulary as GGUF has it.

    Attributes:
      rule: the name of the pre-tokeniser, one of those in the table.
      tokens: by id; ordinary ones in the byte-level alphabet.
      types: what each token is, a `gguf.TokenType`.
      merges: "left right", by rank.
      bos_id: the token that is put before every text, None where none is.
    """

    rule: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    bos_id: int | None = None

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any], path: _Path) -> "Bpe":
        """Read the values of `tokenizer.ggml.*`, the prefix left away.

        Raises:
          TokenizerLeftOut: it is of another kind, incomplete, or cut by a rule not known here.
        """
        if keys.get("model") != "gpt2":
            raise TokenizerLeftOut(
                path,
                f"vocabulary is of kind {short(repr(keys.get('model')))}, known are 'gpt2' "
                "(byte-level BPE) and 'llama' (SentencePiece)",
            )
        rule = keys.get("pre")
        if not isinstance(rule, str) or rule not in _RULES:
            raise TokenizerLeftOut(
                path,
                f"pre-tokeniser is {short(repr(rule))}, known are {', '.join(_RULES)}: take the "
                "tokenizer files from the model's source",
            )
        tokens, types, merges = (keys.get(key, ()) for key in ("tokens", "token_type", "merges"))
        if not (_all(tokens, str) and _all(types, int) and _all(merges, str)):
            raise TokenizerLeftOut(path, "has not all of tokens, token_type and merges")
        if len(tokens) != len(types):
            raise TokenizerLeftOut(path, f"has {len(tokens)} tokens but {len(types)} types")
        bos_id = keys.get("bos_token_id") if keys.get("add_bos_token") else None
        return cls(rule, tokens, types, merges, bos_id)

    def to_keys(self) -> dict[str, Any]:
        """The inverse of `from_keys`, without the ids of single tokens."""
        return {
            "model": "gpt2",
            "pre": self.rule,
            "tokens": list(self.tokens),
            "token_type": list(self.types),
            "merges": list(self.merges),
            "add_bos_token": self.bos_id is not None,
        }

    @classmethod
    def from_file(cls, data: bytes, rows: int, path: _Path) -> "Bpe":
        """Read the bytes of a tokenizer.json, as `from_json` does its content."""
        try:
            root = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise TokenizerLeftOut(path, f"tokenizer.json is not JSON ({error})") from error
        return cls.from_json(root, rows, path)

    @classmethod
    def from_json(cls, root: Any, rows: int, path: _Path) -> "Bpe":
        """Read a tokenizer.json for a model with so many rows; ids that it leaves free are unused.

        Raises:
          TokenizerLeftOut: it is of another kind, damaged, or has more tokens than rows.
        """
        try:
            model, added = root["model"], root.get("added_tokens") or []
            rule = _rule(root, path)
            names = {id_: token for token, id_ in model["vocab"].items()}
            types = dict.fromkeys(names, TokenType.NORMAL)
            for token in added:
                names[token["id"]] = token["content"]
                kind = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
                types[token["id"]] = kind
            merges = [" ".join(_sides(merge, path)) for merge in model["merges"]]
            first = _first_special(root, {token: id_ for id_, token in names.items()}, path)
            sound = all(type(id_) is int and 0 <= id_ < rows for id_ in names)
            "".join([*names.values(), *merges]).encode()  # halves of surrogate pairs are no text
        except (AttributeError, KeyError, TypeError, UnicodeEncodeError) as error:
            raise TokenizerLeftOut(
                path, f"is not a byte-level BPE tokenizer ({short(repr(error))})"
            ) from error
        if not sound:
            raise TokenizerLeftOut(path, f"has ids outside of the model's {rows} rows")
        return cls(
            rule,
            [names.get(id_, f"[PAD{id_}]") for id_ in range(rows)],
            [types.get(id_, TokenType.UNUSED) for id_ in range(rows)],
            merges,
            first,
        )

    def to_json(self, path: _Path) -> dict[str, Any]:
        """A tokenizer.json with which HuggingFace gives the ids that the model was trained on.

        Raises:
          TokenizerLeftOut: two tokens are spelled alike, or a merge makes no token.
        """
        ids = self._vocabulary(path)
        merges = [_sides(merge, path) for merge in self.merges]
        for left, right in merges:
            if not {left, right, left + right} <= ids.keys():
                merge = short(f"{left!r} {right!r}")
                raise TokenizerLeftOut(path, f"merge {merge} is not one of its tokens")
        rule = _RULES[self.rule]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": id_,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": kind == TokenType.CONTROL,
                }
                for id_, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
                if kind in _ADDED
            ],
            "normalizer": rule.normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(rule.steps)},
            "post_processor": self._post_processor(path),
            "decoder": _BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": rule.ignore_merges,
                "vocab": ids,
                "merges": merges,
            },
        }

    def _vocabulary(self, path: _Path) -> dict[str, int]:
        """All tokens: HuggingFace gives new ids to added ones that are not among them."""
        ids: dict[str, int] = {}
        for id_, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind in (TokenType.NORMAL, *_ADDED) and ids.setdefault(token, id_) != id_:
                name = short(repr(token))
                raise TokenizerLeftOut(path, f"token {name} has ids {ids[token]} and {id_}")
        return ids

    def _post_processor(self, path: _Path) -> dict[str, Any]:
        if self.bos_id is None:
            return _BYTE_LEVEL
        if not 0 <= self.bos_id < len(self.tokens):
            raise TokenizerLeftOut(path, f"begins texts with id {self.bos_id}, which is no token")
        name = self.tokens[self.bos_id]
        first = {"SpecialToken": {"id": name, "type_id": 0}}
        a, b = ({"Sequence": {"id": side, "type_id": at}} for at, side in enumerate("AB"))
        second = {"SpecialToken": {"id": name, "type_id": 1}}
        template = {
            "type": "TemplateProcessing",
            "single": [first, a],
            "pair": [first, a, second, b],
            "special_tokens": {name: {"id": name, "ids": [self.bos_id], "tokens": [name]}},
        }
        return {"type": "Sequence", "processors": [_BYTE_LEVEL, template]}


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _sides(merge: Any, path: _Path) -> list[str]:
    sides = merge.split(" ") if isinstance(merge, str) else merge
    if not _all(sides, str) or len(sides) != 2 or not all(sides) or " " in "".join(sides):
        raise TokenizerLeftOut(path, f"merge {short(repr(merge))} is not two tokens")
    return sides


def _rule(root: Mapping[str, Any], path: _Path) -> str:
    """The name of what the file spells out."""
    node = root["pre_tokenizer"]
    steps = node["pretokenizers"] if node.get("type") == "Sequence" else [node]
    found = [_spelt_out(step) for step in steps]
    normalizer, ignores = root.get("normalizer"), bool(root["model"].get("ignore_merges"))
    for name, rule in _RULES.items():
        if (
            root["model"]["type"] == "BPE"
            and found == [_spelt_out(step) for step in rule.steps]
            and (normalizer, ignores) == (rule.normalizer, rule.ignore_merges)
        ):
            return name
    raise TokenizerLeftOut(path, f"cuts text by a rule that is none of {', '.join(_RULES)}")


def _spelt_out(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step without what does not decide where it cuts."""
    return {**_DEFAULTS, **step, "trim_offsets": None}


def _first_special(root: Mapping[str, Any], ids: Mapping[str, int], path: _Path) -> int | None:
    """The token that the file's templates put before a text."""
    for processor in _processors(root.get("post_processor")):
        match processor:
            case {"type": "ByteLevel"}:
                continue
            case {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": name}}, {"Sequence": _}],
            } if name in ids:
                return ids[name]
        raise TokenizerLeftOut(path, "adds tokens to texts in a way that GGUF cannot express")
    return None


def _processors(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping) and node.get("type") == "Sequence":
        yield from node.get("processors") or []
    elif node is not None:
        yield node
