"""The program exports, reports, and says in one line what is wrong with its input."""

import json
import subprocess
import sys

from apr_jax.codec import open_checkpoint, write_apr
from tests.codec import small


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.export_checkpoint", *arguments],
        capture_output=True,
        text=True,
    )


def test_export_twice(tmp_path):
    write_apr(tmp_path / "a.apr", small.tensors(), small.config().to_apr())
    for _ in range(2):
        done = program(f"--apr={tmp_path / 'a.apr'}", f"--out={tmp_path / 'out'}")
        assert done.returncode == 0, done.stderr
    assert "26 tensors, equal to what the .apr file holds" in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["status"] == "OK" and report["files"] == ["config.json", "model.safetensors"]
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.config == small.config()


def test_quantised_tensors_are_written_in_a_type_of_choice(tmp_path):
    values = small.finite_tensors()
    types = {"model.embed_tokens.weight": "Q8"}
    write_apr(tmp_path / "a.apr", values, small.config().to_apr(), dtypes=types)
    done = program(f"--apr={tmp_path / 'a.apr'}", f"--out={tmp_path / 'out'}", "--dtype=float16")
    assert done.returncode == 0, done.stderr
    assert "26 tensors, 1 decoded from quantised types, 26 cast to float16 with" in done.stdout
    assert "equal" not in done.stdout
    worst = max(
        json.loads((tmp_path / "out/report.json").read_text())["cast"].items(), key=lambda i: i[1]
    )
    assert worst[1] > 0 and f"{worst[1]:.2g} ({worst[0]})" in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["decoded"] == list(types) and report["dtype"] == "float16"
    done = program(f"--apr={tmp_path / 'a.apr'}", f"--out={tmp_path / 'out'}", "--dtype=int8")
    assert done.returncode == 2 and "--dtype" in done.stderr


def test_shards_of_a_size(tmp_path):
    write_apr(tmp_path / "a.apr", small.tensors(), small.config().to_apr())
    arguments = (f"--apr={tmp_path / 'a.apr'}", f"--out={tmp_path / 'out'}")
    assert program(*arguments, "--shard_size=1.5KB").returncode == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2
    for size in ("0", "5 parsecs", "9" * 400):
        done = program(*arguments, f"--shard_size={size}")
        assert done.returncode == 2 and f"--shard_size={size!r} is no size" in done.stderr


def test_the_report_of_another_program_stays(tmp_path):
    write_apr(tmp_path / "a.apr", small.tensors(), small.config().to_apr())
    (tmp_path / "report.json").write_text('{"val_loss": 3}')
    done = program(f"--apr={tmp_path / 'a.apr'}", f"--out={tmp_path / 'a.gguf'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.json").read_text() == '{"val_loss": 3}'
    assert json.loads((tmp_path / "a.gguf.report.json").read_text())["status"] == "OK"


def test_an_odd_file_is_refused_unless_asked_for(tmp_path):
    write_apr(tmp_path / "a.apr", small.tensors(), small.config().to_apr())
    data = (tmp_path / "a.apr").read_bytes()
    (tmp_path / "a.apr").write_bytes(data[:-4])
    arguments = (f"--apr={tmp_path / 'a.apr'}", f"--out={tmp_path / 'out'}")
    done = program(*arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "no CRC32 at its end" in done.stderr and "--nostrict" in done.stderr
    assert not (tmp_path / "out").exists()
    done = program(*arguments, "--nostrict")
    assert done.returncode == 0 and "odd: " in done.stdout
