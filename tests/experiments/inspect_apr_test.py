"""The program shows a file as it is, and its exit code tells whether something is odd."""

import json
import subprocess
import sys

import pytest

from tests.codec.small import DATA


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.inspect_apr", *arguments],
        capture_output=True,
        text=True,
    )


def test_a_sound_file(tmp_path):
    name = DATA / "qwen2_bf16_single_tied.apr"
    done = program(f"--apr={name}", "--stats", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "tensors (27)" in done.stdout and "nothing odd was found" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == "ok" and report["header"]["tensor_count"] == 27
    assert report["metadata"]["hidden_size"] == 32
    rows = {row["name"]: row for row in report["tensors"]}
    norm = rows["model.norm.weight"]
    assert norm["dtype"] == "BF16" and norm["shape"] == [32] and norm["bytes"] == 64
    assert norm["mean"] == pytest.approx(0.979, abs=1e-3)
    assert rows["lm_head.weight"]["bytes"] == 0 and rows["lm_head.weight"]["mean"] is None


@pytest.mark.parametrize(
    "name, message",
    [
        ("limits.apr", "SizeMismatch: "),
        ("bad_truncated_data.apr", "TensorOutOfFile: "),
        ("odd_tensor_byte_flipped.apr", "FooterMismatch: "),
    ],
)
def test_an_odd_file(name, message):
    done = program(f"--apr={DATA / name}", "--stats")
    assert done.returncode == 1, done.stderr
    assert message in done.stdout


def test_statistics_of_quantised_tensors(tmp_path):
    done = program(f"--apr={DATA / 'quant_k.apr'}", "--stats", f"--out={tmp_path}")
    assert done.returncode == 0
    rows = {
        row["name"]: row for row in json.loads((tmp_path / "report.json").read_text())["tensors"]
    }
    padded = rows["q6k.padded_rows"]
    assert padded["dtype"] == "Q6_K" and padded["bytes"] == 1260 and padded["elements"] == 960
    assert padded["std"] == pytest.approx(0.0513, abs=1e-4)


def test_a_file_that_does_not_open():
    done = program(f"--apr={DATA / 'bad_checksum.apr'}")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and "checksum" in done.stderr
