"""Special tokens that a vocabulary's own file does not list: from tokenizer_config.json beside it.

Pairs of vocab.json and merges.txt and rank files hold what merges make, seldom more.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Self

from apr_jax.files import read_json
from apr_jax.text.vocabulary import AddedToken, Normalization, TokenizerError, check_id

CONFIG = "tokenizer_config.json"

# The tokens that end a document, in order of preference. An ordinary entry of this spelling, such
# as Qwen's `</s>`, is a piece of text that no model was taught to stop at.
EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")

# The normal form that goes with a pre-tokeniser where no file says it.
NORMALIZATION_OF: dict[str, Normalization] = {"qwen2": "nfc"}


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The added tokens of a folder.

    Attributes:
      added: the tokens.
      eos: the content of the one that ends a document by the configuration.
      normalized: the content of one that is looked for in normalised text, if any is.
    """

    added: tuple[AddedToken, ...] = ()
    eos: str | None = None
    normalized: str | None = None

    @classmethod
    def beside(cls, folder: pathlib.Path) -> Self:
        """Those that the folder's tokenizer_config.json and older added_tokens.json name, if any.

        Raises:
          TokenizerError: the file is damaged, or a token asks for what is not supported.
        """
        older = cls(_older(folder / "added_tokens.json"))
        path = folder / CONFIG
        if not path.exists():
            return older
        config = read_json(path)
        listed = config.get("added_tokens_decoder", {}) if isinstance(config, dict) else None
        if not isinstance(listed, dict):
            raise TokenizerError(f"{path}: is no object, or its added_tokens_decoder is none")
        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        added = tuple(_added_token(path, id_, token) for id_, token in listed.items())
        normalized = (token["content"] for token in listed.values() if token.get("normalized"))
        found = cls(added, eos if isinstance(eos, str) else None, next(normalized, None))
        return found.also(older.added)

    def also(self, tokens: Iterable[AddedToken]) -> Self:
        """These and further tokens; where an id or a content is here already, it stays."""
        taken = {token.id for token in self.added} | {token.content for token in self.added}
        new = [token for token in tokens if not {token.id, token.content} & taken]
        return dataclasses.replace(self, added=(*self.added, *new))

    @property
    def eos_id(self) -> int | None:
        """The id of the first of `EOS` that is here, else of the configuration's own."""
        ids = {token.content: token.id for token in self.added}
        return next((ids[name] for name in (*EOS, self.eos or "") if name in ids), None)

    def check(
        self, source: object, owners: Mapping[int, str], normalization: Normalization
    ) -> None:
        """Refuse tokens that share an id, with one another or with `owners`, or a content.

        Raises:
          TokenizerError: also for a token that is looked for after normalisation.
        """
        if self.normalized is not None and normalization != "none":
            raise TokenizerError(
                f"{source}: added token {self.normalized!r}: normalized=true is not supported"
            )
        contents: set[str] = set()
        ids = dict(owners)
        for token in self.added:
            if token.content in contents or token.id in ids:
                raise TokenizerError(
                    f"{source}: added token {token.content!r} (id {token.id}) is there twice, or "
                    f"its id is that of {ids.get(token.id, token.content)}"
                )
            contents.add(token.content)
            ids[token.id] = repr(token.content)


def _older(path: pathlib.Path) -> tuple[AddedToken, ...]:
    """The tokens of an added_tokens.json, which only has their ids."""
    if not path.exists():
        return ()
    listed = read_json(path)
    if not isinstance(listed, dict):
        raise TokenizerError(f"{path}: is not an object of tokens with their ids")
    return tuple(
        AddedToken(check_id(path, content, id_), content, special=True)
        for content, id_ in listed.items()
    )


def _added_token(path: pathlib.Path, key: str, token: Any) -> AddedToken:
    content = token.get("content") if isinstance(token, dict) else None
    if not isinstance(content, str) or not content:
        raise TokenizerError(f"{path}: added token {key!r} has no content")
    for flag in ("single_word", "lstrip", "rstrip"):
        if token.get(flag):
            raise TokenizerError(f"{path}: added token {content!r}: {flag}=true is not supported")
    id_ = int(key) if key.isascii() and key.isdigit() and len(key) < 20 else key
    return AddedToken(check_id(path, content, id_), content, bool(token.get("special")))
