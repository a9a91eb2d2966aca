"""The program train_tokenizer: files, report, exit codes."""

import json
import subprocess
import sys

import pytest
import transformers

from apr_jax.text import load_tokenizer

TEXTS = ["hello world hello", "hello there world"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.train_tokenizer", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in [*TEXTS, ""]) + "\n{\n")
    return path


def test_a_vocabulary_is_learned_and_loads_everywhere(tmp_path, corpus):
    out = tmp_path / "out"
    result = run(
        f"--input={corpus}",
        f"--out={out}",
        "--vocab_size=300",
        "--min_frequency=2",
        "--content_field=text",
        "--max_bad=1",
    )
    assert result.returncode == 0, result.stderr
    assert "270 tokens from 3 documents" in result.stdout
    assert "fewer than the 300 asked for: no other pair occurs 2 times" in result.stdout
    report = json.loads((out / "report.json").read_text())
    assert (report["vocab_size"], report["documents"]) == (270, 3)
    assert report["skipped"] == {"blank": 0, "no_field": 0, "hidden": 0, "bad": 1}
    tokenizer = load_tokenizer(out)
    assert tokenizer.sha256 == report["tokenizer_sha256"]
    assert tokenizer.encode("hello world").tolist() == [264, 269]
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs("hello, café")["input_ids"] == tokenizer.encode("hello, café").tolist()
    assert theirs.eos_token_id == tokenizer.eos_id


def test_bad_input_is_one_line_and_exit_code_two(tmp_path, corpus):
    result = run(f"--input={corpus}", f"--out={tmp_path / 'out'}", "--content_field=text")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "corpus.jsonl:4: not valid JSON" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_byte_level_vocabulary_is_learned(tmp_path, corpus):
    out = tmp_path / "out"
    flags = (f"--input={corpus}", f"--out={out}", "--content_field=text", "--max_bad=1")
    result = run(
        *flags, "--format=byte-level", "--vocab_size=262", "--special_tokens=<|endoftext|>,<|a|>"
    )
    assert result.returncode == 0, result.stderr
    assert "262 tokens from 3 documents" in result.stdout
    report = json.loads((out / "report.json").read_text())
    assert (report["format"], report["pretokenizer"]) == ("byte-level", "qwen2")
    assert (report["words"], report["different_words"], report["forgotten_words"]) == (6, 4, 0)
    tokenizer = load_tokenizer(out)
    assert tokenizer.sha256 == report["tokenizer_sha256"]
    assert tokenizer.eos_id == 0
    ids = tokenizer.encode("hello there<|a|>").tolist()
    assert ids[-1] == 1
    assert transformers.AutoTokenizer.from_pretrained(out)("hello there<|a|>")["input_ids"] == ids


def test_a_file_in_the_way_is_said_before_learning(tmp_path, corpus):
    result = run(f"--input={corpus}", f"--out={corpus}", "--content_field=text", "--max_bad=1")
    assert result.returncode == 2
    assert "corpus.jsonl: is not a folder" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--special_tokens=<s>"], "--special_tokens is for --format=byte-level"),
        (["--format=byte-level", "--vocab_size=256"], "vocab_size=256 is not between 257"),
        (["--format=byte-level", "--special_tokens=a"], "special token 'a' is the symbol of"),
        (["--format=byte-level"], "corpus.jsonl:4: not valid JSON"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(tmp_path, corpus, flags, message):
    result = run(f"--input={corpus}", f"--out={tmp_path / 'out'}", "--content_field=text", *flags)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
