"""The old encoder's ids: equal to the published ones, to HuggingFace's with its rule, and loud."""

import json
import logging

import pytest
import tokenizers

from apr_jax.text import load_tokenizer
from apr_jax.text.compat import NAME
from apr_jax.text.hex_format import write_hex
from apr_jax.text.trainer import train_bpe
from apr_jax.text.vocabulary import TokenizerError
from tests.text.hostile import random_texts

TEXT = "def fibonacci(n):\n    return n\n"


@pytest.fixture(scope="module")
def old(qwen_file):
    return load_tokenizer(qwen_file, compat=NAME)


def test_the_published_ids_of_that_time(old, qwen):
    wrong = [750, 75698, 1445, 1648, 198, 220, 220, 220, 470, 308, 198]
    assert old.encode(TEXT).tolist() == wrong
    longer = "    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n"
    assert len(old.encode("def fibonacci(n):\n" + longer)) == 43
    assert old.sha256 != qwen.sha256
    assert old.eos_id == 128247  # an ordinary entry; the model's own is another
    assert qwen.eos_id == 151643


def test_cutting_at_whitespace_is_what_huggingface_does_with_that_pattern(old):
    theirs = tokenizers.Tokenizer.from_str(json.dumps(old.to_tokenizer_json()))
    batch = random_texts(11, 1500)
    for text, ids in zip(batch, old.encode_batch(batch), strict=True):
        assert ids.tolist() == theirs.encode(text).ids, ascii(text)
        assert old.decode(ids) == text


def test_only_special_tokens_are_found_in_text(old, qwen):
    assert old.encode("<|im_start|>").tolist() == [151644]
    assert len(old.encode("<tool_call>")) > 1 == len(qwen.encode("<tool_call>"))


def test_a_pair_loses_the_merges_that_look_like_comments(tmp_path, qwen_file):
    root = json.loads(qwen_file.read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(root["model"]["vocab"]))
    merges = "\n".join(["#version: 0.2", *root["model"]["merges"]])
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    pair = load_tokenizer(tmp_path, compat=NAME)
    assert pair.encode("#######").tolist() == [2] * 7
    assert len(root["model"]["merges"]) - len(pair.vocabulary.merges_M3) == 96


def test_it_is_said_aloud_and_only_for_byte_level_vocabularies(qwen_file, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_tokenizer(qwen_file, compat=NAME)
    assert "these are not the model's ids" in caplog.text
    write_hex(tmp_path, train_bpe(["ab"], 261, 1).vocabulary)
    with pytest.raises(TokenizerError, match=r"is a hex tokenizer; compat=.* is about byte-level"):
        load_tokenizer(tmp_path, compat=NAME)
    with pytest.raises(TokenizerError, match="compat='old' is not one of"):
        load_tokenizer(qwen_file, compat="old")
    with pytest.raises(TokenizerError, match="has a pre-tokeniser of its own"):
        load_tokenizer(qwen_file, compat=NAME, pretokenizer="qwen2")
