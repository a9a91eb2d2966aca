"""A GGUF file becomes the HuggingFace model that it was made from, and a model becomes a GGUF."""

import dataclasses
import json
import struct

import gguf
import ml_dtypes
import numpy as np
import pytest
import transformers
from gguf import GGMLQuantizationType as Type

from apr_jax.codec import (
    AprWriter,
    ArraySpec,
    ConfigError,
    errors,
    export_checkpoint,
    gguf_export,
    import_checkpoint,
    open_apr,
    open_checkpoint,
    write_apr,
)
from apr_jax.codec.compare import same_bits
from apr_jax.codec.qwen2 import HEAD
from apr_jax.errors import UserError
from tests.codec import ggufs, small

LLAMA = dataclasses.replace(ggufs.CONFIG, attention_bias=False)
Q = "model.layers.0.self_attn.q_proj.weight"
K = "model.layers.1.self_attn.k_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"
TYPES = {Q: Type.Q4_K, K: Type.Q6_K, DOWN: Type.Q8_0, UP: Type.BF16, ggufs.EMBEDDING: Type.F16}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [ggufs.CONFIG, LLAMA], ids=["qwen2", "llama"])
def test_a_file_opens_as_the_model_that_it_was_made_from(tmp_path, config, tied):
    config = dataclasses.replace(config, tied=tied)
    wanted = ggufs.write(tmp_path / "a.gguf", config, ggufs.values(config), TYPES)
    with open_checkpoint(tmp_path / "a.gguf", strict=True) as checkpoint:
        assert checkpoint.format == "gguf" and checkpoint.config == config
        assert checkpoint.names == sorted(wanted) and (HEAD in checkpoint.names) is not tied
        checkpoint.require_complete()
        for name, array in wanted.items():
            assert np.array_equal(checkpoint.read(name).astype(np.float32), array), name
        assert checkpoint.decoded == {DOWN: "Q8_0"}
        assert [checkpoint.stored(name) for name in (Q, K, DOWN, UP)] == [
            "Q4_K",
            "Q6_K",
            "F32",
            "BF16",
        ]


@pytest.mark.parametrize("config", [ggufs.CONFIG, LLAMA], ids=["qwen2", "llama"])
def test_import_keeps_stored_types_and_export_gives_the_same_tensors(tmp_path, config):
    wanted = ggufs.write(tmp_path / "a.gguf", config, ggufs.values(config), TYPES)
    result = import_checkpoint(tmp_path / "a.gguf", tmp_path / "a.apr")
    assert result["decoded"] == {DOWN: "Q8_0"} and result["notes"] == []
    assert result["tensors"][Q]["stored"] == "Q4_K"
    with open_apr(tmp_path / "a.apr", strict=True) as file:
        assert file.info(K).dtype == "Q6_K" and file.metadata["original_format"] == "gguf"
        assert file.metadata["architecture"] == config.architecture
        for name, array in wanted.items():
            assert np.array_equal(file.read(name).astype(np.float32), array), name
    done = export_checkpoint(tmp_path / "a.apr", tmp_path / "b.gguf")
    assert done["types"][Q] == "Q4_K" and done["types"][UP] == "BF16" and not done["decoded"]
    with (
        open_checkpoint(tmp_path / "a.gguf") as before,
        open_checkpoint(tmp_path / "b.gguf") as after,
    ):
        assert after.config == before.config
        for name in before.names:
            assert bytes(after.raw(name)) == bytes(before.raw(name)), name


