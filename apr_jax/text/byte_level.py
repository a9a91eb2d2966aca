"""Byte-level vocabularies without a tokenizer.json: tokens with their ids, and merges.

What they lack is the rule that cuts text into words, so somebody has to name it.
"""

import pathlib
from collections.abc import Iterable, Mapping

from apr_jax.text.alphabet import SYMBOLS, unspell
from apr_jax.text.special_tokens import NORMALIZATION_OF, SpecialTokens
from apr_jax.text.vocabulary import (
    AddedToken,
    TokenizerError,
    Vocabulary,
    read_merges,
    resolve_merges,
)


def read_pair(folder: pathlib.Path, ids: Mapping[str, int], pretokenizer: str | None) -> Vocabulary:
    """The vocabulary whose vocab.json holds `ids`; its merges.txt lies in `folder`."""
    if pretokenizer is None:
        raise TokenizerError(
            f"{folder}: a byte-level vocab.json without tokenizer.json does not say how text is "
            "cut into words: put tokenizer.json beside it, or give --pretokenizer"
        )
    path = folder / "merges.txt"
    try:
        merges = read_merges(path, path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from error
    return byte_level(folder, ids, merges, pretokenizer, SpecialTokens.beside(folder))


def byte_level(
    source: object,
    ids: Mapping[str, int],
    merges: Iterable[tuple[str, str, str]],
    pretokenizer: str,
    special: SpecialTokens,
) -> Vocabulary:
    """The vocabulary of these tokens and merges (place, left, right).

    An entry that no merge makes can only be a token that was added whole; `special` has more.
    """
    missing = 256 - sum(symbol in ids for symbol in SYMBOLS)
    if missing:
        raise TokenizerError(f"{source}: {missing} of the 256 symbols are not in the vocabulary")
    merges_M3 = resolve_merges(ids, merges)
    made = {ids[symbol] for symbol in SYMBOLS} | set(merges_M3[:, 2].tolist())
    tokens, added = {}, []
    for token, id_ in ids.items():
        text = unspell(token)
        if id_ in made and text is not None:
            tokens[id_] = text
        else:
            added.append(AddedToken(id_, token, special=True))
    normalization = NORMALIZATION_OF.get(pretokenizer, "none")
    special = special.also(added)
    special.check(source, {id_: repr(text) for id_, text in tokens.items()}, normalization)
    return Vocabulary(
        format="byte-level",
        tokens=tokens,
        merges_M3=merges_M3,
        added=special.added,
        finds_added=True,
        normalization=normalization,
        pretokenizer=pretokenizer,
        eos_id=special.eos_id,
        unk_id=None,
        ignores_merges=pretokenizer == "llama3",  # as the models with this rule have it
    )
