"""Which windows come in which step."""

import collections

import numpy as np
import pytest

from apr_jax.text.batches import Shards, Windows
from apr_jax.text.corpus import CorpusConfig, encode_corpus
from apr_jax.text.hex_format import write_hex
from apr_jax.text.manifest import ShardError
from apr_jax.text.trainer import train_bpe
from apr_jax.train import TrainConfig
from apr_jax.train.data import EvalBatches, TrainBatches, open_data
from tests.train.fixtures import EOS, write_shards

SETTINGS = dict(init="i", shards="s", val_shards="v", out="o", steps=100)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return Shards(write_shards(tmp_path_factory.mktemp("data") / "train", 1_000, seed=0))


def _rows(batches, steps):
    for step in range(steps):
        batch = batches.batch(step)
        yield from batch["ids_BT"].reshape(-1, batch["ids_BT"].shape[-1])


def test_an_epoch_has_every_window_once_and_the_next_has_another_order(shards):
    config = TrainConfig(**SETTINGS, batch_size=6, accumulate=2, seq_length=16)
    windows = Windows(shards, 16)
    assert len(windows) == 63 and len(windows) % 6, "epochs end inside a batch"
    rows = [row.tobytes() for row in _rows(TrainBatches(shards, config), 21)]
    everything = windows.batch(range(63))["ids_BT"]
    wanted = collections.Counter(row.tobytes() for row in everything)
    assert collections.Counter(rows[:63]) == wanted == collections.Counter(rows[63:126])
    assert rows[:63] != rows[63:126]


def test_a_batch_depends_on_the_step_alone(shards):
    config = TrainConfig(**SETTINGS, batch_size=6, seq_length=16)
    through = TrainBatches(shards, config)
    for step in range(25):
        last = through.batch(step)
    alone = TrainBatches(shards, config).batch(24)
    assert all(np.array_equal(last[name], alone[name]) for name in last)
    assert alone["ids_BT"].shape == (1, 6, 16)


def test_a_tiny_corpus_fills_a_batch_from_several_epochs(shards):
    config = TrainConfig(**SETTINGS, batch_size=8, seq_length=500)
    rows = list(_rows(TrainBatches(shards, config), 2))
    assert len({row.tobytes() for row in rows}) == 2


def test_the_seed_decides_the_order(shards):
    first, second = (
        TrainBatches(shards, TrainConfig(**SETTINGS, seq_length=16, seed=seed)).batch(0)
        for seed in (1, 2)
    )
    assert not np.array_equal(first["ids_BT"], second["ids_BT"])


def test_masked_documents_start_behind_an_eos(shards):
    config = TrainConfig(**SETTINGS, batch_size=4, seq_length=64, mask_documents=True)
    batch = TrainBatches(shards, config).batch(0)
    ids, starts = batch["ids_BT"][0], batch["segment_start_BT"][0]
    inside = starts[starts > 0]
    assert inside.size
    assert (np.take_along_axis(ids, starts - 1, -1)[starts > 0] == EOS).all()


def test_held_out_batches_are_filled_up_without_weight(shards):
    batches = EvalBatches(shards, seq_length=16, batch_size=8, tokens=0, eos_id=None)
    assert len(batches) == 8
    weights = [batches[index]["weights_BT"] for index in range(8)]
    assert sum(w.sum() for w in weights) == 999
    assert all(w.shape == (8, 16) for w in weights)
    with pytest.raises(IndexError):
        batches[8]


@pytest.mark.parametrize("side", ["train", "val"])
def test_shards_that_have_changed_are_refused(tmp_path, side):
    write_hex(tmp_path / "hex", train_bpe(["hello world hello"], 270, 1).vocabulary)
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text(name)
        inputs, out = (str(tmp_path / f"{name}.txt"),), str(tmp_path / name)
        encode_corpus(CorpusConfig(inputs, str(tmp_path / "hex"), out))
    folders = {"shards": str(tmp_path / "train"), "val_shards": str(tmp_path / "val")}
    config = TrainConfig(**SETTINGS | folders)
    open_data(config)
    path = tmp_path / side / "shard-00000.bin"
    path.write_bytes(path.read_bytes()[:-4] + b"\7\0\0\0")
    with pytest.raises(ShardError, match=rf"{side}/shard-00000\.bin: its bytes do not hash to"):
        open_data(config)
