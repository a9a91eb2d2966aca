"""Encode a corpus to shards of token ids; run again after an interruption, it goes on."""

import time

from absl import flags

from apr_jax.errors import counted
from apr_jax.text.compat import WARNING
from apr_jax.text.corpus import EOS_POLICIES, CorpusConfig, encode_corpus
from apr_jax.text.loading import COMPATS
from apr_jax.text.pretokenizers import NAMEABLE
from experiments.program import report, run

_INPUT = flags.DEFINE_multi_string(
    "input",
    None,
    "JSONL, Parquet or text file, also compressed, or folder of them, but for hidden ones; may be "
    "repeated.",
    required=True,
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    None,
    "Folder or file of a tokenizer, see import_tokenizer; or a model with one in it.",
    required=True,
)
_OUT = flags.DEFINE_string("out", None, "Folder for the shards and report.json.", required=True)
_PRETOKENIZER = flags.DEFINE_enum(
    "pretokenizer",
    None,
    NAMEABLE,
    "How text is cut into words, for tokenizers that do not say it; unset means that they do.",
)
_SHARD_TOKENS = flags.DEFINE_integer(
    "shard_tokens",
    10_000_000,
    "A shard is closed after the document with which it has so many tokens.",
    lower_bound=1,
)
_CONTENT_FIELD = flags.DEFINE_string(
    "content_field", "content", "Key of the text in JSONL, its column in Parquet."
)
_EOS_POLICY = flags.DEFINE_enum(
    "eos_policy", "after", EOS_POLICIES, "Where the end-of-text token goes."
)
_VAL_FRACTION = flags.DEFINE_float(
    "val_fraction", 0.0, "Share of the documents, by content hash, held out; 0 holds out none."
)
_VAL_OUT = flags.DEFINE_string("val_out", None, "Folder for the held-out shards.")
_MAX_BAD = flags.DEFINE_integer(
    "max_bad", 0, "Damaged lines or files that may be skipped; 0 stops at the first.", lower_bound=0
)
_EOS_TOKEN = flags.DEFINE_string(
    "eos_token",
    None,
    "Special token that separates documents; unset takes the tokenizer's end of text.",
)
_COMPAT = flags.DEFINE_enum(
    "compat",
    None,
    COMPATS,
    "Ids as an older program wrote them, to check old corpora; they are not the model's. "
    "Unset gives the model's.",
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "Processes that encode; 0 takes all cores that the input is worth. The shards stay the same.",
    lower_bound=0,
)


def main() -> int:
    start = time.monotonic()
    values = encode_corpus(
        CorpusConfig(
            inputs=tuple(_INPUT.value),
            tokenizer=_TOKENIZER.value,
            out=_OUT.value,
            pretokenizer=_PRETOKENIZER.value,
            shard_tokens=_SHARD_TOKENS.value,
            content_field=_CONTENT_FIELD.value,
            eos_policy=_EOS_POLICY.value,
            val_fraction=_VAL_FRACTION.value,
            val_out=_VAL_OUT.value,
            max_bad=_MAX_BAD.value,
            eos_token=_EOS_TOKEN.value,
            compat=_COMPAT.value,
            workers=_WORKERS.value,
        )
    )
    summary = [_line(_OUT.value, values)]
    if "val" in values:
        summary.append(_line(_VAL_OUT.value, values["val"]))
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in values["skipped"].items())
    summary.append(f"skipped: {skipped}; {time.monotonic() - start:.1f} s")
    if _COMPAT.value is not None:
        summary.append(f"WARNING: {WARNING}")
    # No times in the report: a repeated or resumed run writes the same bytes.
    report(_OUT.value, values, summary)
    return 0


def _line(folder: str, part: dict) -> str:
    return (
        f"{folder}: {counted(part['tokens'], 'token')} of {counted(part['documents'], 'document')} "
        f"in {counted(part['shards'], 'shard')}; {part['bytes_per_token']:.2f} bytes a token, "
        f"{part['entropy_bits']:.2f} of {part['entropy_ceiling_bits']:.2f} bits, "
        f"{counted(part['distinct_tokens'], 'distinct token')}"
    )


if __name__ == "__main__":
    run(main)
