"""Shards read back: nothing missing, nothing twice, nothing that the manifest does not know."""

import json
import os
import pathlib
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.text import manifest as manifest_lib
from apr_jax.text.batches import Shards, Windows, document_overlap, epoch_order, segment_start
from apr_jax.text.manifest import ShardError
from apr_jax.text.statistics import statistics

EOS = 9


def write_shards(folder, parts, *, eos_id=EOS, with_manifest=True, vocab_size=10):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, ids in enumerate(parts):
        path = folder / manifest_lib.shard_name(number)
        path.write_bytes(np.asarray(ids, "<u4").tobytes())
        digests = {"sha256": "0" * 64, "documents_sha256": "0" * 64, "documents": 1, "bytes": 1}
        entries.append({"name": path.name, "tokens": len(ids), **digests})
    if with_manifest:
        manifest = {
            "schema": manifest_lib.SCHEMA,
            "tokenizer_sha256": "0" * 64,
            "vocab_size": vocab_size,
            "normalization": "nfc",
            "eos_policy": "after",
            "eos_id": eos_id,
            "shard_tokens": 4,
            "content_field": "content",
            "split": None,
            "tokens": sum(len(ids) for ids in parts),
            "shards": entries,
        }
        manifest["settings_sha256"] = manifest_lib.settings_sha256(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        np.save(folder / "token_bytes.npy", np.ones(vocab_size, np.uint16))
    return folder


def test_there_may_be_more_shards_than_a_process_may_have_files_open(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder = write_shards(tmp_path, [[number % 10] for number in range(600)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 300, hard))
    try:
        shards = Shards(folder)
        stream = shards.read(0, 600)
        shards.check_ids(10)
        assert statistics(shards, workers=2)["distinct_tokens"] == len(shards.hashes()) == 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert stream.tolist() == [number % 10 for number in range(600)]


def test_a_shard_that_is_cut_after_it_was_opened_is_refused(tmp_path):
    shards = Shards(write_shards(tmp_path, [[1, 2, 3]]))
    (tmp_path / "shard-00000.bin").write_bytes(b"1234")
    with pytest.raises(ShardError, match=r"shard-00000.bin: has changed since it was opened"):
        shards.read(0, 3)


def test_the_stream_runs_over_shard_ends(tmp_path):
    shards = Shards(write_shards(tmp_path, [[1, 2, 3], [4], [5, 6]]))
    assert shards.num_tokens == 6
    for start in range(7):
        for stop in range(start, 7):
            ids = shards.read(start, stop)
            assert ids.dtype == np.int32
            assert ids.tolist() == [1, 2, 3, 4, 5, 6][start:stop]
    assert shards.eos_id == EOS
    assert shards.token_bytes is not None and shards.token_bytes.sum() == 10
    with pytest.raises(IndexError):
        shards.read(3, 7)


def test_shards_come_in_the_order_of_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(
        manifest_lib, "shard_name", lambda number: f"shard-{number + 99_999:05d}.bin"
    )
    write_shards(tmp_path, [[1, 2], [3], [4]])
    assert Shards(tmp_path).read(0, 4).tolist() == [1, 2, 3, 4]


def test_folders_of_the_original_are_read(tmp_path):
    write_shards(tmp_path, [[1, 2], [], [3]], with_manifest=False)
    shards = Shards(tmp_path)
    assert (shards.manifest, shards.eos_id, shards.token_bytes) == (None, None, None)
    assert shards.read(0, 3).tolist() == [1, 2, 3]
    original = {
        "schema": "pretokenize-bin-v1",
        "shard_count": 3,
        "total_tokens": 3,
        "eos_token_id": 7,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(original))
    assert Shards(tmp_path).eos_id == 7
    (tmp_path / "shard-00003.bin").write_bytes(b"\1\0\0\0")
    with pytest.raises(ShardError, match="shard_count is 4 in the files, but 3"):
        Shards(tmp_path)


def _set(folder, **changes):
    """Change the manifest, and its hash of the settings with it."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["settings_sha256"] = manifest_lib.settings_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _set_name(folder, name):
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    _set(folder, shards=[shards[0] | {"name": name}, *shards[1:]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "shard-00001.bin").unlink(), "shard-00001.bin is in the manifest but not"),
        (lambda d: (d / "shard-00007.bin").write_bytes(b"abcd"), "shard-00007.bin is not in the"),
        (lambda d: (d / "shard-00001.bin").write_bytes(b"abcd"), "holds 1 tokens, .* says 2"),
        (lambda d: (d / "shard-00001.bin").write_bytes(b"abc"), "3 bytes is not a whole number"),
        (
            lambda d: (d / "manifest.json").write_text(
                (d / "manifest.json").read_text().replace('"eos_id": 9', '"eos_id": 8')
            ),
            "do not hash to its settings_sha256",
        ),
        (lambda d: (d / "manifest.json").write_text('{"schema": "x"}'), "schema 'x' is not"),
        (lambda d: _set(d, shards=[1, 2]), "its list of shards is damaged"),
        (lambda d: _set(d, shards=7), "its list of shards is damaged"),
        (lambda d: _set_name(d, "../n/shard-00000.bin"), "its list of shards is damaged"),
        (lambda d: _set_name(d, "shard-00001.bin"), "its list of shards is damaged"),
        (lambda d: _set(d, unk_id="x"), "unk_id is 'x', not an id below 10"),
        (lambda d: _set(d, space_id=10), "space_id is 10, not an id below 10"),
        (lambda d: _set(d, eos_id=True), "eos_id is True, not an id below 10"),
        (lambda d: _set(d, vocab_size=2**31), "vocab_size is 2147483648, not an integer from 1"),
        (lambda d: _set(d, schema="pretokenize-bin-v1", eos_token_id="x"), "eos_token_id is 'x'"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage, message):
    write_shards(tmp_path, [[1, 2], [3, 4]])
    damage(tmp_path)
    with pytest.raises(ShardError, match=message):
        Shards(tmp_path)


@pytest.mark.parametrize("with_manifest", [True, False])
def test_what_is_no_id_is_refused_before_it_is_counted(tmp_path, with_manifest):
    bound = 10 if with_manifest else 2**21
    folder = write_shards(tmp_path, [[1, 2], [3, bound - 1, bound]], with_manifest=with_manifest)
    shards = Shards(folder)
    assert statistics(shards, 0, 4)["distinct_tokens"] == 4
    with pytest.raises(ShardError, match=rf"shard-00001\.bin: id {bound} at position 2"):
        statistics(shards)


def test_numbers_of_another_kind_are_no_ids(tmp_path):
    np.ones(8, np.float32).tofile(tmp_path / "weights.bin")
    with pytest.raises(ShardError, match=r"weights\.bin: id 1065353216 at position 0 is in no"):
        statistics(Shards(tmp_path))


def test_missing_and_unfinished_folders_are_refused(tmp_path):
    with pytest.raises(ShardError, match="no such folder"):
        Shards(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"holds no \.bin shards"):
        Shards(tmp_path)
    write_shards(tmp_path, [[1, 2]], with_manifest=False)
    (tmp_path / "unfinished.json").write_text("{}")
    with pytest.raises(ShardError, match="was interrupted"):
        Shards(tmp_path)


def test_token_bytes_must_fit_the_manifest(tmp_path):
    shards = Shards(write_shards(tmp_path, [[1, 2]]))
    np.save(tmp_path / "token_bytes.npy", np.ones(9, np.uint16))
    with pytest.raises(ShardError, match=r"uint16\[9\], but the manifest says uint16\[10\]"):
        _ = shards.token_bytes
    table = (tmp_path / "token_bytes.npy").read_bytes()
    longer = table.replace(b"(9,), }" + b" " * 12, b"(9" + b"0" * 12 + b",), }")
    assert len(longer) == len(table) and longer != table
    (tmp_path / "token_bytes.npy").write_bytes(longer)
    with pytest.raises(ShardError, match=r"token_bytes\.npy: cannot be read"):
        _ = shards.token_bytes


def test_ids_beyond_the_model_are_named(tmp_path):
    shards = Shards(write_shards(tmp_path, [[1, 2], [3, 8, 1]]))
    shards.check_ids(9)
    with pytest.raises(ShardError, match=r"shard-00001\.bin: id 8 at position 1"):
        shards.check_ids(8)


def test_ids_above_31_bits_are_not_read_as_negative(tmp_path):
    shards = Shards(write_shards(tmp_path, [[1, 2**31 + 5]], with_manifest=False))
    with pytest.raises(ShardError, match=r"00\.bin: id 2147483653 at position 1 is in no"):
        shards.read(0, 2)


@pytest.mark.parametrize("seq_length", [1, 2, 3, 4, 6, 20])
@pytest.mark.parametrize("length", [2, 3, 7, 13])
def test_every_token_but_the_first_is_a_target_once(tmp_path, seq_length, length):
    ids = np.arange(100, 100 + length)
    windows = Windows(
        Shards(write_shards(tmp_path, np.array_split(ids, 3), with_manifest=False)), seq_length
    )
    batch = windows.batch(range(len(windows)))
    is_real_BT = batch["weights_BT"] == 1
    assert batch["targets_BT"][is_real_BT].tolist() == ids[1:].tolist()
    assert batch["ids_BT"][is_real_BT].tolist() == ids[:-1].tolist()
    assert not batch["targets_BT"][~is_real_BT].any()
    assert {name: array.dtype for name, array in batch.items()} == {
        "ids_BT": np.int32,
        "targets_BT": np.int32,
        "weights_BT": np.float32,
    }


def test_batches_follow_their_indices(tmp_path):
    windows = Windows(Shards(write_shards(tmp_path, [[1, 2, 3, 4], [5, 6, 7]])), 2)
    assert len(windows) == 3
    assert windows.batch([2, 0])["ids_BT"].tolist() == [[5, 6], [1, 2]]


def test_streams_and_windows_too_short_are_refused(tmp_path):
    shards = Shards(write_shards(tmp_path, [[1]]))
    with pytest.raises(ShardError, match="1 tokens hold no input with a target"):
        Windows(shards, 4)
    with pytest.raises(ShardError, match="seq_length=0"):
        Windows(shards, 0)


def test_epoch_order_is_a_fixed_shuffle():
    order = epoch_order(1000, seed=1, epoch=2)
    assert sorted(order.tolist()) == list(range(1000))
    assert not np.array_equal(order, epoch_order(1000, seed=1, epoch=3))
    assert not np.array_equal(order, epoch_order(1000, seed=2, epoch=2))
    # Pinned: a resumed run must see the order that it started with, whatever NumPy is installed.
    assert epoch_order(8, seed=0, epoch=0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]


def test_segments_start_after_each_separator():
    ids_BT = np.array([[1, EOS, 2, 3, EOS, EOS, 4], [EOS, 1, 1, 1, 1, 1, EOS]], np.int32)
    starts_BT = segment_start(ids_BT, EOS)
    assert starts_BT.dtype == np.int32
    assert starts_BT.tolist() == [[0, 0, 2, 2, 2, 5, 6], [0, 1, 1, 1, 1, 1, 1]]


documents = st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(a=documents, b=documents, cut=st.integers(0, 20))
def test_overlap_counts_documents_of_the_second(tmp_path_factory, a, b, cut):
    folder = tmp_path_factory.mktemp("overlap")
    streams = [[t for document in side for t in (*document, EOS)] for side in (a, b)]
    shards = [
        Shards(write_shards(folder / name, [stream[:cut], stream[cut:]]))
        for name, stream in zip("ab", streams, strict=True)
    ]
    assert document_overlap(*shards) == sum(1 for document in b if document and document in a)


def test_overlap_sees_documents_that_span_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("apr_jax.text.batches._CHUNK", 2)
    a = Shards(write_shards(tmp_path / "a", [[1, 2, 3, EOS, 4, EOS, 5, 6]]))
    b = Shards(write_shards(tmp_path / "b", [[EOS, 1, 2, 3, EOS, EOS, 2, 3, EOS, 5, 6]]))
    assert document_overlap(a, b) == 2


def test_overlap_needs_a_separator(tmp_path):
    a = Shards(write_shards(tmp_path / "a", [[1]], eos_id=None))
    b = Shards(write_shards(tmp_path / "b", [[1]]))
    with pytest.raises(ShardError, match="nothing separates its documents"):
        document_overlap(a, b)
