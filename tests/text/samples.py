"""Small tokenizers and corpora in formats of other programs, for the tests."""

import base64
import bz2
import gzip
import io
import lzma

import pyarrow
import sentencepiece
import zstandard
from pyarrow import parquet

BYTES = [bytes([byte]) for byte in range(256)]


def rank_file(path, tokens):
    lines = [base64.b64encode(token) + b" %d\n" % id_ for id_, token in enumerate(tokens)]
    path.write_bytes(b"".join(lines))
    return path


TEXTS = [f"hello world number {number} café\n" for number in range(300)]


def learn(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=2, **options
    )
    return model.getvalue()


BPE = learn(
    model_type="bpe",
    vocab_size=400,
    byte_fallback=True,
    character_coverage=1.0,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    user_defined_symbols=["<tool>"],
)
UNIGRAM = learn(model_type="unigram", vocab_size=60, hard_vocab_limit=False, eos_id=-1)


COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}


def table(path, column, kind=None, name="content", **options):
    array = pyarrow.array(column, kind)
    others = pyarrow.array(range(len(column)))
    parquet.write_table(pyarrow.table({name: array, "other": others}), path, **options)
    return path
