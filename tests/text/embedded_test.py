"""Vocabularies inside GGUF and `.apr` files."""

import json

import numpy as np
import pytest

from apr_jax.codec import import_checkpoint, write_apr
from apr_jax.text import load_tokenizer
from apr_jax.text.vocabulary import TokenizerError
from tests.codec import ggufs
from tests.codec.bpe_test import CONFIG, KEYS, MERGES, ORDINARY, TEXT, TOKENS, TYPES, gguf_file

VALUES = {name: np.ones(spec.shape, np.float32) for name, spec in CONFIG.tensors().items()}
OWN = {
    "tokenizer.model": "gpt2",
    "tokenizer.pre_type": "qwen2",
    "tokenizer.vocabulary": TOKENS,
    "tokenizer.token_type": TYPES,
    "tokenizer.merges": MERGES,
}
END = TOKENS.index("<|endoftext|>")


def apr(path, keys):
    write_apr(path, VALUES, CONFIG.to_apr() | keys)
    return path


def test_a_model_gives_the_ids_of_its_own_vocabulary(tmp_path):
    gguf = load_tokenizer(gguf_file(tmp_path / "a.gguf", KEYS))
    import_checkpoint(tmp_path / "a.gguf", tmp_path / "a.apr")
    beside = load_tokenizer(tmp_path / "a.tokenizer")
    embedded = load_tokenizer(apr(tmp_path / "own.apr", OWN))
    assert gguf.encode(TEXT).tolist() == beside.encode(TEXT).tolist()
    assert gguf.sha256 == beside.sha256 == embedded.sha256
    assert gguf.eos_id == embedded.eos_id == END
    # What lies beside an `.apr` is its tokenizer, as for every program here.
    assert load_tokenizer(tmp_path / "a.apr").sha256 == beside.sha256


def test_a_vocabulary_without_a_model_is_enough(tmp_path):
    ggufs.write(tmp_path / "vocab.gguf", CONFIG, {}, keys=KEYS)
    found = load_tokenizer(tmp_path / "vocab.gguf")
    assert found.sha256 == load_tokenizer(gguf_file(tmp_path / "a.gguf", KEYS)).sha256


def test_a_vocabulary_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "bert.gguf"
    ggufs.write(path, CONFIG, {}, keys=KEYS | {"tokenizer.ggml.model": "bert"})
    with pytest.raises(TokenizerError) as refused:
        load_tokenizer(path)
    assert str(refused.value) == (
        f"{path}: vocabulary is of kind 'bert', known are 'gpt2' (byte-level BPE) and 'llama' "
        "(SentencePiece)"
    )


def test_the_original_s_files_need_the_rule_named(tmp_path):
    tokens = [*ORDINARY, "<|endoftext|>", "<tool>", "<unk>", "<unk>"]
    keys = {"tokenizer.vocabulary": tokens, "tokenizer.merges": MERGES, "tokenizer.model": "gpt2"}
    path = apr(tmp_path / "a.apr", keys)
    with pytest.raises(TokenizerError, match=r"does not say how text is cut.*--pretokenizer"):
        load_tokenizer(path)
    tokenizer = load_tokenizer(path, pretokenizer="qwen2")
    expected = load_tokenizer(apr(tmp_path / "own.apr", OWN)).encode(TEXT)
    assert tokenizer.encode(TEXT).tolist() == expected.tolist()
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (END, END + 2)
    assert len(tokenizer.encode("<unk>")) == 5  # only fills ids that have no token


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "holds no vocabulary"),
        ({"tokenizer.vocabulary": TOKENS}, "a vocabulary without tokenizer.merges"),
        ({"tokenizer.vocabulary": [*TOKENS, "a"], "tokenizer.merges": MERGES}, "'a' has ids"),
        ({"tokenizer.vocabulary": [1], "tokenizer.merges": MERGES}, "not a list of strings"),
        ({"tokenizer.vocabulary": ["a"], "tokenizer.merges": ["a b"]}, "of the 256 symbols"),
        ({"tokenizer.vocabulary": TOKENS, "tokenizer.merges": ["a"]}, "merge 0 is 'a', not two"),
        (OWN | {"tokenizer.pre_type": "gpt-9"}, "pre-tokeniser is 'gpt-9'"),
    ],
)
def test_incomplete_vocabularies_are_refused(tmp_path, keys, message):
    path = apr(tmp_path / "a.apr", keys)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(path, pretokenizer="qwen2" if "tokenizer.pre_type" not in keys else None)


def test_a_rule_that_the_file_names_itself_is_not_named_again(tmp_path):
    with pytest.raises(TokenizerError, match="names its pre-tokeniser itself"):
        load_tokenizer(gguf_file(tmp_path / "a.gguf", KEYS), pretokenizer="qwen2")


def test_an_end_of_text_of_another_name_comes_from_the_file(tmp_path):
    tokens = [*ORDINARY, "<|done|>", *TOKENS[END + 1 :]]
    keys = OWN | {"tokenizer.vocabulary": tokens, "tokenizer.eos_token_id": END}
    assert load_tokenizer(apr(tmp_path / "a.apr", keys)).eos_id == END


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0\1\2")
    with pytest.raises(TokenizerError, match="is no tokenizer that can be read: give"):
        load_tokenizer(tmp_path / "a.bin")
    (tmp_path / "list.json").write_text(json.dumps([]))
    with pytest.raises(TokenizerError, match="has no 'model'"):
        load_tokenizer(tmp_path / "list.json")
