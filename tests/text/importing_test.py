"""Tokenizers of every format into a folder that loads to the same ids, here and in HuggingFace."""

import json

import pytest
import tokenizers

from apr_jax.errors import UserError
from apr_jax.text import load_tokenizer
from apr_jax.text.alphabet import SYMBOLS
from apr_jax.text.hex_format import write_hex
from apr_jax.text.importing import import_tokenizer
from apr_jax.text.trainer import train_bpe
from tests.codec.bpe_test import KEYS, TEXT, gguf_file
from tests.text.samples import BPE, BYTES, rank_file

CONFIG = {
    "added_tokens_decoder": {"400": {"content": "<|end_of_text|>", "special": True}},
    "eos_token": "<|end_of_text|>",
}


def ranks(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return rank_file(folder / "a.tiktoken", [*BYTES, b"he", b"llo", b"ll"])


def pair(folder):
    vocab = {symbol: id_ for id_, symbol in enumerate(SYMBOLS)} | {"he": 256, "<|endoftext|>": 257}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n")
    return folder


def sentencepiece(folder):
    (folder / "a.model").write_bytes(BPE)
    return folder / "a.model"


def hexadecimal(folder):
    write_hex(folder, train_bpe(["hello hello"], 264, 1, "none").vocabulary)
    return folder


def gguf(folder):
    return gguf_file(folder / "a.gguf", KEYS)


@pytest.mark.parametrize(
    ("make", "pretokenizer"),
    [(pair, "qwen2"), (ranks, "qwen2"), (sentencepiece, None), (hexadecimal, None), (gguf, None)],
)
def test_the_copy_gives_the_same_ids(tmp_path, make, pretokenizer):
    (tmp_path / "source").mkdir()
    source = make(tmp_path / "source")
    out = tmp_path / "out"
    for _ in range(2):  # an earlier import is replaced
        report = import_tokenizer(source, out, pretokenizer)
    tokenizer = load_tokenizer(source, pretokenizer=pretokenizer)
    copy = load_tokenizer(out)
    assert copy.sha256 == tokenizer.sha256 == report["tokenizer_sha256"]
    assert copy.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert copy.eos_id == tokenizer.eos_id == report["eos_id"] is not None
    assert sorted(file.name for file in out.iterdir()) == report["files"]
    if make is not sentencepiece:
        theirs = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
        assert theirs.encode(TEXT).ids == copy.encode(TEXT).tolist()


@pytest.mark.parametrize("pretokenizer", ["qwen2", "gpt2"])
def test_transformers_loads_what_a_rank_file_became(tmp_path, pretokenizer):
    from transformers import AutoTokenizer

    (tmp_path / "source").mkdir()
    source = ranks(tmp_path / "source")
    (tmp_path / "source" / "tokenizer_config.json").unlink()
    import_tokenizer(source, tmp_path / "out", pretokenizer)
    (tmp_path / "out" / "config.json").write_text('{"model_type": "qwen2"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    wanted = load_tokenizer(tmp_path / "out").encode("hello  12 e\u0301").tolist()
    assert theirs("hello  12 e\u0301", add_special_tokens=False).input_ids == wanted


def test_a_tokenizer_json_is_copied_as_it_is(tmp_path, qwen_file):
    report = import_tokenizer(qwen_file, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == qwen_file.read_bytes()
    assert (report["added_tokens"], report["merges"]) == (22, 151387)
    assert report["eos_token"] == "<|endoftext|>"
    assert report["files"] == ["tokenizer.json", "tokenizer_config.json"]


def test_a_folder_in_use_is_refused(tmp_path):
    source = pair(tmp_path)
    with pytest.raises(UserError, match="is the source: choose another folder"):
        import_tokenizer(source, source, "qwen2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"holds 'mine\.txt', which is not to be replaced"):
        import_tokenizer(source, tmp_path / "out", "qwen2")
