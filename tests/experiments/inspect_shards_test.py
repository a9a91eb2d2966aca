"""The program inspect_shards: figures of a window, in words and in the report."""

import json
import re
import subprocess
import sys

import numpy as np

from apr_jax.text.corpus import CorpusConfig, encode_corpus
from apr_jax.text.hex_format import write_hex
from apr_jax.text.trainer import train_bpe


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.inspect_shards", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_window_of_the_original_s_shards(tmp_path):
    ids = np.array([5, 5, 6, 7, 8, 8, 8, 8], "<u4")
    ids[:5].tofile(tmp_path / "shard-00000.bin")
    ids[5:].tofile(tmp_path / "shard-00001.bin")
    result = run(f"--shards={tmp_path}", "--start=2", "--tokens=4", f"--out={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    assert "hashes: not compared, --verify does" in result.stdout
    assert "8 tokens" in result.stdout and "entropy_bits: 1.5000" in result.stdout
    assert "unk_fraction: unknown" in result.stdout
    window = json.loads((tmp_path / "out" / "report.json").read_text())["window"]
    assert (window["distinct_tokens"], window["entropy_ceiling_bits"]) == (3, 2.0)
    result = run(f"--shards={tmp_path}", "--start=8")
    assert result.returncode == 2
    assert "the window 8:8 is not inside its 8 tokens" in result.stderr
    assert "hashes: there are none" in run(f"--shards={tmp_path}", "--verify").stdout


def test_a_changed_byte_is_found(tmp_path):
    write_hex(tmp_path / "hex", train_bpe(["hello world hello"], 270, 1).vocabulary)
    (tmp_path / "corpus.txt").write_text("hello world " * 100)
    out = tmp_path / "out"
    encode_corpus(
        CorpusConfig((str(tmp_path / "corpus.txt"),), str(tmp_path / "hex"), out=str(out))
    )
    result = run(f"--shards={out}", "--verify")
    assert result.returncode == 0 and "hashes: all as in the manifest" in result.stdout
    data = bytearray((out / "shard-00000.bin").read_bytes())
    data[40] ^= 1
    (out / "shard-00000.bin").write_bytes(data)
    assert run(f"--shards={out}").returncode == 0
    result = run(f"--shards={out}", "--verify")
    assert result.returncode == 2
    assert "shard-00000.bin: its bytes do not hash to what manifest.json says" in result.stderr
    data[42] = 4
    (out / "shard-00000.bin").write_bytes(data)
    result = run(f"--shards={out}")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert re.search(
        r"^error: .*shard-00000\.bin: id \d+ at position 10 is not below vocab_size, .* \d+", line
    )
