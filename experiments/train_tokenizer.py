"""Learn a vocabulary from a corpus: hex as `apr tokenize train` does, or as HuggingFace does.

A hex vocabulary takes a document for one word, a byte-level one cuts it by a pre-tokeniser.
"""

import pathlib
from typing import Any

from absl import flags

from apr_jax.errors import UserError, counted
from apr_jax.lock import locked
from apr_jax.text import Tokenizer
from apr_jax.text.documents import Documents, read_documents
from apr_jax.text.hex_format import write_hex
from apr_jax.text.learned_format import check_folder, write_byte_level
from apr_jax.text.pretokenizers import PRETOKENIZERS
from apr_jax.text.trainer import check_byte_level, train_bpe, train_byte_level_bpe
from apr_jax.text.vocabulary import NORMALIZATIONS
from apr_jax.text.words import MAX_WORDS, count_words
from experiments.program import report, run

_INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "JSONL, Parquet or text file, also compressed, or folder of them, but for hidden ones; may be "
    "repeated.",
    required=True,
)
_OUT = flags.DEFINE_string("out", None, "Folder for the tokenizer.", required=True)
_FORMAT = flags.DEFINE_enum(
    "format",
    "hex",
    ("hex", "byte-level"),
    "hex: vocab.json and merges.txt as the original's, and tokenizer.json. byte-level: "
    "tokenizer.json as HuggingFace's trainer learns it.",
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 50257, "Tokens to reach, the special ones and the 256 bytes included."
)
_MIN_FREQUENCY = flags.DEFINE_integer(
    "min_frequency", 2, "Merge only pairs seen this often; 1 merges whatever there is."
)
_NORMALIZATION = flags.DEFINE_enum(
    "normalization", "nfc", NORMALIZATIONS, "Done to every text, here and when encoding."
)
_PRETOKENIZER = flags.DEFINE_enum(
    "pretokenizer",
    "qwen2",
    [*PRETOKENIZERS, "none"],
    "byte-level: the rule that cuts text into words; none: a document is one.",
)
_SPECIAL_TOKENS = flags.DEFINE_list(
    "special_tokens", ["<|endoftext|>"], "byte-level: the tokens with the first ids."
)
_MAX_TOKEN_LENGTH = flags.DEFINE_integer(
    "max_token_length",
    0,
    "byte-level: bytes that tokens of more than two stay below, as in HuggingFace; 0: any.",
    lower_bound=0,
)
_MAX_WORDS = flags.DEFINE_integer(
    "max_words",
    MAX_WORDS,
    "byte-level: different words kept while counting, at about 150 bytes each; beyond it the "
    "rarest half is forgotten, and the report says how much that was.",
    lower_bound=2,
)
_CONTENT_FIELD = flags.DEFINE_string(
    "content_field", "content", "Key of the text in JSONL, its column in Parquet."
)
_MAX_BAD = flags.DEFINE_integer(
    "max_bad", 0, "Damaged lines or files that may be skipped; 0 stops at the first.", lower_bound=0
)


def main() -> int:
    documents = read_documents(_INPUT.value, _CONTENT_FIELD.value, _MAX_BAD.value)
    out = pathlib.Path(_OUT.value)
    learn = _learn_hex if _FORMAT.value == "hex" else _learn_byte_level
    with locked(out):
        tokenizer, learned_from = learn(documents, out)
    values = {
        "algorithm": "bpe",
        "format": _FORMAT.value,
        "vocab_size": tokenizer.vocab_size,
        "documents": documents.count,
        "skipped": dict(documents.skipped),
        "bad": documents.bad,
        "min_frequency": _MIN_FREQUENCY.value,
        "normalization": tokenizer.normalization,
        "tokenizer_sha256": tokenizer.sha256,
    }
    summary = [
        f"{tokenizer.vocab_size:,} tokens from {counted(documents.count, 'document')}, in {out}"
    ]
    if tokenizer.vocab_size < _VOCAB_SIZE.value:
        summary.append(
            f"fewer than the {_VOCAB_SIZE.value:,} asked for: no other pair occurs "
            f"{max(1, _MIN_FREQUENCY.value)} times"
        )
    if learned_from.get("forgotten_words"):
        summary.append(f"{learned_from['forgotten_words']:,} words were forgotten: see --max_words")
    report(out, values | learned_from, summary)
    return 0


def _learn_hex(documents: Documents, out: pathlib.Path) -> tuple[Tokenizer, dict[str, Any]]:
    for flag in (_PRETOKENIZER, _SPECIAL_TOKENS, _MAX_TOKEN_LENGTH, _MAX_WORDS):
        if flag.present:
            raise UserError(f"--{flag.name} is for --format=byte-level: a hex vocabulary has none")
    tokenizer = train_bpe(documents, _VOCAB_SIZE.value, _MIN_FREQUENCY.value, _NORMALIZATION.value)
    write_hex(out, tokenizer.vocabulary)
    return tokenizer, {}


def _learn_byte_level(documents: Documents, out: pathlib.Path) -> tuple[Tokenizer, dict[str, Any]]:
    max_token_length = _MAX_TOKEN_LENGTH.value or None
    check_folder(out)
    check_byte_level(_VOCAB_SIZE.value, _SPECIAL_TOKENS.value, max_token_length)
    words = count_words(
        documents,
        pretokenizer=None if _PRETOKENIZER.value == "none" else _PRETOKENIZER.value,
        normalization=_NORMALIZATION.value,
        max_words=_MAX_WORDS.value,
    )
    tokenizer = train_byte_level_bpe(
        words,
        _VOCAB_SIZE.value,
        min_frequency=_MIN_FREQUENCY.value,
        special_tokens=_SPECIAL_TOKENS.value,
        max_token_length=max_token_length,
    )
    write_byte_level(out, tokenizer.vocabulary)
    return tokenizer, {
        "pretokenizer": words.pretokenizer,
        "special_tokens": _SPECIAL_TOKENS.value,
        "words": sum(words.counts.values()),
        "different_words": len(words.counts),
        "forgotten_words": words.forgotten,
    }


if __name__ == "__main__":
    run(main)
