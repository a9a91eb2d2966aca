"""Rank files of tiktoken: one token a line, its bytes in base64 and its rank, which is its id.

Such a file says nothing of how text is cut into words, nor of special tokens. Both are known for
the files whose hash stands here; for another one the caller names the pre-tokeniser.
"""

import base64
import binascii
import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from apr_jax.text.pretokenizers import NAMEABLE
from apr_jax.text.special_tokens import NORMALIZATION_OF, SpecialTokens
from apr_jax.text.vocabulary import AddedToken, TokenizerError, Vocabulary, check_id

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+")
_END = "<|endoftext|>"
_NONE = 1 << 32  # the rank of what is no token


@dataclasses.dataclass(frozen=True)
class _Known:
    """What a published rank file leaves unsaid."""

    pretokenizer: str
    added: Mapping[int, str]


# By SHA-256 of the file; OpenAI's are in tiktoken's own source. Qwen's and the last of
# OpenAI's served several models: only the special tokens that all of them have stand here.
_KNOWN = {
    # r50k_base, of GPT-2 and GPT-3, then p50k_base, of the first models for code.
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": _Known(
        "gpt2", {50256: _END}
    ),
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": _Known(
        "gpt2", {50256: _END}
    ),
    # cl100k_base of GPT-4, and o200k_base of GPT-4o.
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": _Known(
        "cl100k",
        {
            100257: _END,
            100258: "<|fim_prefix|>",
            100259: "<|fim_middle|>",
            100260: "<|fim_suffix|>",
            100276: "<|endofprompt|>",
        },
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": _Known(
        "o200k", {199999: _END, 200018: "<|endofprompt|>"}
    ),
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186": _Known(
        "qwen2", {151643: _END, 151644: "<|im_start|>", 151645: "<|im_end|>"}
    ),
}


def is_ranks(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a rank file, judged by its first line."""
    return _LINE.fullmatch(start.split(b"\n", 1)[0].rstrip(b"\r")) is not None


def read_tiktoken(path: pathlib.Path, pretokenizer: str | None) -> Vocabulary:
    """The vocabulary in a rank file. Special tokens of a tokenizer_config.json beside it count.

    Raises:
      TokenizerError: a line is damaged, bytes are missing, or nobody says how text is cut.
    """
    data = path.read_bytes()
    known = _KNOWN.get(hashlib.sha256(data).hexdigest())
    name = pretokenizer or (known.pretokenizer if known else None)
    if name is None:
        raise TokenizerError(
            f"{path}: a rank file does not say how text is cut into words, and this one is not "
            f"known: give --pretokenizer, one of {', '.join(NAMEABLE)}"
        )
    if known and name not in (known.pretokenizer, "whitespace"):
        raise TokenizerError(
            f"{path}: is known to be cut by {known.pretokenizer!r}, not {name!r}: leave "
            "--pretokenizer out"
        )
    ranks = _read_ranks(path, data)
    special = SpecialTokens.beside(path.parent)
    if known:
        special = special.also(AddedToken(id_, text, True) for id_, text in known.added.items())
    normalization = NORMALIZATION_OF.get(name, "none")
    special.check(path, {id_: repr(token) for token, id_ in ranks.items()}, normalization)
    merges_M3 = _merges(ranks)
    return Vocabulary(
        format="tiktoken",
        tokens={id_: token for token, id_ in ranks.items()},
        merges_M3=merges_M3,
        added=special.added,
        finds_added=True,
        normalization=normalization,
        pretokenizer=name,
        eos_id=special.eos_id,
        unk_id=None,
        # A word that is a token gets its id at once. That matters where no merges lead to a token.
        ignores_merges=len(merges_M3) + 256 < len(ranks),
    )


def sides(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """What merging by rank makes of the token's bytes before the last merge: two sides.

    More than two when no merges lead to the token. Two tokens that spell a third, met while any
    text is merged, are always these: the merges before happened in the same order.
    """
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(left + right, _NONE) for left, right in itertools.pairwise(parts)]
        if (lowest := min(found)) == _NONE:
            break
        at = found.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _read_ranks(path: pathlib.Path, data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    owners: dict[int, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        place = f"{path}:{number}"
        try:
            if not _LINE.fullmatch(line):
                raise binascii.Error("not a token in base64, a space and a rank")
            spelled, rank = line.split(b" ")
            token = base64.b64decode(spelled, validate=True)
        except binascii.Error as error:
            raise TokenizerError(f"{place}: {line[:80]!r}: {error}") from error
        id_ = check_id(place, repr(token), int(rank) if len(rank) < 20 else -1)
        if token in ranks or id_ in owners:
            earlier = owners.get(ranks.get(token, id_), number)
            raise TokenizerError(f"{place}: repeats a token or a rank of line {earlier}")
        ranks[token], owners[id_] = id_, number
    single = sum(len(token) == 1 for token in ranks)
    if single != 256:
        raise TokenizerError(f"{path}: has {single} of the 256 single bytes: it was cut or changed")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> np.ndarray:
    """int32 [M, 3]: the merges in the order of the ranks, of all tokens that merges lead to."""
    rows = []
    for token, id_ in sorted(ranks.items(), key=lambda item: item[1]):
        parts = sides(token, ranks)
        if len(parts) == 2:
            rows.append((ranks[parts[0]], ranks[parts[1]], id_))
    return np.array(rows, np.int32).reshape(-1, 3)
