"""A HuggingFace model becomes an `.apr` file that holds it bit for bit, or nothing is written."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from apr_jax.codec import (
    AprWriter,
    errors,
    import_checkpoint,
    open_apr,
    open_checkpoint,
    write_apr,
)
from apr_jax.codec import importer as importer_lib
from apr_jax.codec.compare import same_bits
from apr_jax.codec.header import sealed
from apr_jax.codec.hf_folder import HfFolder
from apr_jax.codec.metadata import without_aliases
from apr_jax.codec.qwen2 import EMBEDDING, HEAD
from apr_jax.errors import UserError
from tests.codec import small

TOKENIZER = {"tokenizer.json": "{}", "merges.txt": "a b\n", "generation_config.json": "{}"}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_every_bit_arrives(tmp_path, tied, shards):
    values = small.tensors(tied=tied)
    folder = small.hf_folder(tmp_path / "hf", values, tied=tied, shards=shards, files=TOKENIZER)
    result = import_checkpoint(folder, tmp_path / "out" / "small.apr")
    assert result["apr"] == str(tmp_path / "out" / "small.apr")
    with open_apr(result["apr"], strict=True) as file:
        assert file.names == sorted(values)
        for name, array in values.items():
            assert same_bits(file.read(name), array)
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            assert file.metadata["import_sha256"][name] == digest
            assert result["tensors"][name]["sha256"] == digest
        assert file.metadata["name"] == "hf"
        assert file.metadata["original_format"] == "safetensors"
        assert file.metadata["tied_embeddings"] is tied
        elements = sum(array.size for array in values.values())
        assert file.metadata["param_count"] == result["parameters"] == elements
        assert file.metadata["total_size"] == 2 * elements
    copied = {path.name: path.read_text() for path in (tmp_path / "out/small.tokenizer").iterdir()}
    assert copied == TOKENIZER and sorted(result["tokenizer_files"]) == sorted(TOKENIZER)


def test_types_may_differ_from_tensor_to_tensor(tmp_path):
    values = {
        name: small.tensors(dtype=small.FLOATS[at % 4])[name]
        for at, name in enumerate(small.config().tensors())
    }
    import_checkpoint(small.hf_folder(tmp_path / "hf", values), tmp_path / "a.apr")
    with open_apr(tmp_path / "a.apr") as file:
        assert all(same_bits(file.read(name), array) for name, array in values.items())


def test_the_same_source_gives_the_same_bytes(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors())
    import_checkpoint(folder, tmp_path / "1.apr")
    import_checkpoint(folder / "model.safetensors", tmp_path / "2.apr")
    assert (tmp_path / "1.apr").read_bytes() == (tmp_path / "2.apr").read_bytes()


def test_into_a_folder(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), files=TOKENIZER)
    assert import_checkpoint(folder, tmp_path / "out")["apr"] == str(tmp_path / "out/model.apr")
    assert (tmp_path / "out/model.tokenizer/tokenizer.json").exists()


def test_a_tokenizer_that_the_source_does_not_bring_is_neither_kept_nor_removed(tmp_path):
    with_files = small.hf_folder(tmp_path / "1", small.tensors(), files=TOKENIZER)
    without = small.hf_folder(tmp_path / "2", small.tensors(seed=1))
    import_checkpoint(with_files, tmp_path / "a.apr")
    before = (tmp_path / "a.apr").read_bytes()
    with pytest.raises(errors.FolderInUse, match=r"a\.tokenizer: .* the source brings none"):
        import_checkpoint(without, tmp_path / "a.apr")
    assert (tmp_path / "a.apr").read_bytes() == before
    assert (tmp_path / "a.tokenizer/tokenizer.json").exists()


def test_a_tokenizer_folder_with_other_files_is_not_touched(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors(), files=TOKENIZER)
    (tmp_path / "a.tokenizer").mkdir()
    (tmp_path / "a.tokenizer/notes.txt").write_text("mine")
    with pytest.raises(errors.FolderInUse, match=r"notes\.txt"):
        import_checkpoint(folder, tmp_path / "a.apr")
    assert not (tmp_path / "a.apr").exists()


def test_an_equal_head_of_a_tied_model_is_dropped(tmp_path):
    values = small.tensors()
    folder = small.hf_folder(tmp_path / "hf", small.with_head(values, values[EMBEDDING].copy()))
    assert set(import_checkpoint(folder, tmp_path / "a.apr")["left_out"]) == {HEAD}
    with open_apr(tmp_path / "a.apr") as file:
        assert HEAD not in file.names


def test_an_equal_head_of_an_untied_model_stays_its_own(tmp_path):
    values = small.tensors()
    values = small.with_head(values, values[EMBEDDING].copy())
    import_checkpoint(small.hf_folder(tmp_path / "hf", values, tied=False), tmp_path / "a.apr")
    with open_checkpoint(tmp_path / "a.apr") as checkpoint:
        assert not checkpoint.config.tied and same_bits(checkpoint.read(HEAD), values[HEAD])


def changed(**changes):
    values = small.tensors() | changes
    return {name: array for name, array in values.items() if array is not None}


@pytest.mark.parametrize(
    "values, tied, error, message",
    [
        (changed(**{"model.norm.weight": None}), True, errors.IncompleteModel, "1 missing"),
        (changed(extra=np.zeros(1)), True, errors.IncompleteModel, "1 extra"),
        (changed(**{"model.norm.weight": np.zeros(9)}), True, errors.IncompleteModel, r"\[9\]"),
        (changed(), False, errors.IncompleteModel, r"1 missing \(lm_head.weight"),
        (changed(**{HEAD: np.zeros((24, 8))}), True, errors.HeadError, "differs"),
        (
            changed(**{"model.norm.weight": np.zeros(8, np.uint64)}),
            True,
            errors.UnsupportedDtype,
            "U64",
        ),
    ],
)
def test_what_is_not_the_model_is_refused_before_anything_is_written(
    tmp_path, values, tied, error, message
):
    folder = small.hf_folder(tmp_path / "hf", values, tied=tied)
    with pytest.raises(error, match=message):
        import_checkpoint(folder, tmp_path / "out" / "a.apr")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantize, bound", [("Q8", 0.02), ("Q4_K", 0.08), ("Q6_K", 0.02)])
def test_matrices_are_quantised_and_nothing_else(tmp_path, quantize, bound):
    folder = small.hf_folder_of(tmp_path / "hf", small.wide_config())
    result = import_checkpoint(folder, tmp_path / "a.apr", quantize=quantize)
    matrices = {name for name, spec in small.wide_config().tensors().items() if len(spec.shape) > 1}
    assert result["quantize"] == quantize and result["quantised"].keys() == matrices
    with open_checkpoint(folder) as source, open_apr(tmp_path / "a.apr", strict=True) as file:
        assert file.metadata["total_size"] == sum(file.info(name).nbytes for name in file.names)
        for name in file.names:
            original, stored = source.read(name), file.read(name)
            assert file.info(name).dtype == result["tensors"][name]["stored"]
            assert file.metadata["import_sha256"][name] == result["tensors"][name]["sha256"]
            if name in matrices:
                assert file.info(name).dtype == quantize
                difference = np.linalg.norm(original.astype(np.float64) - stored)
                error = difference / np.linalg.norm(original.astype(np.float64))
                assert result["quantised"][name] == pytest.approx(error) and 0 < error < bound
            else:
                assert same_bits(original, stored)


def test_small_models_are_not_quantised(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors())
    assert import_checkpoint(folder, tmp_path / "a.apr", quantize="Q8")["quantised"] == {}
    import_checkpoint(folder, tmp_path / "b.apr")
    assert (tmp_path / "a.apr").read_bytes() == (tmp_path / "b.apr").read_bytes()


def test_what_cannot_be_quantised_is_refused(tmp_path):
    folder = small.hf_folder_of(tmp_path / "hf", small.wide_config())
    with pytest.raises(errors.UnsupportedDtype, match="'Q5_K' is none of Q8, Q4_K, Q6_K"):
        import_checkpoint(folder, tmp_path / "a.apr", quantize="Q5_K")
    values = load_file(folder / "model.safetensors")
    values[EMBEDDING][3, 3] = np.inf
    save_file(values, folder / "model.safetensors")
    with pytest.raises(errors.OutOfRange, match=f"{EMBEDDING}': has a value of magnitude inf"):
        import_checkpoint(folder, tmp_path / "a.apr", quantize="Q8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_a_quantised_tensor_that_reads_back_differently_is_found(tmp_path, monkeypatch):
    class DamagedWriter(AprWriter):
        """Stores other bytes than it says."""

        def _add(self, info, stored):
            super()._add(info, stored ^ 1 if info.dtype == "Q8" else stored)

    monkeypatch.setattr(importer_lib, "AprWriter", DamagedWriter)
    folder = small.hf_folder_of(tmp_path / "hf", small.wide_config())
    with pytest.raises(errors.VerificationFailed, match="differs"):
        import_checkpoint(folder, tmp_path / "a.apr", quantize="Q8")


def test_the_source_is_read_to_be_written_and_to_be_compared(tmp_path, monkeypatch):
    read, raw = [], HfFolder.raw
    monkeypatch.setattr(HfFolder, "raw", lambda self, name: read.append(name) or raw(self, name))
    values = small.tensors(dtype=np.float32)  # of 16-bit tensors a sample is judged as well
    import_checkpoint(small.hf_folder(tmp_path / "hf", values), tmp_path / "a.apr")
    assert sorted(read) == sorted([*values, *values])


def test_a_file_that_reads_back_differently_is_found(tmp_path, monkeypatch):
    class DamagedWriter(AprWriter):
        """Stores other bytes than it says."""

        def _add(self, info, stored):
            super()._add(info, stored ^ 1 if info.name == EMBEDDING else stored)

    monkeypatch.setattr(importer_lib, "AprWriter", DamagedWriter)
    folder = small.hf_folder(tmp_path / "hf", small.tensors())
    (tmp_path / "a.apr").write_text("old")
    with pytest.raises(errors.VerificationFailed, match=rf"/a\.apr: .*{EMBEDDING}.* differs"):
        import_checkpoint(folder, tmp_path / "a.apr")
    assert (tmp_path / "a.apr").read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.apr", "hf"]


def stripped(values):
    return {name.removeprefix("model."): array for name, array in values.items()}


def test_a_sound_apr_file_is_only_a_source_for_quantising(tmp_path):
    import_checkpoint(small.hf_folder_of(tmp_path / "hf", small.wide_config()), tmp_path / "a.apr")
    with pytest.raises(errors.UnknownFormat, match="already, with nothing to mend"):
        import_checkpoint(tmp_path / "a.apr", tmp_path / "b.apr")
    result = import_checkpoint(tmp_path / "a.apr", tmp_path / "b.apr", quantize="Q8")
    assert result["quantised"] and result["mended"] == []
    with pytest.raises(errors.UnsupportedDtype, match="is quantised already, as Q8"):
        import_checkpoint(tmp_path / "b.apr", tmp_path / "c.apr", quantize="Q4_K")


def old_apr(path, values, **changes):
    """As older writers left it: no footer, another version, null aliases, and a copied head."""
    write_apr(path, values, small.config().to_apr() | {"name": "old"} | changes)
    header = bytearray(path.read_bytes())
    header[4:6] = 1, 7
    header[:64] = sealed(bytes(header[:64]))
    path.write_bytes(header[:-4])
    return path


def test_an_apr_file_of_an_older_writer_becomes_a_sound_one(tmp_path):
    values = small.finite_tensors()
    head = values[EMBEDDING].astype(np.float32)
    claims = {"tied_embeddings": True, "original_format": "gguf"}
    claims["sharding"] = {"shard_count": 2, "shard_index": 0, "total_size": 9}
    claims["quantization"] = {"quant_type": "q4", "bits": 4, "symmetric": True}
    source = old_apr(tmp_path / "a.apr", stripped(small.with_head(values, head)), **claims)
    result = import_checkpoint(source, source)
    assert len(result["mended"]) == 4 and result["left_out"].keys() == {HEAD}
    assert "version is 1.7" in result["mended"][0] and "no CRC32" in result["mended"][1]
    assert any("`model.` at their start" in note for note in result["notes"])
    with open_checkpoint(source, strict=True) as checkpoint:
        assert checkpoint.config == small.config() and checkpoint.coverage().complete
        assert all(same_bits(checkpoint.read(name), array) for name, array in values.items())
        assert checkpoint.metadata["name"] == "old"
        assert checkpoint.metadata["original_format"] == "gguf"
        assert not {"sharding", "quantization"} & checkpoint.metadata.keys()


@pytest.mark.parametrize("name", ["qwen2_bf16_stream.apr", "qwen2_bf16_single_tied.apr"])
def test_files_of_the_reference_importer_lose_the_head_that_is_the_embedding(tmp_path, name):
    result = import_checkpoint(small.DATA / name, tmp_path / "a.apr")
    assert len(result["mended"]) == 1 and HEAD in result["mended"][0]
    with open_apr(tmp_path / "a.apr", strict=True) as file, open_apr(small.DATA / name) as old:
        assert set(old.names) - set(file.names) == {HEAD}
        assert all(same_bits(file.read(name), old.read(name)) for name in file.names)
        assert file.metadata["tokenizer.vocabulary"] == old.metadata["tokenizer.vocabulary"]


def test_a_damaged_apr_file_is_not_mended(tmp_path):
    write_apr(tmp_path / "a.apr", small.tensors(), small.config().to_apr())
    data = bytearray((tmp_path / "a.apr").read_bytes())
    data[-100] ^= 1
    (tmp_path / "a.apr").write_bytes(data)
    with pytest.raises(errors.FooterMismatch):
        import_checkpoint(tmp_path / "a.apr", tmp_path / "b.apr")


def test_aliases_that_say_nothing_else_are_dropped(tmp_path):
    keys = small.config().to_apr() | {"n_layer": None, "d_model": 8}
    assert without_aliases(keys) == small.config().to_apr()
    assert without_aliases({"n_layer": 3}) == {"n_layer": 3}
    assert without_aliases({"num_layers": 2, "n_layer": 3}) == {"num_layers": 2, "n_layer": 3}


def test_names_without_their_prefix_get_it_back(tmp_path):
    values = small.tensors(tied=False)
    folder = small.hf_folder(tmp_path / "hf", stripped(values), tied=False)
    result = import_checkpoint(folder, tmp_path / "a.apr")
    assert result["notes"] == ["the names lacked the `model.` at their start, which was put back"]
    with open_apr(tmp_path / "a.apr", strict=True) as file:
        assert all(same_bits(file.read(name), array) for name, array in values.items())


def test_names_of_both_kinds_are_refused(tmp_path):
    values = stripped(small.tensors()) | {"model.norm.weight": np.zeros(8)}
    with pytest.raises(errors.IncompleteModel, match="25 missing"):
        import_checkpoint(small.hf_folder(tmp_path / "hf", values), tmp_path / "a.apr")


def test_a_configuration_that_lies_elsewhere(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.tensors())
    (folder / "config.json").rename(tmp_path / "other.json")
    source = folder / "model.safetensors"
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        import_checkpoint(source, tmp_path / "a.apr")
    import_checkpoint(source, tmp_path / "a.apr", config=tmp_path / "other.json")
    with open_checkpoint(tmp_path / "a.apr") as checkpoint:
        assert checkpoint.config == small.config()
    with pytest.raises(errors.UnknownFormat, match=r"only a \.safetensors file takes one"):
        import_checkpoint(folder, tmp_path / "b.apr", config=tmp_path / "other.json")


def test_what_the_configuration_says_and_the_file_does_not_keep_is_noted(tmp_path):
    folder = small.hf_folder(tmp_path / "hf", small.finite_tensors())
    config = small.config().to_hf("float16") | {"eos_token_id": [2, 3], "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    assert import_checkpoint(folder, tmp_path / "a.apr")["notes"] == [
        "config.json has eos_token_id=[2, 3], of which the first is kept",
        "config.json has pad_token_id=0, which .apr files do not keep",
        "config.json says 'float16', the tensors are of bfloat16",
    ]
