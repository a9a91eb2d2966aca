"""One device, four virtual devices, pmap and jit: the same losses."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.train.fixtures import write_model, write_shards

_RUN = """
import json, sys
import jax
arguments = json.loads(sys.argv[1])
jax.config.update("jax_num_cpu_devices", arguments.pop("devices"))
from apr_jax.train import TrainConfig, train
train(TrainConfig(**arguments))
"""


def _losses(folder, devices, mode, **changes):
    out = folder / f"{mode}-{devices}"
    arguments = dict(
        init=str(folder / "init.apr"),
        shards=str(folder / "train"),
        val_shards=str(folder / "val"),
        out=str(out),
        mode="from_scratch",
        devices=devices,
        parallel=mode,
        steps=6,
        batch_size=8,
        accumulate=2,
        seq_length=16,
        lr=3e-3,
        eval_every=3,
        # The last held-out batch is padded, and the padding lies on some devices only.
        val_tokens=0,
    )
    subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(arguments | changes)],
        check=True,
        capture_output=True,
        text=True,
    )
    records = map(json.loads, (out / "records.jsonl").read_text().splitlines())
    return [record.get("train_loss", record.get("val_loss")) for record in records]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    write_model(folder / "init.apr")
    # Short, so that the padded last window comes in many batches: on one device, not on the others.
    write_shards(folder / "train", 210, seed=0)
    write_shards(folder / "val", 777, seed=1)
    return folder


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one(folder):
    one = _losses(folder, 1, "pmap")
    assert len(one) == 6 + 3
    for mode in ("pmap", "jit"):
        np.testing.assert_allclose(_losses(folder, 4, mode), one, rtol=2e-5, err_msg=mode)


def test_a_batch_that_does_not_divide_is_refused(folder):
    with pytest.raises(subprocess.CalledProcessError) as error:
        _losses(folder, 3, "pmap")
    assert "batch_size / accumulate=4 does not divide among 3 devices" in error.value.stderr
