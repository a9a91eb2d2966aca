"""A vocabulary inside a model file becomes a tokenizer.json with the model's ids, or a note."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
import transformers
from gguf import TokenType

from apr_jax.codec import export_checkpoint, import_checkpoint, open_checkpoint, write_apr
from apr_jax.codec.bpe import _RULES, Bpe
from apr_jax.codec.errors import TokenizerLeftOut
from apr_jax.text import load_tokenizer
from apr_jax.text.alphabet import SYMBOLS
from apr_jax.text.pretokenizers import PATTERNS
from tests.codec import ggufs, small

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "Ġ Ġ"]
ORDINARY = [*SYMBOLS, *(merge.replace(" ", "") for merge in MERGES)]
SPECIAL = ["<|endoftext|>", "<tool>"]
PADDED = ["[PAD265]", "[PAD266]"]
TOKENS = [*ORDINARY, *SPECIAL, *PADDED]
KINDS = [TokenType.NORMAL] * len(ORDINARY) + [TokenType.CONTROL, TokenType.USER_DEFINED]
TYPES = [int(kind) for kind in KINDS] + [int(TokenType.UNUSED)] * 2
TEXT = "hello hello  12 hello<|endoftext|>e\u0301<tool>\n  x"
KEYS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.chat_template": "{{ messages }}",
}
CONFIG = dataclasses.replace(small.config(), vocab_size=len(TOKENS))


def gguf_file(path, keys):
    values = {name: np.ones(spec.shape, np.float32) for name, spec in CONFIG.tensors().items()}
    ggufs.write(path, CONFIG, values, keys=keys)
    return path


def test_the_files_of_a_gguf_give_the_ids_of_its_tokens(tmp_path):
    report = import_checkpoint(gguf_file(tmp_path / "a.gguf", KEYS), tmp_path / "a.apr")
    assert report["tokenizer_files"] == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "a.tokenizer/chat_template.jinja").read_text() == "{{ messages }}"
    ours = load_tokenizer(tmp_path / "a.tokenizer")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "a.tokenizer/tokenizer.json"))
    ids = theirs.encode(TEXT).ids
    assert ours.encode(TEXT).tolist() == ids
    words = [TOKENS[id_] for id_ in ids]
    assert words[:2] == ["hello", "Ġhello"] and "<|endoftext|>" in words and "<tool>" in words
    assert "12" not in words  # Qwen2 cuts numbers into digits, whatever the merges would make
    assert words[words.index("<|endoftext|>") + 1] == "Ã"  # NFC: one character, not two
    assert ours.eos_id == TOKENS.index("<|endoftext|>")


def test_transformers_knows_the_special_tokens_of_a_gguf(tmp_path):
    ids = {"bos": 0, "eos": TOKENS.index("<|endoftext|>"), "padding": 264, "unknown": 266}
    keys = KEYS | {f"tokenizer.ggml.{kind}_token_id": id_ for kind, id_ in ids.items()}
    import_checkpoint(gguf_file(tmp_path / "a.gguf", keys), tmp_path / "a.apr")
    export_checkpoint(tmp_path / "a.apr", tmp_path / "hf")
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (found.eos_token, found.pad_token) == ("<|endoftext|>", "<tool>")
    assert found.bos_token == TOKENS[0] and found.unk_token is None
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "hf/tokenizer.json"))
    assert found.encode(TEXT) == theirs.encode(TEXT).ids


def test_transformers_does_not_cut_as_qwen2_what_another_rule_cuts(tmp_path):
    keys = KEYS | {"tokenizer.ggml.pre": "gpt-2"}
    import_checkpoint(gguf_file(tmp_path / "a.gguf", keys), tmp_path / "a.apr")
    export_checkpoint(tmp_path / "a.apr", tmp_path / "hf")  # a folder of type qwen2
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = found.encode("12 12")
    assert ids == load_tokenizer(tmp_path / "hf").encode("12 12").tolist()
    assert TOKENS.index("12") in ids


def test_the_vocabulary_goes_back_into_a_gguf(tmp_path):
    import_checkpoint(gguf_file(tmp_path / "a.gguf", KEYS), tmp_path / "a.apr")
    assert export_checkpoint(tmp_path / "a.apr", tmp_path / "b.gguf")["notes"] == []
    with (
        open_checkpoint(tmp_path / "a.gguf") as before,
        open_checkpoint(tmp_path / "b.gguf") as after,
    ):
        assert after.companion_files() == before.companion_files() != {}


def test_the_metadata_of_an_apr_file_serves_when_no_folder_lies_beside(tmp_path):
    values = {name: np.ones(spec.shape, np.float32) for name, spec in CONFIG.tensors().items()}
    own = {
        "tokenizer.model": "gpt2",
        "tokenizer.pre_type": "qwen2",
        "tokenizer.vocabulary": TOKENS,
        "tokenizer.token_type": TYPES,
        "tokenizer.merges": MERGES,
    }
    write_apr(tmp_path / "a.apr", values, CONFIG.to_apr() | own)
    export_checkpoint(tmp_path / "a.apr", tmp_path / "hf")
    assert load_tokenizer(tmp_path / "hf").encode("hello").tolist() == [TOKENS.index("hello")]
    del own["tokenizer.pre_type"]
    own["tokenizer.model_type"] = own.pop("tokenizer.model").replace("gpt2", "BPE")
    write_apr(tmp_path / "b.apr", values, CONFIG.to_apr() | own)
    report = export_checkpoint(tmp_path / "b.apr", tmp_path / "hf2")
    assert "tokenizer.json" not in report["files"]
    assert (
        "pre-tokeniser is None, known are qwen2, llama-bpe, smollm, starcoder, refact, gpt-2"
        in report["notes"][0]
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokenizer.ggml.pre": "deepseek-coder"}, "pre-tokeniser is 'deepseek-coder'"),
        ({"tokenizer.ggml.model": "llama"}, "has not all of tokens, scores and token_type"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer left out: "),
        ({"tokenizer.ggml.token_type": TYPES[:-1]}, "267 tokens but 266 types"),
        ({"tokenizer.ggml.merges": [*MERGES, "q q"]}, "merge 'q' 'q' is not one of its tokens"),
        ({"tokenizer.ggml.merges": ["q"]}, "merge 'q' is not two tokens"),
        ({"tokenizer.ggml.tokens": ["b", *TOKENS[1:]]}, "token 'b' has ids 0 and 98"),
    ],
)
def test_what_cannot_be_translated_is_left_out_with_a_note(tmp_path, change, message):
    source = gguf_file(tmp_path / "a.gguf", KEYS | change)
    report = import_checkpoint(source, tmp_path / "a.apr")
    assert report["tokenizer"] is None and message in report["notes"][0]
    assert not (tmp_path / "a.tokenizer").exists()


def test_added_tokens_keep_their_ids_wherever_they_stand(tmp_path):
    """As in SmolLM2, whose first ids are special ones."""
    tokens, types = ["<|first|>", *TOKENS], [3, *TYPES]
    content = Bpe("smollm", tokens, types, MERGES).to_json("f")
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    assert theirs.encode("<|first|>hello").ids == [0, tokens.index("hello")]
    for id_, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        assert kind == 5 or theirs.token_to_id(token) == id_
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).encode("<|first|>hello").tolist() == [0, tokens.index("hello")]


def test_llama_3_cuts_numbers_by_three_and_begins_with_a_token(tmp_path):
    keys = KEYS | {
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": TOKENS.index("<|endoftext|>"),
    }
    with open_checkpoint(gguf_file(tmp_path / "a.gguf", keys)) as checkpoint:
        content = checkpoint.companion_files()["tokenizer.json"]
    words = tokenizers.Tokenizer.from_str(content.decode()).encode("hello 1234").tokens
    assert words == ["<|endoftext|>", "hello", "Ġ", "12", "3", "4"]
    bpe = Bpe.from_json(json.loads(content), len(TOKENS), "f")
    assert bpe.rule == "llama-bpe" and TOKENS[bpe.bos_id or 0] == "<|endoftext|>"
    assert bpe.tokens == TOKENS and bpe.types == TYPES and bpe.merges == MERGES


@pytest.mark.parametrize(
    "rule, words",
    [
        ("smollm", ["hello", "Ġ", "1", "2", "'", "S", "Ċ"]),
        ("gpt-2", ["hello", "Ġ", "12", "'", "S", "Ċ"]),
        ("llama-bpe", ["hello", "Ġ", "12", "'S", "Ċ"]),
        ("qwen2", ["hello", "Ġ", "1", "2", "'S", "Ċ"]),
    ],
)
def test_each_rule_cuts_as_its_models_do(rule, words):
    tokens = [*TOKENS, "'S"]
    bpe = Bpe(rule, tokens, [*TYPES, 1], [*MERGES, "' S"])
    content = bpe.to_json("f")
    ours = tokenizers.Tokenizer.from_str(json.dumps(content)).encode("hello 12'S\n").tokens
    assert ours == words
    assert Bpe.from_json(content, len(tokens), "f") == bpe


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "WordPiece", "vocab": {}, "merges": []}},
        {"pre_tokenizer": {"type": "ByteLevel"}},
        {"normalizer": None},
        {"post_processor": {"type": "BertProcessing"}},
        {"model": None},
        {"model": {"type": "BPE", "vocab": {"a": 1000}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"\ud800": 1}, "merges": []}},
        {"added_tokens": [{"id": 1, "content": 1}]},
        {"added_tokens": [{"id": 1, "content": "\udc00", "special": True}]},
    ],
    ids=str,
)
def test_a_tokenizer_json_that_gguf_cannot_express(change):
    content = Bpe("qwen2", TOKENS, TYPES, MERGES).to_json("f")
    assert Bpe.from_json(content, len(TOKENS), "f").to_json("f") == content
    with pytest.raises(TokenizerLeftOut):
        Bpe.from_json(content | change, len(TOKENS), "f")


@pytest.mark.parametrize("data", [b"[" * 100_000, b"{", b"\xff"], ids=["deep", "cut", "no text"])
def test_a_file_that_is_no_json_is_left_out(tmp_path, data):
    with pytest.raises(TokenizerLeftOut, match=r"tokenizer\.json is not JSON"):
        Bpe.from_file(data, 9, "f")


def test_both_rooms_mean_the_same_rule():
    split, _ = _RULES["qwen2"].steps
    assert PATTERNS[split["pattern"]["Regex"]] == "qwen2"
