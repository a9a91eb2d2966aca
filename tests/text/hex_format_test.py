"""Hex vocabularies: the original's files byte for byte, and what is refused."""

import json

import pytest
import tokenizers
from hypothesis import given, settings

from apr_jax.files import write_json
from apr_jax.text import hex_format, load_tokenizer
from apr_jax.text.hex_format import SPECIALS, write_hex
from apr_jax.text.trainer import train_bpe
from apr_jax.text.vocabulary import TokenizerError
from tests.text.hostile import random_texts, texts
from tests.train.fixtures import TINY

CORPUS = [
    "def hello():\n    return 1\n",
    "def world(café):\n    return café\n",
    "aaaa aaaaaaa 日本語 日本",
    "hello world hello there",
]


SIZE = 310


@pytest.fixture(scope="module")
def trained():
    return train_bpe(CORPUS, SIZE, 1)


@pytest.fixture(scope="module")
def plain():
    return train_bpe(CORPUS, SIZE, 1, "none")


@pytest.fixture
def folder(tmp_path, trained):
    write_hex(tmp_path, trained.vocabulary)
    return tmp_path


def test_files_are_the_original_s(tmp_path):
    write_hex(tmp_path, train_bpe(["abc"] * 5 + ["xyz"], 300, 2).vocabulary)
    assert (tmp_path / "merges.txt").read_bytes() == b"#version: 0.2\n61 62\n6162 63\n"
    lines = (tmp_path / "vocab.json").read_bytes().decode().split("\n")
    assert lines[:7] == [
        "{",
        '  "<unk>": 0,',
        '  "<s>": 1,',
        '  "</s>": 2,',
        '  "<pad>": 3,',
        '  "<mask>": 4,',
        '  "00": 5,',
    ]
    assert lines[-4:] == ['  "ff": 260,', '  "6162": 261,', '  "616263": 262', "}"]


def test_a_folder_is_read_as_written(folder, trained):
    loaded = load_tokenizer(folder)
    assert (loaded.format, loaded.vocab_size, loaded.eos_id, loaded.unk_id) == ("hex", SIZE, 2, 0)
    assert loaded.sha256 == trained.sha256
    assert loaded.vocabulary.tokens == trained.vocabulary.tokens
    assert load_tokenizer(folder / "vocab.json").sha256 == trained.sha256


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_every_text_comes_back(trained, plain, text):
    assert plain.decode(plain.encode(text)) == text
    sizes = trained.token_bytes()
    assert sizes[trained.encode(text)].sum() == len(trained.decode(trained.encode(text)).encode())


def test_normalisation_travels_beside_the_files(tmp_path, plain):
    write_hex(tmp_path, plain.vocabulary)
    loaded = load_tokenizer(tmp_path)
    assert loaded.sha256 == plain.sha256
    assert plain.normalization == "none"
    assert plain.decode(plain.encode("cafe\u0301")) == "cafe\u0301"
    (tmp_path / "tokenizer_config.json").unlink()
    default = load_tokenizer(tmp_path)
    assert default.normalization == "nfc"
    assert default.decode(default.encode("cafe\u0301")) == "caf\u00e9"
    assert default.sha256 != plain.sha256
    (tmp_path / "tokenizer_config.json").write_text('{"normalization": "NFKC"}')
    with pytest.raises(TokenizerError, match="normalization 'NFKC' is not one of"):
        load_tokenizer(tmp_path)


def huggingface(tokenizer):
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_tokenizer_json()))


def test_huggingface_gives_the_same_ids(trained):
    theirs = huggingface(trained)
    # They take the spelling of a special token for the token, we for bytes.
    batch = [t for t in random_texts(3, 3000) if not any(special in t for special in SPECIALS)]
    assert len(batch) > 1000
    for text, ids in zip(batch, trained.encode_batch(batch), strict=True):
        assert ids.tolist() == theirs.encode(text).ids, ascii(text)
        assert theirs.decode(ids.tolist()) == trained.decode(ids)
    assert theirs.token_to_id("</s>") == trained.eos_id
    assert theirs.get_vocab_size() == trained.vocab_size


