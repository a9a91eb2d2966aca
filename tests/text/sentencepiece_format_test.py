"""SentencePiece models: ids of the library, the interface of `Tokenizer`, damage as one line."""

import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.errors import UserError
from apr_jax.text import load_tokenizer
from apr_jax.text.sentencepiece_format import SentencePieceTokenizer
from apr_jax.text.tokenizer import TextError
from apr_jax.text.vocabulary import TokenizerError
from tests.text.hostile import random_texts
from tests.text.samples import BPE, UNIGRAM


@pytest.fixture(params=[BPE, UNIGRAM], ids=["bpe", "unigram"])
def model(request, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(request.param)
    return tmp_path


def test_ids_are_those_of_the_library(model):
    tokenizer = load_tokenizer(model)
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    batch = random_texts(5, 400)
    for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == library.encode(text) == tokenizer.encode(text).tolist()
        assert tokenizer.decode(ids) == library.decode(ids.tolist())
    ids, offsets = tokenizer.encode_flat(batch)
    assert np.diff(offsets).tolist() == [len(library.encode(text)) for text in batch]
    assert ids.dtype == np.int32
    assert ids.tolist() == [id_ for text in batch for id_ in library.encode(text)]
    assert tokenizer.vocab_size == library.get_piece_size()
    assert load_tokenizer(model / "tokenizer.model").sha256 == tokenizer.sha256


def test_bytes_serve_for_what_has_no_piece(tmp_path):
    tokenizer = SentencePieceTokenizer(BPE, "bpe")
    text = "hello  日本 \U0001f999<tool>\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_id not in ids
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == np.uint16 and len(sizes) == 400
    assert sizes[ids].sum() == len(text.encode()) + 1  # the space in front
    assert sizes[[tokenizer.eos_id, tokenizer.unk_id]].tolist() == [0, 0]
    assert tokenizer.token_id("</s>") == tokenizer.eos_id == 2
    assert tokenizer.token_id("hello") is None and tokenizer.token_id("nothing") is None


def test_a_model_may_have_no_end_of_text():
    assert SentencePieceTokenizer(UNIGRAM, "unigram").eos_id is None


def test_what_cannot_be_encoded_or_decoded_is_a_clear_error():
    tokenizer = SentencePieceTokenizer(BPE, "bpe")
    with pytest.raises(TextError, match=r"lone surrogate U\+D800"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(TextError, match="cannot decode the id -1"):
        tokenizer.decode([5, -1])
    ids = tokenizer.encode("hello").tolist()
    with pytest.raises(TypeError, match=r"ids are float64\[2\], not one row of integers"):
        tokenizer.decode([1.0, 2.0])
    assert tokenizer.decode(iter([])) == tokenizer.decode([2**63]) == ""
    assert tokenizer.decode([*ids, 5000]) == tokenizer.decode(ids) == "hello"


def test_it_travels_to_another_process():
    tokenizer = SentencePieceTokenizer(BPE, "bpe")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.sha256 == tokenizer.sha256
    assert copy.encode("hello").tolist() == tokenizer.encode("hello").tolist()


def test_flags_for_other_formats_are_refused(model):
    with pytest.raises(TokenizerError, match="is a sentencepiece tokenizer and settles"):
        load_tokenizer(model, pretokenizer="qwen2")
    with pytest.raises(TokenizerError, match="is not for SentencePiece models"):
        load_tokenizer(model, compat="aprender-1598")


@pytest.mark.parametrize("data", [b"", b"x", b"\n", b"\n\x00" * 50, BPE[:100], BPE[:-3]])
def test_damaged_models_are_named(tmp_path, data):
    (tmp_path / "a.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"a\.model: is (no|a) SentencePiece model"):
        load_tokenizer(tmp_path / "a.model")


@given(st.lists(st.tuples(st.integers(0, len(BPE) - 1), st.integers(0, 255)), max_size=8))
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_a_changed_model_works_or_is_one_line(changes):
    data = bytearray(BPE)
    for at, byte in changes:
        data[at] = byte
    try:
        tokenizer = SentencePieceTokenizer(bytes(data), "changed")
        tokenizer.decode(tokenizer.encode("hello world <tool>é"))
        tokenizer.token_bytes()
    except UserError as error:
        assert str(error).isprintable()
