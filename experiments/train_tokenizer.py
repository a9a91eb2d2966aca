"""Learn a hex BPE vocabulary from a corpus, as `apr tokenize train` does."""

import pathlib

from absl import flags

from apr_jax.text.documents import read_documents
from apr_jax.text.hex_format import NORMALIZATIONS, write_hex
from apr_jax.text.trainer import train_bpe
from experiments.program import report, run

_INPUT = flags.DEFINE_multi_string(
    "input", None, "JSONL file, text file or folder of them; may be repeated.", required=True
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder for vocab.json, merges.txt and tokenizer.json.", required=True
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 50257, "Tokens to learn, the 261 special and byte tokens included."
)
_MIN_FREQUENCY = flags.DEFINE_integer(
    "min_frequency", 2, "Merge only pairs seen this often; 1 merges whatever there is."
)
_NORMALIZATION = flags.DEFINE_enum(
    "normalization", "nfc", NORMALIZATIONS, "Done to every text, here and when encoding."
)
_CONTENT_FIELD = flags.DEFINE_string("content_field", "content", "Key of the text in JSONL.")
_MAX_BAD = flags.DEFINE_integer(
    "max_bad", 0, "Damaged lines or files that may be skipped; 0 stops at the first.", lower_bound=0
)


def main() -> int:
    documents = read_documents(_INPUT.value, _CONTENT_FIELD.value, _MAX_BAD.value)
    tokenizer = train_bpe(documents, _VOCAB_SIZE.value, _MIN_FREQUENCY.value, _NORMALIZATION.value)
    out = pathlib.Path(_OUT.value)
    write_hex(out, tokenizer.vocabulary)
    values = {
        "algorithm": "bpe",
        "vocab_size": tokenizer.vocab_size,
        "documents": documents.count,
        "skipped": dict(documents.skipped),
        "bad": documents.bad,
        "min_frequency": _MIN_FREQUENCY.value,
        "normalization": tokenizer.normalization,
        "tokenizer_sha256": tokenizer.sha256,
    }
    summary = [f"{tokenizer.vocab_size:,} tokens from {documents.count:,} documents, in {out}"]
    if tokenizer.vocab_size < _VOCAB_SIZE.value:
        summary.append(
            f"fewer than the {_VOCAB_SIZE.value:,} asked for: no other pair occurs "
            f"{max(1, _MIN_FREQUENCY.value)} times"
        )
    report(out, values, summary)
    return 0


if __name__ == "__main__":
    run(main)
