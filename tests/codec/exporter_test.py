"""An `.apr` model becomes a HuggingFace folder that others load, or no folder appears."""

import json

import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file

from apr_jax.codec import errors, export_checkpoint, import_checkpoint, open_apr, write_apr
from apr_jax.codec import exporter as exporter_lib
from apr_jax.codec.compare import relative_error, same_bits
from apr_jax.codec.qwen2 import EMBEDDING
from apr_jax.files import write_json
from tests.codec import small

TOKENIZER = {"tokenizer.json": "{}", "vocab.json": "{}", "chat_template.jinja": "x"}


def apr(path, values, *, tied=True):
    write_apr(path, values, small.config(tied=tied).to_apr())
    return path


@pytest.mark.parametrize("dtype", small.FLOATS)
@pytest.mark.parametrize("tied", [True, False])
def test_safetensors_to_apr_and_back_gives_the_same_bytes(tmp_path, tied, dtype):
    values = small.tensors(tied=tied, dtype=dtype)
    folder = small.hf_folder(tmp_path / "hf", values, tied=tied, files=TOKENIZER)
    import_checkpoint(folder, tmp_path / "a.apr")
    result = export_checkpoint(tmp_path / "a.apr", tmp_path / "back")
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == values.keys()
    assert all(same_bits(back[name], array) for name, array in values.items())
    assert result["files"] == sorted(["config.json", "model.safetensors", *TOKENIZER])
    for name, text in TOKENIZER.items():
        assert (tmp_path / "back" / name).read_text() == text
    with safe_open(tmp_path / "back/model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config == small.config(tied=tied).to_hf(np.dtype(dtype).name)


def test_transformers_accepts_the_configuration(tmp_path):
    export_checkpoint(apr(tmp_path / "a.apr", small.tensors()), tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert isinstance(config, transformers.Qwen2Config)
    assert config.num_key_value_heads == 1 and config.tie_word_embeddings
    assert config.rope_parameters["rope_theta"] == 1e6


def test_the_declared_type_holds_every_tensor(tmp_path):
    values = small.finite_tensors() | {"model.norm.weight": np.ones(8, np.float16)}
    export_checkpoint(apr(tmp_path / "a.apr", values), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("dtype", [None, *exporter_lib.EXPORT_DTYPES])
def test_quantised_tensors_are_decoded(tmp_path, dtype):
    values = small.finite_tensors()
    types = {EMBEDDING: "Q6_K", "model.layers.0.mlp.up_proj.weight": "Q4"}
    write_apr(tmp_path / "a.apr", values, small.config().to_apr(), dtypes=types)
    result = export_checkpoint(tmp_path / "a.apr", tmp_path / "out", dtype=dtype)
    assert result["decoded"] == sorted(types) and result["dtype"] == (dtype or "float32")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == (dtype or "float32")
    back = load_file(tmp_path / "out/model.safetensors")
    with open_apr(tmp_path / "a.apr") as file:
        assert all(same_bits(back[name], file.read(name, dtype)) for name in values)


def test_a_type_that_is_no_choice_or_too_narrow_is_refused(tmp_path):
    values = small.finite_tensors() | {"model.norm.weight": np.full(8, 7e4, np.float32)}
    path = apr(tmp_path / "a.apr", values)
    with pytest.raises(errors.UnsupportedDtype, match="'int8' is none of the types float32"):
        export_checkpoint(path, tmp_path / "out", dtype="int8")
    with pytest.raises(errors.OutOfRange, match="beyond the range of float16"):
        export_checkpoint(path, tmp_path / "out", dtype="float16")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.apr"]


def test_what_a_cast_costs_is_told(tmp_path):
    values = small.finite_tensors(dtype=np.float32) | {"model.norm.weight": np.ones(8, np.float16)}
    values[EMBEDDING][0, 0] = np.inf
    path = apr(tmp_path / "a.apr", values)
    for out in ("out", "out.gguf"):
        cast = export_checkpoint(path, tmp_path / out, dtype="bfloat16")["cast"]
        assert cast.keys() == values.keys() and cast["model.norm.weight"] == 0
        up = values["model.layers.0.mlp.up_proj.weight"].astype(np.float64)
        error = np.linalg.norm(up - up.astype(ml_dtypes.bfloat16).astype(np.float64))
        found = cast["model.layers.0.mlp.up_proj.weight"]
        assert found == pytest.approx(error / np.linalg.norm(up)) and found > 1e-4
        assert 1e-4 < cast[EMBEDDING] < 1e-2
    assert export_checkpoint(path, tmp_path / "wide", dtype="float32")["cast"] == {}


def test_a_tensor_that_would_become_zeros_is_refused(tmp_path):
    values = small.finite_tensors() | {"model.norm.weight": np.full(8, 1e-9, np.float32)}
    path = apr(tmp_path / "a.apr", values)
    with pytest.raises(errors.OutOfRange, match=r"model\.norm\.weight.* all are zero as float16"):
        export_checkpoint(path, tmp_path / "out", dtype="float16")


@pytest.mark.parametrize("scale", [1e300, 1.0, 1e-300])
def test_relative_errors_of_any_magnitude(scale):
    values = np.array([3.0, 4.0, 0.0, np.nan, np.inf]) * scale
    off = np.array([3.0, 5.0, 0.0, np.nan, np.inf]) * scale
    assert relative_error(values, off) == pytest.approx(0.2)


def test_shards_with_their_index(tmp_path):
    values = small.tensors(tied=False)
    limit = values[EMBEDDING].nbytes + 100
    path = apr(tmp_path / "a.apr", values, tied=False)
    export_checkpoint(path, tmp_path / "out", max_shard_bytes=limit)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in values.values())
    assert index["weight_map"].keys() == values.keys()
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        shard = load_file(tmp_path / "out" / file)
        assert sum(array.nbytes for array in shard.values()) <= limit
        assert all(index["weight_map"][name] == file for name in shard)
        assert all(same_bits(shard[name], values[name]) for name in shard)
    assert not (tmp_path / "out/model.safetensors").exists()


def test_a_tied_model_of_the_reference_importer(tmp_path):
    source = small.DATA / "qwen2_bf16_stream.apr"
    result = export_checkpoint(source, tmp_path / "out")
    assert set(result["left_out"]) == {"lm_head.weight"}
    back = load_file(tmp_path / "out/model.safetensors")
    with open_apr(source) as file:
        assert set(file.names) - set(back) == {"lm_head.weight"}
        assert all(same_bits(file.read(name), back[name]) for name in back)


def test_an_earlier_export_is_replaced_whole(tmp_path):
    path = apr(tmp_path / "a.apr", small.tensors())
    export_checkpoint(path, tmp_path / "out", max_shard_bytes=1000)
    write_json(tmp_path / "out/report.json", export_checkpoint(path, tmp_path / "out"))
    export_checkpoint(path, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json",
        "export_record.json",
        "model.safetensors",
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.apr", "out"]


def test_the_report_of_another_program_is_not_replaced(tmp_path):
    path = apr(tmp_path / "a.apr", small.tensors())
    export_checkpoint(path, tmp_path / "out")
    write_json(tmp_path / "out/report.json", {"val_loss": 3})
    with pytest.raises(errors.FolderInUse, match=r"report\.json"):
        export_checkpoint(path, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").exists()


def test_a_folder_that_is_no_export_is_not_touched(tmp_path):
    path = apr(tmp_path / "a.apr", small.tensors())
    original = small.hf_folder(tmp_path / "hf", small.tensors())
    with pytest.raises(errors.FolderInUse, match=r"config\.json"):
        export_checkpoint(path, original)
    export_checkpoint(path, tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(errors.FolderInUse, match=r"notes\.txt"):
        export_checkpoint(path, tmp_path / "out")
    with pytest.raises(errors.FolderInUse, match="not a folder"):
        export_checkpoint(path, path)
    (tmp_path / "hf/export_record.json").write_text('{"files": 3}')
    with pytest.raises(errors.FolderInUse):
        export_checkpoint(path, original)


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    export_checkpoint(apr(tmp_path / "a.apr", small.tensors()), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").exists()


def test_odd_files_are_refused_unless_asked_for(tmp_path):
    path = apr(tmp_path / "a.apr", small.tensors())
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.FooterMismatch):
        export_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(export_checkpoint(path, tmp_path / "out", strict=False)["problems"]) == 1


def test_incomplete_models_and_other_sources_are_refused(tmp_path):
    values = small.tensors()
    del values["model.norm.weight"]
    with pytest.raises(errors.IncompleteModel, match="1 missing"):
        export_checkpoint(apr(tmp_path / "a.apr", values), tmp_path / "out")
    with pytest.raises(errors.UnknownFormat, match=r"not an \.apr"):
        export_checkpoint(small.hf_folder(tmp_path / "hf", small.tensors()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copy_that_differs_is_found_before_the_folder_appears(tmp_path, monkeypatch):
    def save_wrong(tensors, *args, **kwargs):
        wrong = {name: array.copy() for name, array in tensors.items()}
        wrong["model.norm.weight"].view(np.uint16)[3] ^= 1
        save_file(wrong, *args, **kwargs)

    save_file = exporter_lib.save_file
    monkeypatch.setattr(exporter_lib, "save_file", save_wrong)
    path = apr(tmp_path / "a.apr", small.tensors(dtype=ml_dtypes.bfloat16))
    with pytest.raises(errors.VerificationFailed, match=r"'model\.norm\.weight': differs"):
        export_checkpoint(path, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.apr"]
