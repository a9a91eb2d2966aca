"""The Qwen2.5 tokenizer, ours and HuggingFace's, built once a session."""

import json

import pytest
import tokenizers

from apr_jax.text import load_tokenizer
from bench.vocabularies import qwen_tokenizer_json


@pytest.fixture(scope="session")
def qwen_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen") / "tokenizer.json"
    path.write_text(json.dumps(qwen_tokenizer_json()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def qwen(qwen_file):
    return load_tokenizer(qwen_file)


@pytest.fixture(scope="session")
def qwen_hf(qwen_file):
    return tokenizers.Tokenizer.from_file(str(qwen_file))
