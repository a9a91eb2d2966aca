"""Whole runs: their reports, their gates, and what a kill leaves."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from apr_jax.codec import open_apr, write_apr
from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.files import WriteError
from apr_jax.model import load_model
from apr_jax.train import TrainConfig, TrainError, loop, prepare, train
from apr_jax.train.parallel import DataParallel
from apr_jax.train.records import read_records
from tests.train.fixtures import TINY, write_model, write_shards


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "init": str(write_model(folder / "init.apr")),
        "shards": str(write_shards(folder / "train", 20_000, seed=0)),
        "val_shards": str(write_shards(folder / "val", 3_000, seed=1)),
    }


def _config(inputs, out, **changes):
    settings = dict(
        mode="from_scratch",
        steps=12,
        batch_size=4,
        seq_length=16,
        lr=1e-2,
        warmup_steps=2,
        eval_every=4,
        save_every=3,
        val_tokens=1_000,
    )
    return TrainConfig(out=str(out), **inputs, **(settings | changes))


def _parameters(out):
    with open_apr(pathlib.Path(out) / "model.apr") as file:
        return {name: bytes(file.raw(name)) for name in file.names}


def _losses(out):
    """The records without what depends on the clock."""
    timed = ("tokens_per_sec", "wall_ms", "compiled")
    return [
        {key: value for key, value in record.items() if key not in timed}
        for record in read_records(pathlib.Path(out) / "records.jsonl")
    ]


def test_report_is_what_ran(inputs, tmp_path):
    config = _config(inputs, tmp_path / "run")
    report = train(config)
    assert report["status"] == "OK", report["verdict"]
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    assert report["val_loss"] < report["initial_val_loss"] < report["uniform_loss"] * 1.1
    np.testing.assert_allclose(report["uniform_loss"], np.log(TINY.vocab_size))
    assert {gate["id"] for gate in report["gates"]} == {
        "BELOW-UNIFORM",
        "HELD-OUT",
        "GATE-TRAIN-004",
        "GATE-TRAIN-005",
        "GATE-TRAIN-007",
        "RELOAD",
        "VAL-LOSS-FLOOR",
    }
    assert {gate["id"] for gate in report["gates_not_asked"]} == {
        "GATE-TRAIN-003",
        "INIT-VAL-LOSS",
        "TOKENIZER",
    }
    records = _losses(tmp_path / "run")
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(1, 13))
    assert [r["step"] for r in records if r["kind"] == "eval"] == [0, 4, 8, 12]
    assert records[-1]["val_loss"] == report["val_loss"]
    steps = [r for r in read_records(tmp_path / "run" / "records.jsonl") if r["kind"] == "step"]
    assert [r["compiled"] for r in steps] == [True] + [False] * 11
    rate = sum(r["tokens"] for r in steps[1:]) / sum(r["wall_ms"] / 1e3 for r in steps[1:])
    np.testing.assert_allclose(report["tokens_per_second"], rate)
    np.testing.assert_allclose(report["first_step_seconds"], steps[0]["wall_ms"] / 1e3)
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_written_model_has_the_inits_dtypes_and_what_was_learnt(inputs, tmp_path):
    config = _config(inputs, tmp_path / "run", save_dtype="bfloat16")
    report = train(config)
    reload = next(gate for gate in report["gates"] if gate["id"] == "RELOAD")
    assert 0 < reload["value"] <= 0.01, "bfloat16 rounds, so the reloaded loss differs a little"
    with open_apr(tmp_path / "run" / "model.apr", strict=True) as file:
        assert {file.info(name).dtype for name in file.names} == {"BF16"}
        assert "lm_head.weight" not in file.names
        assert file.metadata["tied_embeddings"] is True
        assert file.metadata["rope_theta"] == TINY.rope_theta
    model, _ = load_model(tmp_path / "run" / "model.apr")
    assert model.config == TINY


def test_resume_equals_an_uninterrupted_run(inputs, tmp_path, monkeypatch):
    train(_config(inputs, tmp_path / "whole"))

    class Killed(BaseException):
        pass

    account = loop._Run._account

    def die_at_eight(self, step, metrics, bar):
        account(self, step, metrics, bar)
        if step == 8:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop._Run, "_account", die_at_eight)
        train(_config(inputs, tmp_path / "cut"))
    assert not (tmp_path / "cut" / "model.apr").exists()
    report = train(_config(inputs, tmp_path / "cut"))
    assert report["status"] == "OK"
    assert _parameters(tmp_path / "cut") == _parameters(tmp_path / "whole")
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")


_RUN = """
import json, sys
from apr_jax.train import TrainConfig, train
train(TrainConfig(**json.loads(sys.argv[1])))
"""


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(inputs, tmp_path):
    changes = {"steps": 400, "save_every": 20, "eval_every": 200}
    whole = train(_config(inputs, tmp_path / "whole", **changes))
    config = json.dumps(_config(inputs, tmp_path / "killed", **changes).to_json())
    command = [sys.executable, "-c", _RUN, config]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 60
    while not (checkpoints / "20").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads((tmp_path / "killed" / "report.json").read_text())
    assert report["val_loss"] == whole["val_loss"]
    assert _parameters(tmp_path / "killed") == _parameters(tmp_path / "whole")
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")


def test_another_run_in_the_folder_is_refused(inputs, tmp_path):
    train(_config(inputs, tmp_path / "run", steps=3))
    with pytest.raises(TrainError, match=r"weight_decay=0.01 lives here, this one has 0.02"):
        train(_config(inputs, tmp_path / "run", steps=3, weight_decay=2e-2))


def test_a_resumed_run_must_have_the_same_inputs(inputs, tmp_path):
    """The same paths with another content are another run."""
    shards = shutil.copytree(inputs["shards"], tmp_path / "train")
    mine = inputs | {"shards": str(shards)}
    train(_config(mine, tmp_path / "run", steps=3))
    ids = np.fromfile(shards / "shard-00001.bin", "<u4")
    ids[:2] = ids[1::-1]
    ids.tofile(shards / "shard-00001.bin")
    with pytest.raises(TrainError, match="a run with shards_sha256="):
        train(_config(mine, tmp_path / "run", steps=3))


def test_a_model_changed_in_its_middle_is_another(tmp_path):
    values = np.zeros(1_000_000, np.float32)
    for number in range(2):
        values[500_000] = number
        write_apr(tmp_path / f"{number}.apr", {"w": values}, TINY.to_apr())
    assert prepare._fingerprint(tmp_path / "0.apr") != prepare._fingerprint(tmp_path / "1.apr")


def test_a_finished_run_started_again_answers_the_same(inputs, tmp_path):
    first = train(_config(inputs, tmp_path / "run"))
    again = train(_config(inputs, tmp_path / "run"))
    for key in ("status", "verdict", "val_loss", "steps", "tokens_per_second", "model"):
        assert again[key] == first[key], key
    by_id = {gate["id"]: gate for gate in first["gates"]}
    assert {gate["id"]: gate for gate in again["gates"]} == by_id


def test_the_model_that_a_run_starts_from_is_never_overwritten(inputs, tmp_path):
    init = shutil.copy(inputs["init"], tmp_path / "model.apr")
    before = (tmp_path / "model.apr").read_bytes()
    with pytest.raises(TrainError, match="the model that the run starts from lies there"):
        train(_config(inputs | {"init": str(init)}, tmp_path))
    assert (tmp_path / "model.apr").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model.apr"}


def test_a_dtype_that_cannot_hold_the_parameters_leaves_no_file(inputs, tmp_path, monkeypatch):
    def grown(tree):
        named = dict(to_named(tree))
        return named | {"model.norm.weight": named["model.norm.weight"] + 1e6}

    to_named = loop.to_named
    monkeypatch.setattr(loop, "to_named", grown)
    with pytest.raises(TrainError, match=r"model\.norm\.weight has values beyond float16"):
        train(_config(inputs, tmp_path / "run", steps=3, save_dtype="float16"))
    assert not (tmp_path / "run" / "model.apr").exists()


def test_a_run_that_was_refused_does_not_claim_its_folder(inputs, tmp_path):
    refused = _config(inputs, tmp_path / "run", mode="finetune", max_initial_val_loss=1.0)
    assert train(refused)["status"] == "REFUSED"
    assert train(_config(inputs, tmp_path / "run", steps=3))["status"] == "OK"


def test_the_step_is_traced_once(inputs, tmp_path, monkeypatch):
    traced = []

    def counted(*args, **kwargs):
        traced.append(1)
        return step(*args, **kwargs)

    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", counted)
    train(_config(inputs, tmp_path / "run"))
    assert len(traced) == 1


def test_pmap_and_jit_do_the_same(inputs, tmp_path):
    for mode in ("pmap", "jit"):
        train(_config(inputs, tmp_path / mode, parallel=mode))
    assert _losses(tmp_path / "pmap") == _losses(tmp_path / "jit")


# Every gate fires ------------------------------------------------------------------------------


def _gate(report, gate_id):
    (gate,) = (gate for gate in report["gates"] if gate["id"] == gate_id)
    return gate


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_leaf(inputs, tmp_path):
    config = _config(inputs, tmp_path / "run", lr=1e30, clip=0.0, warmup_steps=0)
    report = train(config)
    assert report["status"] == "ABORTED"
    assert "step 2: " in report["verdict"] and "is not finite" in report["verdict"]
    assert not _gate(report, "GATE-TRAIN-007")["passed"]
    assert report["model"] is None


def test_a_held_out_loss_that_is_not_finite_is_reported(inputs, tmp_path):
    config = _config(inputs, tmp_path / "run", lr=1e30, clip=0.0, warmup_steps=0, eval_every=1)
    report = train(config)
    assert (report["status"], report["steps"], report["val_loss"]) == ("ABORTED", 1, None)
    assert "divergence at step 1" in report["verdict"]
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
    assert _losses(tmp_path / "run")[-1]["val_loss"] is None


def test_a_start_that_is_not_finite_is_refused(inputs, tmp_path):
    with open_apr(inputs["init"]) as file:
        tensors = {name: np.array(file.read(name)) for name in file.names}
        metadata = file.metadata
    tensors["model.norm.weight"][:] = 1e38
    write_apr(tmp_path / "loud.apr", tensors, metadata)
    loud = inputs | {"init": str(tmp_path / "loud.apr")}
    report = train(_config(loud, tmp_path / "run", mode="finetune"))
    assert (report["status"], report["initial_val_loss"]) == ("REFUSED", None)
    assert "logits that overflow" in report["verdict"]


def test_a_cap_below_what_is_healthy_says_so(inputs, tmp_path):
    config = _config(inputs, tmp_path / "run", max_initial_val_loss=0.1)
    assert "the cap is 0.1" in train(config)["verdict"]


def test_divergence_stops_the_run(inputs, tmp_path):
    config = _config(inputs, tmp_path / "run", max_first_val_loss=1.0)
    report = train(config)
    assert (report["status"], report["steps"]) == ("ABORTED", 4)
    assert "divergence at step 4" in report["verdict"]
    assert not _gate(report, "GATE-TRAIN-005")["passed"]
    assert report["model"] is None


def test_a_doubled_loss_is_divergence(inputs, tmp_path):
    report = train(_config(inputs, tmp_path / "run", lr=10.0, warmup_steps=0))
    assert report["status"] == "ABORTED" and "divergence" in report["verdict"]
    gate = _gate(report, "GATE-TRAIN-005")
    assert gate["value"] is None or gate["value"] > gate["threshold"]


def test_a_broken_init_is_refused_before_the_first_step(inputs, tmp_path):
    config = _config(inputs, tmp_path / "run", mode="finetune", max_initial_val_loss=4.0)
    report = train(config)
    assert (report["status"], report["steps"]) == ("REFUSED", 0)
    assert "flat logits" in report["verdict"]
    assert not _gate(report, "INIT-VAL-LOSS")["passed"]


def test_leaked_documents_are_refused(inputs, tmp_path):
    leaky = write_shards(tmp_path / "leaky", 1_000, seed=0)  # the first documents of training
    report = train(_config(inputs | {"val_shards": str(leaky)}, tmp_path / "run"))
    assert (report["status"], report["steps"]) == ("REFUSED", 0)
    assert _gate(report, "HELD-OUT")["value"] > 10


def test_the_same_shards_are_refused_even_without_documents(inputs, tmp_path):
    """Without an EOS documents cannot be compared, but files can."""
    copies = {}
    for name in ("shards", "val_shards"):
        copies[name] = str(shutil.copytree(inputs["shards"], tmp_path / name))
        (tmp_path / name / "manifest.json").unlink()
    report = train(_config(inputs | copies, tmp_path / "run"))
    assert (report["status"], report["steps"]) == ("REFUSED", 0)
    assert "2 shards of" in report["verdict"]


def test_a_missed_target_is_not_ok(inputs, tmp_path):
    report = train(_config(inputs, tmp_path / "run", target_val_loss=1.0))
    assert report["status"] == "MISSED" and "GATE-TRAIN-003" in report["verdict"]
    assert report["model"] == "model.apr"


def test_too_good_to_be_true_is_not_ok(inputs, tmp_path):
    report = train(_config(inputs, tmp_path / "run", min_val_loss=4.5))
    assert report["status"] == "MISSED" and "VAL-LOSS-FLOOR" in report["verdict"]


@pytest.mark.parametrize("in_training", [True, False])
def test_too_little_memory_is_one_line(inputs, tmp_path, monkeypatch, in_training):
    def exhausted(self, function, *, donate):
        def step(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

        return step if donate == in_training else compile_step(self, function, donate=donate)

    compile_step = DataParallel.compile
    monkeypatch.setattr(DataParallel, "compile", exhausted)
    with pytest.raises(TrainError, match=r"lower batch_size \(4\) or raise accumulate \(1\)"):
        train(_config(inputs, tmp_path / "run"))


# What is refused ---------------------------------------------------------------------------------


def test_the_same_folder_twice_is_refused(inputs, tmp_path):
    with pytest.raises(TrainError, match="the same folder"):
        train(_config(inputs | {"val_shards": inputs["shards"]}, tmp_path / "run"))


def test_ids_beyond_the_model_are_refused(inputs, tmp_path):
    small: Qwen2Config = dataclasses.replace(TINY, vocab_size=50)
    init = write_model(tmp_path / "small.apr", small)
    with pytest.raises(Exception, match="beyond the model's 50 rows"):
        train(_config(inputs | {"init": str(init)}, tmp_path / "run"))


def test_parameters_that_are_not_finite_are_refused(inputs, tmp_path):
    with open_apr(inputs["init"]) as file:
        tensors = {name: np.array(file.read(name)) for name in file.names}
        metadata = file.metadata
    tensors["model.norm.weight"][3] = np.nan
    write_apr(tmp_path / "nan.apr", tensors, metadata)
    with pytest.raises(Exception, match=r"model\.norm\.weight has 1 of 32 values"):
        train(_config(inputs | {"init": str(tmp_path / "nan.apr")}, tmp_path / "run"))


def test_more_positions_than_the_model_has_are_refused(inputs, tmp_path):
    with pytest.raises(TrainError, match=r"seq_length=65 is beyond the 64 positions"):
        train(_config(inputs, tmp_path / "run", seq_length=65))


def test_a_damaged_checkpoint_is_one_line_that_names_it(inputs, tmp_path):
    train(_config(inputs, tmp_path / "run"))
    newest = tmp_path / "run" / "checkpoints" / "12"
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:3])
    with pytest.raises(TrainError, match=r"checkpoints/12: the checkpoint is damaged or"):
        train(_config(inputs, tmp_path / "run"))
    shutil.rmtree(newest)
    assert train(_config(inputs, tmp_path / "run"))["status"] == "OK"


@pytest.mark.parametrize("part", ["state", "found"])
def test_a_changed_bit_in_a_checkpoint_is_found(inputs, tmp_path, part):
    train(_config(inputs, tmp_path / "run"))
    files = (tmp_path / "run" / "checkpoints" / "12" / part).rglob("*")
    file = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    # In a parameter, or in a digit of a loss, which is JSON after it as before.
    place = len(data) // 2 if part == "state" else data.index(b'"loss": ') + len(b'"loss": ')
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(TrainError, match=r"checkpoints/12: the checkpoint is damaged"):
        train(_config(inputs, tmp_path / "run"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Exception("Encountered error while reading array index"), "12: the checkpoint is damaged"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), "memory is too small"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_not_damaged(
    inputs, tmp_path, monkeypatch, error, message
):
    def fail(*_, **__):
        raise error

    train(_config(inputs, tmp_path / "run"))
    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    with pytest.raises(TrainError, match=message):
        train(_config(inputs, tmp_path / "run"))


@pytest.mark.parametrize(
    "line", [b"", b"5", b"\xff", b"\0", b'{"kind": "step", "step": 1}', b"[" * 9999]
)
def test_what_is_no_record_is_one_line(tmp_path, line):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"kind": "eval", "step": 0, "val_loss": 1.5}\n' + line + b"\n")
    with pytest.raises(TrainError, match=r"records.jsonl:2: is no record of a run: remove"):
        list(read_records(path))


def test_the_first_setting_that_differs_is_told(inputs, tmp_path):
    train(_config(inputs, tmp_path / "run"))
    with pytest.raises(TrainError, match=r"a run with lr=0.01 lives here, this one has 0.02"):
        train(_config(inputs, tmp_path / "run", lr=2e-2))  # which changes lr_min as well


def test_a_full_disk_is_one_line(inputs, tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(WriteError, match="the checkpoint of step 3 cannot be written"):
        train(_config(inputs, tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"clip": float("inf")}, "clip=inf"),
        ({"batch_size": 6, "accumulate": 4}, "does not divide"),
        ({"warmup_steps": 12}, "leaves nothing"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"lr_min": 1.0}, "lr_min=1.0"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"beta2": 1.0}, "beta2=1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(inputs, tmp_path, changes, message):
    with pytest.raises(TrainError, match=message):
        _config(inputs, tmp_path, **changes)
