"""Bring a tokenizer of any format into a folder that the programs here and HuggingFace read.

python -m experiments.import_tokenizer --source=MODEL --out=TOKENIZER
"""

from absl import flags

from apr_jax.text.importing import import_tokenizer
from apr_jax.text.pretokenizers import NAMEABLE
from experiments import program

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "Folder with tokenizer.json or vocab.json and merges.txt; or a tokenizer.json, SentencePiece "
    ".model, .tiktoken, .apr or GGUF file.",
    required=True,
)
_OUT = flags.DEFINE_string("out", None, "Folder for the tokenizer and report.json.", required=True)
_PRETOKENIZER = flags.DEFINE_enum(
    "pretokenizer",
    None,
    NAMEABLE,
    "How text is cut into words, for files that do not say it; unset means that the file does.",
)


def main() -> int:
    values = import_tokenizer(_SOURCE.value, _OUT.value, _PRETOKENIZER.value)
    eos = f"{values['eos_token']} ({values['eos_id']})" if values["eos_token"] else "none"
    summary = [
        f"{values['format']} tokenizer of {values['vocab_size']:,} ids, end of text: {eos}",
        f"{_OUT.value}: {', '.join(values['files'])}, read back and found the same",
    ]
    program.report(_OUT.value, values, summary)
    return 0


if __name__ == "__main__":
    program.run(main)
