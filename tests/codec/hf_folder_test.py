"""HuggingFace folders of every shape, and indices that do not fit or lead elsewhere."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from apr_jax.codec import errors, open_checkpoint
from apr_jax.codec.compare import same_bits
from apr_jax.codec.hf_folder import HfFolder
from apr_jax.errors import UserError
from tests.codec import small


@pytest.mark.parametrize("shards", [1, 3])
def test_single_and_sharded(tmp_path, shards):
    values = small.tensors()
    folder = small.hf_folder(tmp_path / "hf", values, shards=shards)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "safetensors"
        assert checkpoint.config == small.config()
        assert checkpoint.names == sorted(values) and checkpoint.coverage().complete
        for name, array in values.items():
            assert checkpoint.shape(name) == array.shape
            assert checkpoint.dtype(name) == array.dtype
            assert checkpoint.nbytes(name) == array.nbytes
            assert same_bits(checkpoint.read(name), array)


def test_a_safetensors_file_of_any_name_beside_its_config(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors())
    file = (folder / "model.safetensors").rename(folder / "other.safetensors")
    for path in (file, folder):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.config == small.config()


def test_shards_behind_symbolic_links_as_in_the_hub_cache(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), shards=2)
    for file in folder.glob("*.safetensors"):
        blob = file.rename(tmp_path / f"blob-{file.stem}")
        file.symlink_to(blob)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.coverage().complete


@pytest.mark.parametrize(
    "file",
    [
        "../out.safetensors",
        "/out.safetensors",
        "a/b.safetensors",
        "..",
        ".",
        "",
        "a\0.safetensors",
        "..\\a.safetensors",
        3,
        None,
    ],
)
def test_an_index_that_leads_out_of_its_folder(tmp_path, file):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), shards=2)
    save_file({"secret": np.zeros(1)}, tmp_path / "out.safetensors")
    small.write_index(folder, {"secret": file})
    with pytest.raises(errors.ShardIndexError, match=r"index.json: tensor 'secret': .*plain name"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map(tmp_path, text):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(errors.ShardIndexError, match="weight_map"):
        open_checkpoint(folder)


def test_an_index_that_does_not_fit_its_shards(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), shards=2)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    file = weight_map["model.norm.weight"]
    small.write_index(folder, {**weight_map, "ghost": file})
    with pytest.raises(errors.ShardIndexError, match=f"'ghost': is not in {file}"):
        open_checkpoint(folder)
    del weight_map["model.norm.weight"]
    small.write_index(folder, weight_map)
    with pytest.raises(errors.InvalidSafetensors, match=rf"{file}: tensor 'model.norm.weight'"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(errors.Unreadable, match="model-00002-of-00002"):
        open_checkpoint(folder)


def test_every_truncation_of_a_safetensors_file_is_named(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", {"a": np.zeros(3, np.float32)})
    file = folder / "model.safetensors"
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(errors.InvalidSafetensors, match=r"model\.safetensors: is not a sound"):
            open_checkpoint(folder)


def test_pickles_are_not_read(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors())
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(errors.UnknownFormat, match="convert the model to safetensors"):
        open_checkpoint(folder)


def test_a_config_that_is_missing_or_no_object(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors())
    (folder / "config.json").write_text("[]")
    with pytest.raises(errors.InvalidJson, match=r"config\.json: is not a JSON object"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        open_checkpoint(folder)


@pytest.mark.parametrize("shape", [[0, 2**63], [1] * 100], ids=["extent", "rank"])
def test_a_shape_beyond_numpy_is_named(tmp_path, shape):
    size = 0 if 0 in shape else 4
    entry = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(entry).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with HfFolder(path) as folder, pytest.raises(errors.ShapeTooLarge, match="tensor 'a'"):
        folder.read("a")


def test_what_was_read_outlives_the_folder(tmp_path):
    values = small.tensors()
    with HfFolder(small.hf_folder(tmp_path / "hf", values)) as folder:
        read = {name: folder.read(name) for name in folder.names}
    assert all(same_bits(read[name], array) for name, array in values.items())
    with pytest.raises(errors.ClosedError, match="has been closed"):
        folder.raw(folder.names[0])
