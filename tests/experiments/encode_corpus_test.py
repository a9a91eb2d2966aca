"""The program encode_corpus: the report that other tools read, exit codes, running again."""

import json
import subprocess
import sys

import pytest

from apr_jax.text.alphabet import SYMBOLS
from apr_jax.text.batches import Shards
from apr_jax.text.hex_format import write_hex
from apr_jax.text.trainer import train_bpe

TEXTS = [f"hello world {number}\n" * 3 for number in range(40)]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.encode_corpus", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def arguments(tmp_path):
    write_hex(tmp_path / "tokenizer", train_bpe(TEXTS, 280).vocabulary)
    for part in ("a", "b"):
        (tmp_path / f"{part}.jsonl").write_text(
            "\n".join(json.dumps({"content": part + text}) for text in TEXTS)
        )
    return [
        f"--input={tmp_path / 'a.jsonl'}",
        f"--input={tmp_path / 'b.jsonl'}",
        f"--tokenizer={tmp_path / 'tokenizer'}",
        f"--out={tmp_path / 'train'}",
        f"--val_out={tmp_path / 'val'}",
        "--val_fraction=0.2",
        "--shard_tokens=300",
    ]


def test_both_sides_are_reported_and_a_second_run_changes_nothing(tmp_path, arguments):
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "train" / "report.json").read_text())
    train, val = Shards(tmp_path / "train"), Shards(tmp_path / "val")
    assert report["tokens"] == train.num_tokens
    assert report["val"]["tokens"] == val.num_tokens
    assert report["documents"] + report["val"]["documents"] == 80
    assert report["shards"] > 1
    assert {"unk_fraction", "entropy_bits", "distinct_tokens", "bytes_per_token"} <= report.keys()
    assert f"{train.num_tokens:,} tokens of {report['documents']} documents" in result.stdout
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    assert run(*arguments).returncode == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shard_tokens=400"], "holds shards of other settings"),
        (["--shard_tokens=0"], "--shard_tokens"),
        (["--eos_policy=before"], "--eos_policy"),
        (["--shards=3"], "shards"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_two(arguments, extra, message):
    run(*arguments)
    result = run(*arguments, *extra)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_ids_of_an_older_encoder_are_announced_as_such(tmp_path, arguments):
    ids = {symbol: id_ for id_, symbol in enumerate(SYMBOLS)} | {"</s>": 256}
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "pair" / "merges.txt").write_text("")
    arguments[2] = f"--tokenizer={tmp_path / 'pair'}"
    result = run(*arguments, "--compat=aprender-1598", "--workers=2")
    assert result.returncode == 0, result.stderr
    assert "these are not the model's ids" in result.stderr
    assert "WARNING: compat=aprender-1598" in result.stdout
    assert json.loads((tmp_path / "train" / "report.json").read_text())["compat"]
