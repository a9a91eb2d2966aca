"""The program import_tokenizer: a summary, a report, and one line for what cannot be read."""

import json
import subprocess
import sys

from tests.text.samples import BYTES, rank_file


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.import_tokenizer", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_rank_file_is_imported_when_its_rule_is_named(tmp_path):
    source = rank_file(tmp_path / "a.tiktoken", [*BYTES, b"ab"])
    arguments = [f"--source={source}", f"--out={tmp_path / 'out'}"]
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "give --pretokenizer" in result.stderr
    assert not (tmp_path / "out").exists()
    result = run(*arguments, "--pretokenizer=qwen2")
    assert result.returncode == 0, result.stderr
    assert "tiktoken tokenizer of 257 ids, end of text: none" in result.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["status"], report["format"], report["merges"]) == ("OK", "tiktoken", 1)