def test_the_package_reads_what_is_exported(tmp_path):
    """Llama's rows lie as llama.cpp wants them; norms in 16 bits have become float32."""
    values = {name: array.astype(ml_dtypes.bfloat16) for name, array in ggufs.values(LLAMA).items()}
    write_apr(tmp_path / "a.apr", values, LLAMA.to_apr())
    export_checkpoint(tmp_path / "a.apr", tmp_path / "b.gguf")
    reader = gguf.GGUFReader(tmp_path / "b.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    query = gguf.dequantize(tensors["blk.0.attn_q.weight"].data, Type.BF16)
    assert np.array_equal(query, ggufs.permute(values[Q], 4).astype(np.float32))
    assert tensors["blk.0.attn_q.weight"].tensor_type == Type.BF16
    assert tensors["output_norm.weight"].tensor_type == Type.F32
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.rope.freq_base"].contents() == 1e6
    with pytest.raises(errors.FolderInUse, match="exists already"):
        export_checkpoint(tmp_path / "a.apr", tmp_path / "b.gguf")


def test_types_that_gguf_has_not_are_decoded(tmp_path):
    config = dataclasses.replace(ggufs.CONFIG, hidden_size=96, head_dim=24)
    values = ggufs.values(config)
    specs = {name: ArraySpec(np.float32, array.shape) for name, array in values.items()}
    specs |= {Q: ArraySpec("Q8", values[Q].shape), UP: ArraySpec("Q4_K", values[UP].shape)}
    with AprWriter(tmp_path / "a.apr", specs, config.to_apr()) as writer:
        for name, array in values.items():
            writer.add(name, array)
    done = export_checkpoint(tmp_path / "a.apr", tmp_path / "b.gguf")
    assert sorted(done["decoded"]) == [Q, UP]
    with (
        open_checkpoint(tmp_path / "a.apr") as before,
        open_checkpoint(tmp_path / "b.gguf") as after,
    ):
        assert all(same_bits(after.read(name), before.read(name)) for name in (Q, UP))


@pytest.mark.parametrize(
    "missing", ["rope.freq_base", "layer_norm_rms_epsilon", "context_length", "head_count_kv"]
)
def test_a_missing_key_is_not_guessed(tmp_path, missing):
    ggufs.write(
        tmp_path / "a.gguf",
        small.config(),
        small.finite_tensors(dtype=np.float32),
        without=(missing,),
    )
    with pytest.raises(ConfigError, match=f"has no qwen2.*{missing}, and it is not guessed"):
        open_checkpoint(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"qwen2.rope.scaling.type": "yarn"}, "only plain RoPE"),
        ({"qwen2.rope.scaling.factor": 4.0}, "factor=4.0 .* only plain RoPE"),
        ({"qwen2.rope.scale_linear": 4.0}, "scale_linear=4.0 .* only plain RoPE"),
        ({"qwen2.rope.scaling.type": ["none"]}, "only plain RoPE"),
        ({"qwen2.vocab_size": [24]}, r"vocab_size=\[24\]"),
        ({"qwen2.expert_count": 8}, "expert_count=8"),
        ({"qwen2.rope.dimension_count": 2}, "dimension_count=2"),
        ({"qwen2.vocab_size": 25}, "vocab_size=25 beside 24 rows"),
        ({"split.count": 3}, "one of 3 parts"),
    ],
)
def test_what_changes_the_forward_pass_is_refused(tmp_path, keys, message):
    ggufs.write(
        tmp_path / "a.gguf", small.config(), small.finite_tensors(dtype=np.float32), keys=keys
    )
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    "keys",
    [
        {"qwen2.rope.scaling.type": "none", "qwen2.rope.scaling.factor": 4.0},
        {"qwen2.rope.scaling.factor": 1.0},
    ],
    ids=str,
)
def test_what_scales_nothing_is_plain(tmp_path, keys):
    values = small.finite_tensors(dtype=np.float32)
    ggufs.write(tmp_path / "a.gguf", small.config(), values, keys=keys)
    with open_checkpoint(tmp_path / "a.gguf") as checkpoint:
        assert checkpoint.config.rope_theta == small.config().rope_theta


def test_numbers_are_rounded_to_the_float32_of_gguf(tmp_path):
    given = {"rope_theta": 10000.123456, "rms_norm_eps": 1.23456789e-6, "initializer_range": 1 / 24}
    config = dataclasses.replace(small.config(), **given)
    write_apr(tmp_path / "a.apr", small.finite_tensors(dtype=np.float32), config.to_apr())
    notes = export_checkpoint(tmp_path / "a.apr", tmp_path / "a.gguf")["notes"]
    assert "rope_theta=10000.123456 is 10000.123 in GGUF, which has float32" in notes
    with open_checkpoint(tmp_path / "a.gguf") as checkpoint:
        for name, number in given.items():
            assert np.float32(getattr(checkpoint.config, name)) == np.float32(number)


