"""A SentencePiece vocabulary inside a GGUF gives the ids of the model that it was taken from."""

import functools

import pytest
import sentencepiece

from apr_jax.codec import import_checkpoint
from apr_jax.codec.errors import TokenizerLeftOut
from apr_jax.codec.sentencepiece_model import sentencepiece_model
from apr_jax.text import load_tokenizer
from tests.codec import ggufs
from tests.text.hostile import random_texts
from tests.text.samples import BPE

GGML = "tokenizer.ggml."


@functools.cache
def library():
    return sentencepiece.SentencePieceProcessor(model_proto=BPE)


def keys():
    """What llama.cpp's converter writes of a model; the one user-defined piece has its type."""
    pieces = range(library().get_piece_size())
    tokens = library().id_to_piece([*pieces])
    kinds = {2: library().is_unknown, 3: library().is_control, 6: library().is_byte}
    types = [next((kind for kind, is_it in kinds.items() if is_it(id_)), 1) for id_ in pieces]
    types[tokens.index("<tool>")] = 4
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": [library().get_score(id_) for id_ in pieces],
        "token_type": types,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def gguf(path, changes=None, tensors=None):
    content = keys() | (changes or {})
    config = ggufs.CONFIG
    ggufs.write(path, config, tensors or {}, keys={GGML + key: content[key] for key in content})
    return path


def test_ids_are_those_of_the_model(tmp_path):
    tokenizer = load_tokenizer(gguf(tmp_path / "vocabulary.gguf"))
    assert (tokenizer.format, tokenizer.vocab_size) == ("sentencepiece", 400)
    assert (tokenizer.eos_id, tokenizer.unk_id) == (2, 0)
    texts = [*random_texts(11, 600), "hello world  number <tool> </s>\n 12", " hello", "  a  ", ""]
    texts += [text.replace(",", "hello ").replace("e", "caf\u00e9 number") for text in texts]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == library().encode(text), ascii(text)
        assert tokenizer.decode(ids) == library().decode(ids.tolist())


def test_it_comes_along_when_the_model_is_imported(tmp_path):
    values = ggufs.values(ggufs.CONFIG)
    report = import_checkpoint(gguf(tmp_path / "a.gguf", None, values), tmp_path / "a.apr")
    assert report["tokenizer_files"] == ["tokenizer.model"]
    assert load_tokenizer(tmp_path / "a.apr").encode("hello").tolist() == library().encode("hello")


def test_what_the_keys_say_of_spaces_and_of_the_end_counts():
    def load(**changes):
        model = sentencepiece_model(keys() | changes, "f")
        return sentencepiece.SentencePieceProcessor(model_proto=model)

    hello = load().encode("hello world")
    assert load(add_space_prefix=False).encode("hello world") != hello
    assert load(remove_extra_whitespaces=True).encode("hello  world") == hello
    assert load().encode("hello  world") != hello
    assert load(eos_token_id=1).eos_id() == 1
    # As older converters leave it: the rows to spare are unknown too, and no key says which is it.
    types = [*keys()["token_type"], 2, 2]
    changes = {"tokens": [*keys()["tokens"], "[PAD1]", "[PAD2]"], "token_type": types}
    spare = load(**changes, scores=[*keys()["scores"], 0.0, 0.0], unknown_token_id=None)
    assert spare.get_piece_size() == 402 and spare.unk_id() == 0
    assert spare.encode("hello world [PAD1]") == load().encode("hello world [PAD1]")


def changed(key, at, value):
    return {key: [*keys()[key][:at], value, *keys()[key][at + 1 :]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda: {"scores": None}, "has not all of tokens, scores and token_type"),
        (lambda: {"scores": [1.0]}, "has 400 tokens, 1 scores and 400 types"),
        (lambda: changed("tokens", 300, "<s>"), "has 2 tokens '<s>'"),
        (lambda: changed("tokens", 300, ""), "has 1 tokens ''"),
        (lambda: changed("tokens", 10, "0x0A"), "token '0x0A' is no byte as its type says"),
        (lambda: changed("token_type", 10, 1), "has 255 of the 256 bytes"),
        (lambda: changed("token_type", 300, 9), "has type 9"),
        (lambda: changed("scores", 300, float("nan")), "score nan"),
        (
            lambda: changed("token_type", 0, 1) | {"unknown_token_id": None},
            "no token for what is unknown",
        ),
    ],
)
def test_what_no_model_can_be_made_of_is_refused(changes, message):
    with pytest.raises(TokenizerLeftOut, match=message):
        sentencepiece_model(keys() | changes(), "f")
