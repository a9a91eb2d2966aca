"""The documents' commands do what they say: run as they stand, on a small model and text."""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from safetensors.numpy import save_file

from apr_jax.files import write_json
from apr_jax.model import init_params, to_named
from apr_jax.text.hex_format import hex_vocabulary
from apr_jax.text.tokenizer import Tokenizer
from tests.train.fixtures import TINY

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = ("README.md", "WORKSPACE.md", "CHANGELOG.md")
# What makes a command small enough for a test; the rest of it stays as written.
SMALLER = {
    "experiments.finetune": (
        "--steps=4 --seq_length=32 --mode=from_scratch --target_val_loss=99".split()
    ),
    "experiments.evaluate": ["--seq_length=32"],
    "experiments.generate": ["--max_tokens=5"],
}


def _blocks(language):
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A HuggingFace folder MODEL and a text file TEXT with many documents."""
    folder = tmp_path_factory.mktemp("readme")
    tokenizer = Tokenizer(hex_vocabulary([], "nfc"))
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size, eos_token_id=None)
    model = folder / "MODEL"
    model.mkdir()
    save_file(to_named(init_params(config, seed=0)), model / "model.safetensors")
    write_json(model / "config.json", config.to_hf("float32"))
    write_json(model / "tokenizer.json", tokenizer.to_tokenizer_json())
    lines = [f'{{"content": "def f{i}():\\n    return {i} ** 2\\n"}}' for i in range(400)]
    (folder / "TEXT.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _run(command, folder):
    words = [word.replace("=TEXT", "=TEXT.jsonl") for word in shlex.split(command)]
    return subprocess.run(
        [sys.executable, *words[1:], *SMALLER.get(words[2], [])],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_main_job_of_the_readme_runs_as_written(folder):
    commands = [c for block in _blocks("sh") for c in block.splitlines() if "experiments." in c]
    assert len(commands) == 12
    for command in commands:
        result = _run(command, folder)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert (folder / "runs" / "tuned-hf" / "tokenizer.json").exists()
    (python,) = _blocks("python")
    code = subprocess.run(
        [sys.executable, "-c", python],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert code.returncode == 0, code.stderr


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_that_is_named_exists(document):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", (ROOT / document).read_text(), re.MULTILINE))
    assert named and named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_is_named_exists(document):
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(r"`((?:apr_jax|kernels|experiments|tests|bench|setup|docs)/[\w./-]*)`", text)
    for path in [*links, *paths]:
        assert (ROOT / path).exists(), f"{document} names {path}"


def test_every_program_has_a_line_in_the_readme():
    programs = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    programs -= {"__init__", "program"}
    text = (ROOT / "README.md").read_text() + (ROOT / "Makefile").read_text()
    named = set(re.findall(r"experiments\.(\w+)", text))
    assert programs - named == set()
