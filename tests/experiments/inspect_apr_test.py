"""The program shows a file as it is, and its exit code tells whether something is odd."""

import json
import subprocess
import sys

import numpy as np
import pytest

from apr_jax.codec import write_apr
from tests.codec import small
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
    assert report["status"] == "OK" and report["header"]["tensor_count"] == 27
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


def broken(path, drop=(), rename=str, **claims):
    """A model without some tensors, under other names, with other claims; None takes one away."""
    values = {n: a for n, a in small.finite_tensors().items() if not n.endswith(tuple(drop))}
    keys = {k: v for k, v in (small.config().to_apr() | claims).items() if v is not None}
    write_apr(path, {rename(name): array for name, array in values.items()}, keys)
    return path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"drop": ["_proj.bias"]}, "IncompleteModel: "),
        ({"rename": lambda name: name.removeprefix("model.")}, "lack the `model.`"),
        ({"vocab_size": 5}, r"of another shape (model.embed_tokens.weight is [24, 8], needs"),
        ({"param_count": 7}, "ParameterClaim: "),
        ({"rope_type": None}, "ConfigError: "),
        ({"architecture": None, "hf_model_type": None}, "ConfigError: "),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_model_that_cannot_be_computed(tmp_path, changes, message):
    done = program(f"--apr={broken(tmp_path / 'a.apr', **changes)}")
    assert done.returncode == 1 and message in done.stdout, done.stdout + done.stderr


def test_another_head_beside_a_claim_that_it_is_tied(tmp_path):
    values = small.finite_tensors(tied=False)
    write_apr(tmp_path / "a.apr", values, small.config().to_apr())
    done = program(f"--apr={tmp_path / 'a.apr'}")
    assert done.returncode == 1 and "HeadClaim: " in done.stdout


def test_differences_are_one_table_with_the_rest_in_the_report(tmp_path):
    path = broken(tmp_path / "a.apr", drop=[".weight"], intermediate_size=4)
    done = program(f"--apr={path}", f"--out={tmp_path}")
    rows = json.loads((tmp_path / "report.json").read_text())["differences"]
    assert done.returncode == 1 and len(rows) == 20
    assert done.stdout.count("  missing") == 20
    path = broken(tmp_path / "a.apr", rename=lambda name: f"x{name}")
    done = program(f"--apr={path}", f"--out={tmp_path}")
    assert "  ... and 32 more, all with --json" in done.stdout


def test_json_is_the_whole_report_and_nothing_else(tmp_path):
    path = broken(tmp_path / "a.apr", rename=lambda name: f"x{name}")
    done = program(f"--apr={path}", "--json")
    values = json.loads(done.stdout)
    assert done.returncode == 1 and not done.stderr and values["status"] == "MISSED"
    assert len(values["differences"]) == 52 and len(values["tensors"]) == 26
    assert values["architecture"] == "qwen2"


def test_what_is_no_model_is_said_to_be_none():
    done = program(f"--apr={DATA / 'f32_tiny.apr'}")
    assert done.returncode == 0 and "holds no Qwen2 or Llama model" in done.stdout


def test_a_file_that_does_not_open():
    done = program(f"--apr={DATA / 'bad_checksum.apr'}")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and "checksum" in done.stderr


def test_a_reader_that_has_had_enough_is_no_failure(tmp_path):
    values = {f"tensor.{number:05d}": np.zeros(1, np.float32) for number in range(5000)}
    write_apr(tmp_path / "a.apr", values, {})
    command = f"{sys.executable} -m experiments.inspect_apr --apr={tmp_path / 'a.apr'} | head -1"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True
    )
    assert done.stderr == b"" and done.stdout.split()[-1] in (b"0", b"141")


def test_the_report_of_the_import_stays(tmp_path):
    write_apr(tmp_path / "a.apr", {"a": np.zeros(1, np.float32)}, {})
    (tmp_path / "a.apr.report.json").write_text('{"program": "import_checkpoint"}')
    done = program(f"--apr={tmp_path / 'a.apr'}", f"--out={tmp_path / 'a.apr'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.apr.report.json").read_text() == '{"program": "import_checkpoint"}'
    assert (tmp_path / "a.apr.inspect_apr.report.json").exists()
