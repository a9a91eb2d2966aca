"""tokenizer.json: both ways to write merges, and what is refused by name."""

import copy
import json

import pytest
import tokenizers

from apr_jax.text import load_tokenizer
from apr_jax.text.alphabet import SYMBOLS
from apr_jax.text.pretokenizers import LLAMA3_PATTERN, PATTERNS
from apr_jax.text.trainer import train_bpe
from apr_jax.text.vocabulary import TokenizerError
from tests.text.hostile import random_texts


@pytest.fixture(scope="module")
def root():
    return train_bpe(["hello world hello there world"], 300, 1).to_tokenizer_json()


def load(tmp_path, root):
    (tmp_path / "tokenizer.json").write_text(json.dumps(root))
    return load_tokenizer(tmp_path / "tokenizer.json")


def test_merges_as_strings_and_as_pairs_are_the_same(tmp_path, root):
    pairs = load(tmp_path, root)
    strings = copy.deepcopy(root)
    strings["model"]["merges"] = [" ".join(pair) for pair in root["model"]["merges"]]
    assert load(tmp_path, strings).sha256 == pairs.sha256


def test_merges_that_begin_with_a_number_sign_count(qwen):
    merges = qwen.vocabulary.merges_M3
    left = [qwen.vocabulary.tokens[id_] for id_ in merges[:, 0].tolist()]
    assert len(merges) == 151387
    assert sum(text.startswith(b"#") for text in left) == 96


def test_qwen_is_written_as_it_was_read(qwen, qwen_file):
    read = json.loads(qwen_file.read_text(encoding="utf-8"))
    written = qwen.to_tokenizer_json()
    for key in ("added_tokens", "normalizer", "pre_tokenizer", "decoder"):
        assert written[key] == read[key]
    added = {token["content"]: token["id"] for token in read["added_tokens"]}
    assert written["model"]["vocab"] == read["model"]["vocab"] | added
    assert [" ".join(pair) for pair in written["model"]["merges"]] == read["model"]["merges"]


def test_added_tokens_match_the_longest_first(tmp_path, root):
    longer = copy.deepcopy(root)
    added = copy.deepcopy(longer["added_tokens"][0])
    longer["added_tokens"].append(added | {"id": 900, "content": "<s><s>", "special": False})
    with pytest.raises(TokenizerError, match="has id 900, but HuggingFace gives it"):
        load(tmp_path, longer)
    longer["model"]["vocab"]["<s><s>"] = 900
    tokenizer = load(tmp_path, longer)
    assert tokenizer.encode("<s><s><s>").tolist() == [900, 1]
    assert tokenizer.vocab_size == 901
    assert tokenizer.token_bytes()[900] == 6
    assert tokenizer.decode([900, 899, 1]) == "<s><s><s>"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("added_tokens", 5, "added_tokens is 5, not a list"),
        ("added_tokens", [{"id": 279, "content": "\ud800"}], "holds a lone surrogate"),
        ("model", {"unk_token": ["<unk>"]}, "unk_token is .*, not a token"),
    ],
)
def test_damaged_fields_are_named(tmp_path, root, key, value, message):
    changed = copy.deepcopy(root)
    changed[key] = changed[key] | value if isinstance(value, dict) else value
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path, changed)