def test_special_tokens_in_a_text_are_plain_bytes_in_the_hex_format(trained, tmp_path):
    assert trained.decode(trained.encode("</s>")) == "</s>"
    assert len(trained.encode("</s>")) == 4
    assert huggingface(trained).encode("</s>").ids == [2]
    (tmp_path / "tokenizer.json").write_text(json.dumps(trained.to_tokenizer_json()))
    assert load_tokenizer(tmp_path).encode("</s>").tolist() == [2]


def test_the_tokenizer_json_loads_to_the_same_rules(trained, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(trained.to_tokenizer_json()))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.format, loaded.vocab_size, loaded.eos_id) == ("tokenizer.json", SIZE, 2)
    assert loaded.vocabulary.tokens == trained.vocabulary.tokens
    assert loaded.token_bytes().tolist() == trained.token_bytes().tolist()
    assert loaded.to_tokenizer_json() == trained.to_tokenizer_json()


def test_a_vocabulary_whose_merges_are_out_of_order_takes_the_plain_path(folder):
    lines = (folder / "merges.txt").read_text().splitlines()
    lines[1:] = reversed(lines[1:])
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    tokenizer = load_tokenizer(folder)
    theirs = huggingface(tokenizer)
    for text in CORPUS:
        assert tokenizer.encode(text).tolist() == theirs.encode(text).ids


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("61", r"merges\.txt:3: '61' is not two tokens"),
        ("61  62", r"merges\.txt:3: '61  62' is not two tokens"),
        ("7a 7a", r"merges\.txt:3: merge '7a' '7a': '7a7a' is not in the vocabulary"),
        ("zz 61", r"merges\.txt:3: merge 'zz' '61': 'zz' is not in the vocabulary"),
        ("6c 6c\n6c 6c", r"merges\.txt:\d+: repeats the merge of .*merges\.txt:\d+"),
        ("é 61", r"merges\.txt: cannot be read as a hex vocabulary's"),
    ],
)
def test_damaged_merges_are_named_by_line(folder, line, message):
    lines = (folder / "merges.txt").read_text().split("\n")
    (folder / "merges.txt").write_text("\n".join([*lines[:2], line, *lines[2:]]), encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"zz": 5}, "'00' and 'zz' share the id 5"),
        ({"zz": -1}, "'zz' has id -1, not an integer"),
        ({"zz": "7"}, "'zz' has id '7', not an integer"),
        ({"zz": True}, "'zz' has id True, not an integer"),
        ({"zz": 2**24}, "'zz' has id 16777216, not an integer"),
    ],
)
def test_damaged_ids_are_named(folder, entry, message):
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocab | entry))
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(folder)


def test_transformers_takes_the_vocabulary_as_it_is(tmp_path):
    """Although it has a tokenizer of its own for every model of type qwen2."""
    from transformers import AutoTokenizer

    samples = ["def main():\n    return 1\n", "hello  world", "x = 12345", "café"]
    learnt = train_bpe(samples * 3, 300, 2, "nfc")
    write_hex(tmp_path, learnt.vocabulary)
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "merges.txt").unlink()
    write_json(tmp_path / "config.json", TINY.to_hf("float32"))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (len(loaded), loaded.eos_token_id) == (learnt.vocab_size, learnt.eos_id)
    for text in samples:
        wanted = learnt.encode(text).tolist()
        assert loaded(text, add_special_tokens=False).input_ids == wanted == plain.encode(text).ids


def test_a_folder_written_over_halfway_loads_as_nothing(tmp_path, monkeypatch):
    write_hex(tmp_path, train_bpe(["abc"] * 5, 300, 2).vocabulary)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hex_format, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        write_hex(tmp_path, train_bpe(["abcabc"] * 5, 300, 2).vocabulary)
    with pytest.raises(TokenizerError, match=r"merges\.txt"):
        load_tokenizer(tmp_path)
