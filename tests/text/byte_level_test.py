"""Byte-level tokenizers cut as GPT-2, Llama 3 and SmolLM2 do, against `tokenizers`.

Their vocabularies are in no package, so each is learned here; what matters is how the file is read.
"""

import json
import pathlib

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from apr_jax.text import load_tokenizer, tokenizer
from apr_jax.text.alphabet import SYMBOLS
from apr_jax.text.pretokenizers import LLAMA3_PATTERN
from tests.text.hostile import FRAGMENTS, random_texts, texts

BYTE_LEVEL = pre_tokenizers.ByteLevel
TEMPLATE = processors.TemplateProcessing(
    single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
)
PRE_TOKENIZERS = {
    "gpt2": BYTE_LEVEL(add_prefix_space=False),
    "gpt2 with a space in front": BYTE_LEVEL(add_prefix_space=True),
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            BYTE_LEVEL(add_prefix_space=False, use_regex=False),
        ]
    ),
    "smollm2": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL(add_prefix_space=False)]
    ),
}
PRE_TOKENIZERS["smollm2 without some bytes"] = PRE_TOKENIZERS["smollm2"]
# Its own vocabulary lacks 21, of which these are some; a common first byte makes it harder.
NO_TOKENS = {SYMBOLS[byte] for byte in b"\x04\x1d\xc0\xf1\xff\xe2"}


def learned(name):
    """A tokenizer of that kind which knows the words of this folder."""
    hf = tokenizers.Tokenizer(models.BPE())
    hf.pre_tokenizer = PRE_TOKENIZERS[name]
    hf.decoder = decoders.ByteLevel()
    sources = [path.read_text(encoding="utf-8") for path in pathlib.Path(__file__).parent.glob("*")]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|begin_of_text|>", "<|endoftext|>", "?end?"],
        initial_alphabet=BYTE_LEVEL.alphabet(),
        show_progress=False,
    )
    hf.train_from_iterator([*sources, *random_texts(3, 300)], trainer)
    root = json.loads(hf.to_str())
    if name == "llama3":
        # Tokens that merges alone would not make.
        root["model"]["ignore_merges"] = True
        root["model"]["merges"] = root["model"]["merges"][:700]
        root["post_processor"] = {
            "type": "Sequence",
            "processors": [
                json.loads(BYTE_LEVEL().__getstate__()),
                json.loads(TEMPLATE.__getstate__()),
            ],
        }
    if name == "smollm2 without some bytes":
        model = root["model"]
        model["vocab"] = {t: id_ for t, id_ in model["vocab"].items() if not NO_TOKENS & {*t}}
        model["merges"] = [pair for pair in model["merges"] if not NO_TOKENS & {*"".join(pair)}]
    for token in root["added_tokens"]:
        token["normalized"] = name.startswith("gpt2")  # as GPT-2's file has it
    return root


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def pair(request, tmp_path_factory):
    """Ours and HuggingFace's."""
    path = tmp_path_factory.mktemp("byte-level") / "tokenizer.json"
    path.write_text(json.dumps(learned(request.param)), encoding="utf-8")
    return load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))


def equal(pair, batch):
    ours, hf = pair
    found = ours.encode_batch(batch)
    expected = hf.encode_batch(batch, add_special_tokens=False)
    for text, ids, encoding in zip(batch, found, expected, strict=True):
        assert ids.tolist() == encoding.ids, ascii(text)


@settings(max_examples=100, deadline=None)
@given(batch=st.lists(texts, max_size=4))
def test_hostile_texts(pair, batch):
    equal(pair, batch)


def test_many_random_texts(pair):
    equal(pair, random_texts(5, 1500))
    equal(pair, ["".join(f"{a}{b}" for b in FRAGMENTS) for a in FRAGMENTS])
    equal(
        pair,
        [
            "z",
            "zz z",
            "azb",
            "\N{EN DASH}" * 3000,
            "",
            " ",
            "x",
            "<|endoftext|>",
            "a<|endoftext|> b<|endoftext|>\tc",
            "?end?<|endoftext|>?end? ?end <|endoftext ?",
        ],
    )


def test_slices_of_a_long_text(pair, monkeypatch):
    monkeypatch.setattr(tokenizer, "_SLICE", 40)
    monkeypatch.setattr(tokenizer, "_SMALL", 0)
    equal(pair, ["a b c " + " ".join(random_texts(8, 100)), "b\n\nc\n" * 20])


def test_decoding(pair):
    ours, hf = pair
    for text in random_texts(6, 100):
        ids = ours.encode(text).tolist()
        assert ours.decode(ids) == hf.decode(ids, skip_special_tokens=False)


def test_written_and_read_again_it_gives_the_same_ids(pair, tmp_path):
    ours, _ = pair
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(ours.to_tokenizer_json()), encoding="utf-8")
    equal((ours, tokenizers.Tokenizer.from_file(str(path))), random_texts(7, 200))
    assert load_tokenizer(path).sha256 == ours.sha256
