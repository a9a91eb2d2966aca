"""The program imports, reports, and says in one line what is wrong with its input."""

import json
import subprocess
import sys

import pytest

from apr_jax.codec import open_apr
from tests.codec import ggufs, small


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.import_checkpoint", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "out, file, told",
    [
        ("a.apr", "a.apr", "a.apr.report.json"),
        ("folder", "folder/model.apr", "folder/report.json"),
    ],
)
def test_import(tmp_path, out, file, told):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), files={"tokenizer.json": "{}"})
    done = program(f"--source={folder}", f"--out={tmp_path / out}")
    assert done.returncode == 0, done.stderr
    assert file in done.stdout and "26 tensors" in done.stdout and "tokenizer.json" in done.stdout
    assert "bit for bit" in done.stdout
    report = json.loads((tmp_path / told).read_text())
    assert report["status"] == "OK" and report["apr"] == str(tmp_path / file)
    with open_apr(report["apr"], strict=True) as opened:
        assert opened.names == sorted(report["tensors"])


def test_quantize(tmp_path):
    folder = small.hf_folder_of(tmp_path / "hf", small.wide_config())
    done = program(f"--source={folder}", f"--out={tmp_path / 'a.apr'}", "--quantize=Q6_K")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "a.apr.report.json").read_text())
    worst = max(report["quantised"].values())
    count = len(report["quantised"])
    assert f"{count} as Q6_K with relative errors up to {worst:.2%}" in done.stdout
    assert "the others equal to the source bit for bit" in done.stdout
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
    report = json.loads((tmp_path / "out/a.apr.report.json").read_text())
    assert report["status"] == "refused" and len(report["missing"]) == 6
    assert report["extra"] == report["shape_mismatch"] == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.apr.report.json"]
    columns, *rows = (line.split() for line in done.stdout.splitlines())
    assert columns == ["name", "difference", "found", "needed"]
    assert rows == [[name, "missing"] for name in report["missing"]]


def test_what_was_decoded_is_not_called_equal(tmp_path):
    types = {"model.layers.0.mlp.up_proj.weight": ggufs.Type.Q4_1}
    ggufs.write(tmp_path / "a.gguf", ggufs.CONFIG, ggufs.values(ggufs.CONFIG), types)
    done = program(f"--source={tmp_path / 'a.gguf'}", f"--out={tmp_path / 'a.apr'}")
    assert done.returncode == 0, done.stderr
    line = "1 decoded from Q4_1 to F32, the others equal to the source bit for bit"
    assert done.stdout.splitlines()[0].endswith(line)


def test_the_configuration_of_a_lone_file(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors())
    (folder / "config.json").rename(tmp_path / "c.json")
    source, out = f"--source={folder / 'model.safetensors'}", f"--out={tmp_path / 'a.apr'}"
    done = program(source, out)
    assert done.returncode == 2 and "config.json: cannot be read" in done.stderr
    assert program(source, out, f"--config={tmp_path / 'c.json'}").returncode == 0


def test_a_mislabelled_file_is_repaired_when_asked(tmp_path):
    source = f"--source={small.DATA / 'qwen2_bf16_tagged_f16.apr'}"
    assert program(source, f"--out={tmp_path / 'a.apr'}").returncode == 2
    done = program(source, f"--out={tmp_path / 'a.apr'}", "--retag")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mended: ") == 26
