"""Which tokenizer is found in a folder, by content."""

import json
import os

import pytest

from apr_jax.errors import UserError
from apr_jax.text import load_tokenizer
from apr_jax.text.alphabet import SYMBOLS, spell, unspell
from apr_jax.text.hex_format import write_hex
from apr_jax.text.trainer import train_bpe
from apr_jax.text.vocabulary import TokenizerError


@pytest.fixture(scope="module")
def trained():
    return train_bpe(["hello world hello there world"], 300, 1)


def write_pair(folder, vocab, merges=()):
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")


def test_the_alphabet_spells_every_byte():
    assert len(set(SYMBOLS)) == 256
    assert unspell(spell(bytes(range(256)))) == bytes(range(256))
    assert spell(b"a \n\t\r") == "a\u0120\u010a\u0109\u010d"
    assert unspell("\u2581") is None


def test_a_hex_pair_wins_over_a_tokenizer_json(tmp_path, trained, qwen_file):
    write_hex(tmp_path, trained.vocabulary)
    (tmp_path / "tokenizer.json").write_bytes(qwen_file.read_bytes())
    assert load_tokenizer(tmp_path).format == "hex"
    assert load_tokenizer(tmp_path / "tokenizer.json").vocab_size == 151665


def test_a_tokenizer_json_wins_over_a_byte_level_pair(tmp_path, qwen_file):
    root = json.loads(qwen_file.read_text())
    write_pair(tmp_path, root["model"]["vocab"], root["model"]["merges"])
    (tmp_path / "tokenizer.json").write_bytes(qwen_file.read_bytes())
    assert load_tokenizer(tmp_path).format == "tokenizer.json"


def test_a_byte_level_pair_alone_needs_its_pretokenizer(tmp_path, qwen_file, qwen):
    root = json.loads(qwen_file.read_text())
    added = {token["content"]: token["id"] for token in root["added_tokens"]}
    write_pair(tmp_path, root["model"]["vocab"] | added, root["model"]["merges"])
    with pytest.raises(TokenizerError, match=r"does not say how text is cut.*--pretokenizer"):
        load_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, pretokenizer="qwen2")
    assert (tokenizer.format, tokenizer.eos_id) == ("byte-level", 151643)
    assert tokenizer.sha256 == qwen.sha256  # the merges that begin with # among them
    # Without its added tokens, as the original's import leaves it, no separator is known.
    write_pair(tmp_path, root["model"]["vocab"], root["model"]["merges"])
    assert load_tokenizer(tmp_path, pretokenizer="qwen2").eos_id is None


def test_a_pretokenizer_that_nothing_needs_is_refused(tmp_path, trained, qwen_file):
    write_hex(tmp_path, trained.vocabulary)
    with pytest.raises(TokenizerError, match="is a hex tokenizer and settles"):
        load_tokenizer(tmp_path, pretokenizer="qwen2")
    with pytest.raises(TokenizerError, match=r"is a tokenizer\.json tokenizer and settles"):
        load_tokenizer(qwen_file, pretokenizer="qwen2")
    with pytest.raises(TokenizerError, match="pretokenizer='gpt9' is not one of"):
        load_tokenizer(tmp_path, pretokenizer="gpt9")


def test_incomplete_vocabularies_are_refused_with_both_counts(tmp_path, trained):
    write_hex(tmp_path, trained.vocabulary)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    del vocab["41"]
    write_pair(tmp_path, vocab)
    message = "255 of the 256 byte tokens of a hex vocabulary and 0 of the 256 symbols"
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()  # which would say more than the pair
    write_pair(tmp_path, {symbol: id_ for id_, symbol in enumerate(SYMBOLS[:-1])} | {"aa": 300})
    with pytest.raises(TokenizerError, match=r"has 1 of the 256 byte tokens .* and 255 of"):
        load_tokenizer(tmp_path)


def test_paths_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(TokenizerError, match="no such file or folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"holds neither tokenizer\.json nor"):
        load_tokenizer(tmp_path)
    os.mkfifo(tmp_path / "tokenizer.json")  # opening it would wait for ever
    with pytest.raises(UserError, match=r"tokenizer\.json: is not a regular file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json: .* a pipe or a device"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_vocabulary_that_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(UserError, match=r"vocab\.json: (holds a list|not valid JSON)"):
        load_tokenizer(tmp_path)


def test_missing_merges_are_named(tmp_path, trained):
    write_hex(tmp_path, trained.vocabulary)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"merges\.txt: cannot be read"):
        load_tokenizer(tmp_path)
