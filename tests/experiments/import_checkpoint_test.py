"""The program imports, reports, and says in one line what is wrong with its input."""

import json
import subprocess
import sys

import pytest

from apr_jax.codec import open_apr
from tests.codec import small


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.import_checkpoint", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("out, file", [("a.apr", "a.apr"), ("folder", "folder/model.apr")])
def test_import(tmp_path, out, file):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), files={"tokenizer.json": "{}"})
    done = program(f"--source={folder}", f"--out={tmp_path / out}")
    assert done.returncode == 0, done.stderr
    assert file in done.stdout and "26 tensors" in done.stdout and "tokenizer.json" in done.stdout
    assert "bit for bit" in done.stdout
    report = json.loads((tmp_path / file).with_name("report.json").read_text())
    assert report["status"] == "ok" and report["apr"] == str(tmp_path / file)
    with open_apr(report["apr"], strict=True) as opened:
        assert opened.names == sorted(report["tensors"])


def test_quantize(tmp_path):
    folder = small.hf_folder_of(tmp_path / "hf", small.wide_config())
    done = program(f"--source={folder}", f"--out={tmp_path / 'a.apr'}", "--quantize=Q6_K")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    worst = max(report["quantised"].values())
    assert f"as Q6_K with relative errors up to {worst:.2%}" in done.stdout
    done = program(f"--source={folder}", f"--out={tmp_path / 'b.apr'}", "--quantize=Q5_K")
    assert done.returncode == 2 and "Q5_K" in done.stderr
    assert not (tmp_path / "b.apr").exists()


def test_bad_input_and_bad_usage(tmp_path):
    done = program(f"--source={tmp_path / 'none'}", f"--out={tmp_path / 'a.apr'}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: cannot be read")
    assert done.stderr.count("\n") == 1 and not done.stdout
    assert program("--out=x").returncode == 2
    assert list(tmp_path.iterdir()) == []
