"""What every program does alike: help, one line and exit 2 for a user's mistake."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.train.fixtures import write_model, write_shards

ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAMS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if path.stem not in ("__init__", "program")
)


def run(program, *flags, before=()):
    return subprocess.run(
        [*before, sys.executable, "-m", f"experiments.{program}", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def assert_refused(result, message):
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "init.apr")
    write_shards(folder / "train", 5_000, seed=0)
    write_shards(folder / "val", 500, seed=1)
    (folder / "short.apr").write_bytes((folder / "init.apr").read_bytes()[:900])
    return folder


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_misspelt_flags(program):
    shown = run(program, "--help")
    assert shown.returncode == 0 and "--" in shown.stdout
    assert_refused(run(program, "--bogus=1"), "bogus")


def test_missing_flags_are_listed():
    assert_refused(run("finetune"), "--init, --shards, --val_shards, --out, --steps must be given")


def test_an_empty_value_is_not_the_current_folder(tmp_path):
    flags = ["--input=nowhere", "--tokenizer=nowhere", f"--out={tmp_path}"]
    for name in ("input", "out", "val_out"):
        refused = run("encode_corpus", *flags, f"--{name}=")
        assert_refused(refused, f"--{name} is empty: give a value")


def test_a_value_without_its_flag():
    assert_refused(run("inspect_apr", "--apr=x", "y"), "unexpected argument 'y'")


def _finetune(inputs, tmp_path, *, before=(), **flags):
    flags = {
        "init": inputs / "init.apr",
        "shards": inputs / "train",
        "val_shards": inputs / "val",
        "out": tmp_path / "run",
        "steps": 20,
        "lr": 1e-2,
        "seq_length": 32,
        "batch_size": 4,
        "mode": "from_scratch",
    } | flags
    flags = [f"--{name}={value}" for name, value in flags.items()]
    return run("finetune", *flags, before=before)


def test_a_disk_that_takes_no_checkpoint_is_told_once(inputs, tmp_path):
    limit = ("sh", "-c", 'ulimit -f 80; exec "$0" "$@"')  # blocks, of each file
    result = _finetune(inputs, tmp_path, save_every=2, before=limit)
    assert result.returncode == 2
    assert "the checkpoint of step 2 cannot be written (File too large); make" in result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("File too large") == 1


def test_finetune_tells_how_it_ended(inputs, tmp_path):
    result = _finetune(inputs, tmp_path, target_val_loss=99)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["status"] == "OK"
    assert f"{report['val_loss']:.4f} nats per token" in result.stdout
    assert "orbax" not in result.stderr.lower()


def test_finetune_exits_1_when_a_gate_does_not_pass(inputs, tmp_path):
    result = _finetune(inputs, tmp_path, target_val_loss=0.5)
    assert result.returncode == 1
    assert "MISSED: GATE-TRAIN-003" in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"init": "nowhere.apr"}, "nowhere.apr: cannot be read"),
        ({"shards": "nowhere"}, "nowhere: no such folder"),
        ({"steps": 0}, "steps=0"),
        ({"steps": "many"}, "--steps=many"),
        ({"batch_size": 3, "accumulate": 2}, "batch_size=3 does not divide"),
        ({"attention": "pallas"}, "attention='pallas' needs a CUDA GPU"),
        ({"attention": "cudnn"}, "attention='cudnn' needs a CUDA GPU"),
        ({"loss_impl": "pallas"}, "loss_impl='pallas' needs a GPU of the Hopper generation"),
        ({"mask_documents": "true", "seq_length": 0}, "seq_length=0"),
    ],
)
def test_finetune_refuses_in_one_line(inputs, tmp_path, flags, message):
    assert_refused(_finetune(inputs, tmp_path, **flags), message)
    assert not (tmp_path / "run" / "model.apr").exists()


def test_a_truncated_model_is_refused_by_every_reader(inputs, tmp_path):
    short = inputs / "short.apr"
    assert_refused(_finetune(inputs, tmp_path, init=short), "short.apr")
    out = tmp_path / "out"
    assert_refused(
        run("evaluate", f"--apr={short}", f"--shards={inputs / 'val'}", f"--out={out}"), "short.apr"
    )
    assert_refused(
        run("crosscheck", f"--apr={short}", f"--reference={inputs / 'init.apr'}", f"--out={out}"),
        "short.apr",
    )


def test_evaluate_gives_the_loss_that_finetune_started_from(inputs, tmp_path):
    _finetune(inputs, tmp_path, target_val_loss=99)
    result = run(
        "evaluate",
        f"--apr={inputs / 'init.apr'}",
        f"--shards={inputs / 'val'}",
        f"--out={tmp_path / 'eval'}",
        "--seq_length=32",
        "--batch_size=4",
    )
    found = json.loads((tmp_path / "eval" / "report.json").read_text())
    before = json.loads((tmp_path / "run" / "report.json").read_text())
    assert found["val_loss"] == pytest.approx(before["initial_val_loss"], abs=1e-9)
    assert found["val_tokens"] == 499
    assert result.returncode == (0 if found["val_loss"] < found["uniform_loss"] else 1)


def test_the_report_of_another_program_is_kept(inputs, tmp_path):
    (tmp_path / "report.json").write_text('{"val_loss": 3}')
    for _ in range(2):
        shown = run("inspect_apr", f"--apr={inputs / 'init.apr'}", f"--out={tmp_path}")
        assert shown.returncode == 0 and "report.json is of another program" in shown.stderr
    assert (tmp_path / "report.json").read_text() == '{"val_loss": 3}'
    assert json.loads((tmp_path / "inspect_apr.report.json").read_text())["status"] == "OK"


def test_crosscheck_exits_1_for_another_model(inputs, tmp_path):
    write_model(tmp_path / "other.apr", seed=5)
    flags = [f"--reference={inputs / 'init.apr'}", f"--out={tmp_path}"]
    same = run("crosscheck", f"--apr={inputs / 'init.apr'}", *flags)
    assert same.returncode == 0 and "the same model" in same.stdout
    other = run("crosscheck", f"--apr={tmp_path / 'other.apr'}", *flags)
    assert other.returncode == 1 and "another model" in other.stdout
    assert json.loads((tmp_path / "report.json").read_text())["faults"]
