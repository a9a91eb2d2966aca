"""The generate program, run as a user runs it."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import pytest

from apr_jax.codec import write_apr
from apr_jax.model import generate, load_model
from apr_jax.text import load_tokenizer
from apr_jax.text.alphabet import SYMBOLS
from tests.model import small

ROOT = pathlib.Path(__file__).parent.parent.parent
TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<mask>", *(f"{byte:02x}" for byte in range(256))]
CONFIG = dataclasses.replace(small.CONFIG, vocab_size=len(TOKENS) + 3)


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.generate", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def apr(tmp_path: pathlib.Path) -> pathlib.Path:
    """A model whose tokenizer, one token a byte, came with it."""
    path = tmp_path / "tiny.apr"
    write_apr(path, small.weights(CONFIG), CONFIG.to_apr())
    write_tokenizer(tmp_path / "tiny.tokenizer", TOKENS)
    return path


def write_tokenizer(folder: pathlib.Path, tokens: list[str]) -> None:
    folder.mkdir()
    ids = {token: id_ for id_, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def test_continues_the_prompt(apr: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flags = ("--prompt=def f", "--max_tokens=7", "--temperature=0.5", "--top_p=0.9", "--seed=3")
    result = run(f"--apr={apr}", *flags, f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    tokenizer = load_tokenizer(tmp_path / "tiny.tokenizer")
    model, params = load_model(apr)
    prompt = tokenizer.encode("def f")
    ids = list(
        generate(
            model,
            params,
            prompt,
            max_tokens=7,
            key=jax.random.key(3),
            temperature=0.5,
            top_p=0.9,
            eos_id=tokenizer.eos_id,
        )
    )
    assert report["ids"] == ids
    assert report["text"] == tokenizer.decode([*prompt, *ids])
    assert report["tokens"] == len(ids) and report["prompt_tokens"] == 5
    assert report["text"].splitlines()[0] in result.stdout


def test_a_tokenizer_too_large_is_refused(apr: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_tokenizer(tmp_path / "large", [*TOKENS, *(f"<extra{i}>" for i in range(4))])
    result = run(f"--apr={apr}", f"--tokenizer={tmp_path / 'large'}", "--prompt=x")
    assert result.returncode == 2
    assert "has 265 tokens, the model has 264 rows" in result.stderr.splitlines()[-1]


def test_a_model_without_tokenizer_asks_for_one(tmp_path: pathlib.Path) -> None:
    write_apr(tmp_path / "alone.apr", small.weights(), small.CONFIG.to_apr())
    result = run(f"--apr={tmp_path / 'alone.apr'}", "--prompt=x")
    assert result.returncode == 2
    assert "name one by --tokenizer" in result.stderr.splitlines()[-1]


def test_the_vocabulary_inside_a_model_serves(tmp_path: pathlib.Path) -> None:
    own = {
        "tokenizer.model": "gpt2",
        "tokenizer.pre_type": "qwen2",
        "tokenizer.vocabulary": [*SYMBOLS, "<|endoftext|>"],
        "tokenizer.token_type": [1] * 256 + [3],
        "tokenizer.merges": [],
    }
    write_apr(tmp_path / "own.apr", small.weights(CONFIG), CONFIG.to_apr() | own)
    result = run(
        f"--apr={tmp_path / 'own.apr'}", "--prompt=ab", "--max_tokens=3", f"--out={tmp_path}"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "report.json").read_text())["prompt_tokens"] == 2
    result = run(f"--apr={tmp_path / 'own.apr'}", "--prompt=ab", "--pretokenizer=qwen2")
    assert result.returncode == 2
    assert "names its pre-tokeniser itself" in result.stderr


def test_each_of_several_ends_of_text_ends_it(apr: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arguments = (f"--apr={apr}", "--prompt=def f", "--max_tokens=7", f"--out={tmp_path}")
    assert run(*arguments).returncode == 0
    ids = json.loads((tmp_path / "report.json").read_text())["ids"]
    config = tmp_path / "tiny.tokenizer" / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": [263, ids[0]]}))
    assert run(*arguments).returncode == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["ids"], report["stopped_by"]) == ([], "eos")
    config.write_text(json.dumps({"eos_token_id": ["x"]}))
    result = run(*arguments)
    assert result.returncode == 2
    assert "eos_token_id=['x'] in generation_config.json is no token" in result.stderr
