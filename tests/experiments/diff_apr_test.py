"""The program tells two models apart by its exit code, and says where they differ."""

import json
import subprocess
import sys

from apr_jax.codec import write_apr
from tests.codec import small


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.diff_apr", *arguments], capture_output=True, text=True
    )


def test_equal_different_and_unreadable(tmp_path):
    values = small.finite_tensors()
    write_apr(tmp_path / "a.apr", values, small.config().to_apr())
    folder = small.hf_folder(tmp_path / "hf", values)
    same = program(f"--a={tmp_path / 'a.apr'}", f"--b={folder}", f"--out={tmp_path / 'out'}")
    assert same.returncode == 0, same.stderr
    assert same.stdout == "equal: 26 equal\n"
    assert json.loads((tmp_path / "out/report.json").read_text())["status"] == "equal"
    values["model.norm.weight"] = values["model.norm.weight"] * 2
    write_apr(tmp_path / "b.apr", values, small.config().to_apr())
    other = program(f"--a={tmp_path / 'b.apr'}", f"--b={folder}")
    assert other.returncode == 1
    assert "model.norm.weight: different, BF16 [8] and BF16 [8]; 8 elements" in other.stdout
    assert other.stdout.endswith("different: 1 different, 25 equal\n")
    bad = program(f"--a={tmp_path / 'none.apr'}", f"--b={folder}")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1
