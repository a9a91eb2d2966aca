"""The configuration goes through every file format unchanged, and nothing in it is guessed."""

import dataclasses

import numpy as np
import pytest

from apr_jax.codec import ConfigError, Coverage, Qwen2Config, coverage
from bench.shapes import QWEN2_5_0_5B
from tests.codec import small


@pytest.mark.parametrize("tied", [True, False])
def test_through_both_formats(tied):
    config = small.config(tied=tied)
    assert Qwen2Config.from_hf(config.to_hf("float32"), "f") == config
    assert Qwen2Config.from_apr(config.to_apr(), tied=tied, source="f") == config


def test_numbers_that_an_apr_file_rounded_to_float32():
    rounded = small.config().to_apr() | {"rms_norm_eps": float(np.float32(1e-6))}
    assert Qwen2Config.from_apr(rounded, tied=True, source="f").rms_norm_eps == 1e-6


def test_the_published_05b_model():
    assert len(QWEN2_5_0_5B.tensors()) == 290
    assert QWEN2_5_0_5B.num_parameters() == 494_032_768
    assert QWEN2_5_0_5B.tensors()["model.layers.23.self_attn.k_proj.weight"].shape == (128, 896)
    assert dataclasses.replace(QWEN2_5_0_5B, tied=False).num_parameters() == 630_167_424


def test_rope_theta_in_either_place_of_a_config_json():
    old = small.config().to_hf("float32")
    new = dict(old)
    del old["rope_parameters"], new["rope_theta"]
    assert Qwen2Config.from_hf(old, "f") == Qwen2Config.from_hf(new, "f") == small.config()


@pytest.mark.parametrize(
    "key",
    ["vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps"],
)
@pytest.mark.parametrize("value", [None, "8", 0, -1, True, 10**400, [8]], ids=lambda v: str(v)[:9])
def test_bad_numbers_of_a_config_json_are_named(key, value):
    config = small.config().to_hf("float32") | {key: value}
    with pytest.raises(ConfigError, match=f"f: .*{key}"):
        Qwen2Config.from_hf(config, "f")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"rope_scaling": {"type": "yarn"}},
        {"use_sliding_window": True},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": None},
        {"num_key_value_heads": 3},
        {"head_dim": 3},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"rope_scaling": "linear"},
        {"num_hidden_layers": 10**9},
        {"rope_theta": 1e300},
        {"initializer_range": "small"},
        {"eos_token_id": "</s>"},
        {"eos_token_id": [-1]},
    ],
    ids=str,
)
def test_other_architectures_are_refused(change):
    with pytest.raises(ConfigError):
        Qwen2Config.from_hf(small.config().to_hf("float32") | change, "f")


def test_of_several_ends_of_sequence_the_first_counts():
    hf = small.config().to_hf("float32") | {"eos_token_id": [7, 9], "bos_token_id": None}
    config = Qwen2Config.from_hf(hf, "f")
    assert (config.eos_token_id, config.bos_token_id) == (7, None)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "mistral"},
        {"architecture": ["qwen2"]},
        {"rope_type": 0},
        {"rope_type": None},
        {"num_layers": 2**62},
        {"tokenizer.eos_token_id": "x"},
    ],
    ids=str,
)
def test_other_architectures_of_an_apr_file_are_refused(change):
    with pytest.raises(ConfigError):
        Qwen2Config.from_apr(small.config().to_apr() | change, tied=True, source="f")


def test_coverage_names_what_is_missing_extra_and_of_another_shape():
    shapes = {name: spec.shape for name, spec in small.config().tensors().items()}
    assert coverage(small.config(), shapes) == Coverage(26, 26, (), (), ())
    assert coverage(small.config(), shapes).complete
    norm = shapes.pop("model.norm.weight")
    shapes |= {"extra": norm, "model.embed_tokens.weight": (8, 24)}
    found = coverage(small.config(), shapes)
    assert not found.complete
    assert found.missing == ("model.norm.weight",) and found.extra == ("extra",)
    assert found.shape_mismatch == (("model.embed_tokens.weight", (8, 24), (24, 8)),)
    assert "1 missing (model.norm.weight)" in found.describe()