SPLIT = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
GPT2, PREFIX = BYTE_LEVEL | {"use_regex": True}, {"add_prefix_space": True}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = SPLIT | {"pattern": {"Regex": LLAMA3_PATTERN}}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_of_words_are_known_in_both_forms(tmp_path, root, pattern):
    forms = [("Isolated", False), ("Removed", True)]  # the second as in GPT-4's and GPT-4o's
    loaded = []
    for behavior, invert in forms:
        split = SPLIT | {"pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
        changed = root | {"pre_tokenizer": sequence(split, BYTE_LEVEL)}
        loaded.append(load(tmp_path, changed))
        theirs = tokenizers.Tokenizer.from_str(json.dumps(changed))
        written = tokenizers.Tokenizer.from_str(json.dumps(loaded[-1].to_tokenizer_json()))
        texts = [*random_texts(4, 200), "Hello worlD's 12345!\n/ \n "]
        for text, ids in zip(texts, loaded[-1].encode_batch(texts), strict=True):
            assert ids.tolist() == theirs.encode(text).ids == written.encode(text).ids, ascii(text)
    assert loaded[0].sha256 == loaded[1].sha256


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "type"), "WordPiece", "model type 'WordPiece' is not supported"),
        (("model", "type"), None, "model type None is not supported"),
        (("model",), None, "has no 'model' of type dict"),
        (("model", "vocab"), [], "has no 'vocab' of type dict"),
        (("model", "merges"), {}, "has no 'merges' of type list"),
        (("model", "dropout"), 0.1, r"model option dropout=0\.1 is not supported"),
        (("model", "end_of_word_suffix"), "</w>", "end_of_word_suffix='</w>' is not supported"),
        (("model", "vocab", "!"), 0, "'<unk>' and '!' share the id 0"),
        (("model", "vocab", "\u2581a"), 999, "token '\u2581a' .id 999. is not spelled"),
        (("model", "merges", 0), "h e l", "merge 0 is 'h e l', not two tokens"),
        (("model", "merges", 0), ["h"], r"merge 0 is \['h'\], not two tokens"),
        (("model", "merges", 0), 5, "merge 0 is 5, not two tokens"),
        (("model", "merges", 0), ["h", "z"], "merge 0: merge 'h' 'z': 'hz' is not in"),
        (("normalizer",), {"type": "NFKC"}, "normalizer NFKC is not supported"),
        (("normalizer",), "NFC", "normalizer 'NFC' is not supported"),
        (("pre_tokenizer",), None, "pre_tokenizer None is not supported"),
        (("pre_tokenizer",), {"type": "Metaspace"}, "pre_tokenizer Metaspace is not supported"),
        (("pre_tokenizer",), sequence(SPLIT, BYTE_LEVEL), r"pattern '\\\\w\+' is not supported"),
        (("pre_tokenizer",), sequence(SPLIT | {"invert": True}, BYTE_LEVEL), "Split, ByteLevel"),
        (("pre_tokenizer",), sequence(LLAMA3 | {"behavior": "Removed"}, BYTE_LEVEL), "Split, Byte"),
        (("pre_tokenizer",), sequence({"type": "Digits"}, BYTE_LEVEL), "Digits, ByteLevel"),
        (("pre_tokenizer",), sequence(DIGITS | {"individual_digits": False}, GPT2), "Digits, Byte"),
        (("pre_tokenizer",), sequence(DIGITS, BYTE_LEVEL), "use_regex=false"),
        (("pre_tokenizer",), sequence(DIGITS, GPT2 | PREFIX), "add_prefix_space=true"),
        (("pre_tokenizer",), sequence(LLAMA3, GPT2), "use_regex=true"),
        (("pre_tokenizer",), sequence(LLAMA3, BYTE_LEVEL | PREFIX), "add_prefix_space=true"),
        (("pre_tokenizer", "add_prefix_space"), True, "add_prefix_space=true"),
        (("post_processor",), {"type": "BertProcessing"}, "post_processor BertProcessing"),
        (("post_processor",), {"type": "Sequence"}, "post_processor Sequence"),
        (("decoder",), {"type": "WordPiece"}, "decoder WordPiece is not supported"),
        (("decoder",), None, "decoder None is not supported"),
        (("added_tokens", 0, "lstrip"), True, "'<unk>': lstrip=true is not supported"),
        (("added_tokens", 0, "normalized"), True, "'<unk>': normalized=true is not"),
        (("added_tokens", 0, "id"), 7, "'<unk>' has id 7, but 0 in the vocabulary"),
        (("added_tokens", 0, "content"), "<other>", "'<unk>' and '<other>' share the id 0"),
        (("added_tokens", 0, "id"), -1, "token '<unk>' has id -1, not an integer"),
        (("added_tokens", 0, "content"), "", "added token 0 is empty"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, root, path, value, message):
    changed = copy.deepcopy(root)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path, changed)


@pytest.mark.parametrize(
    ("symbols", "unk_token", "message"),
    [
        ("qz", None, "2 of the 256 byte symbols are not .* would lose the characters 'q', 'z'"),
        (SYMBOLS[128:161], None, "33 of the 256 .* of byte 0x80, .* and others"),
        (SYMBOLS[4], "<unk>", "1 of the 256 .* an unk_token in their place is not supported"),
    ],
)
def test_missing_symbols_are_counted(tmp_path, root, symbols, unk_token, message):
    changed = copy.deepcopy(root)
    changed["model"]["unk_token"] = unk_token
    for symbol in symbols:
        del changed["model"]["vocab"][symbol]
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path, changed)