def test_what_float32_has_not_is_refused_before_anything_is_written(tmp_path):
    config = dataclasses.replace(small.config(), rms_norm_eps=1e-50)
    write_apr(tmp_path / "a.apr", small.finite_tensors(dtype=np.float32), config.to_apr())
    with pytest.raises(ConfigError, match="rms_norm_eps=1e-50 is no positive number in float32"):
        export_checkpoint(tmp_path / "a.apr", tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.apr"]


def test_a_gguf_that_reads_back_differently_gets_no_name(tmp_path, monkeypatch):
    config = small.config()
    write_apr(tmp_path / "a.apr", small.finite_tensors(dtype=np.float32), config.to_apr())
    rows = gguf_export._rows
    monkeypatch.setattr(gguf_export, "_rows", lambda *arguments: rows(*arguments) ^ 1)
    with pytest.raises(errors.VerificationFailed, match="differs"):
        export_checkpoint(tmp_path / "a.apr", tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.apr"]


def test_other_architectures_are_refused_by_name(tmp_path):
    ggufs.write(
        tmp_path / "a.gguf",
        small.config(),
        small.finite_tensors(dtype=np.float32),
        architecture="gemma3",
    )
    with pytest.raises(ConfigError, match=r"general\.architecture is 'gemma3', only 'qwen2' and"):
        open_checkpoint(tmp_path / "a.gguf")


def test_missing_and_left_over_tensors_are_named(tmp_path):
    values = small.finite_tensors(dtype=np.float32) | {"rope_freqs.weight": np.ones(2, np.float32)}
    del values["model.norm.weight"]
    ggufs.write(tmp_path / "a.gguf", small.config(), values)
    with pytest.raises(errors.IncompleteModel, match=r"1 missing .*1 extra \(rope_freqs") as caught:
        import_checkpoint(tmp_path / "a.gguf", tmp_path / "a.apr")
    assert caught.value.coverage.missing == ("model.norm.weight",)


def sound(tmp_path):
    ggufs.write(
        tmp_path / "a.gguf",
        small.config(),
        small.finite_tensors(dtype=np.float32),
        keys={"numbers": [1, 2, 3], "words": ["a", "b"]},
    )
    return (tmp_path / "a.gguf").read_bytes()


def test_a_file_cut_or_changed_anywhere_is_refused_in_one_line_or_opens(tmp_path):
    data = sound(tmp_path)
    rng = np.random.default_rng(0)
    cuts = [data[:end] for end in rng.integers(4, len(data) - 1, 60)]
    changes = []
    for at in rng.integers(4, min(len(data), 2500), 300):
        changed = bytearray(data)
        changed[at] = rng.integers(256)
        changes.append(bytes(changed))
    path = tmp_path / "b.gguf"
    for content in cuts + changes:
        path.write_bytes(content)
        try:
            with open_checkpoint(path) as checkpoint:
                for name in checkpoint.names:
                    checkpoint.read(name)
                checkpoint.companion_files()
        except UserError as error:
            assert "\n" not in str(error)
    for content in cuts:
        path.write_bytes(content)
        with pytest.raises(errors.InvalidGguf):
            open_checkpoint(path)


@pytest.mark.parametrize("count", [2**62, 2**40, 2**21 + 1])
@pytest.mark.parametrize("key, kind", [("numbers", 5), ("words", 8)])
def test_counts_are_bounded_before_anything_is_made_of_them(tmp_path, key, kind, count):
    data = sound(tmp_path)
    at = data.index(key.encode()) + len(key) + 4
    assert struct.unpack_from("<I", data, at)[0] in (kind, 4, 5)
    (tmp_path / "b.gguf").write_bytes(data[: at + 4] + struct.pack("<Q", count) + data[at + 12 :])
    with pytest.raises(errors.InvalidGguf, match="not a sound GGUF file"):
        open_checkpoint(tmp_path / "b.gguf")


@pytest.mark.parametrize("at", [8, 16])
def test_counts_of_tensors_and_keys_are_bounded(tmp_path, at):
    data = sound(tmp_path)
    (tmp_path / "b.gguf").write_bytes(data[:at] + struct.pack("<Q", 2**61) + data[at + 8 :])
    with pytest.raises(errors.InvalidGguf, match="too many"):
        open_checkpoint(tmp_path / "b.gguf")


def test_tensors_that_share_bytes_are_refused(tmp_path):
    data = bytearray(sound(tmp_path))
    name = b"output_norm.weight"
    place = data.index(name) + len(name) + 4 + 8 + 4
    data[place : place + 8] = bytes(8)
    (tmp_path / "b.gguf").write_bytes(data)
    with pytest.raises(errors.InvalidGguf, match="shares bytes with"):
        open_checkpoint(tmp_path / "b.gguf")


def test_a_llama_folder_becomes_a_llama_file_and_back(tmp_path):
    values = ggufs.values(LLAMA)
    import_checkpoint(small.hf_folder(tmp_path / "hf", values, model=LLAMA), tmp_path / "a.apr")
    export_checkpoint(tmp_path / "a.apr", tmp_path / "back")
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert isinstance(
        transformers.AutoConfig.from_pretrained(tmp_path / "back"), transformers.LlamaConfig
    )
    with open_checkpoint(tmp_path / "back") as back:
        assert back.config == LLAMA
        assert all(same_bits(back.read(name), array) for name, array in values.items())


def test_big_endian_files_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(errors.InvalidGguf, match="big-endian files are not supported"):
        open_checkpoint(tmp_path / "a.gguf")
