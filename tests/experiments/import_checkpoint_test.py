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
    assert report["status"] == "OK" and report["apr"] == str(tmp_path / file)
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


def test_an_incomplete_model_is_told_in_full_in_the_report(tmp_path):
    values = {name: array for name, array in small.tensors().items() if "mlp" not in name}
    folder = small.hf_folder(tmp_path / "hf", values)
    done = program(f"--source={folder}", f"--out={tmp_path / 'out/a.apr'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "6 missing (" in done.stderr and "up_proj.weight, ...)" in done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["status"] == "refused" and len(report["missing"]) == 6
    assert report["extra"] == report["shape_mismatch"] == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_a_mislabelled_file_is_repaired_when_asked(tmp_path):
    source = f"--source={small.DATA / 'qwen2_bf16_tagged_f16.apr'}"
    assert program(source, f"--out={tmp_path / 'a.apr'}").returncode == 2
    done = program(source, f"--out={tmp_path / 'a.apr'}", "--retag")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("retagged: ") == 26
