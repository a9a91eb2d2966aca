"""From files to a model: the numbers that went in, or a refusal that says why."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from apr_jax.codec import export_checkpoint, import_checkpoint, write_apr
from apr_jax.codec.qwen2 import HEAD, ConfigError, Qwen2Config
from apr_jax.model import LoadError, load_model, reference, to_named
from tests.model import small

UNTIED = dataclasses.replace(small.CONFIG, tied=False)


def write(
    folder: pathlib.Path,
    named: dict[str, np.ndarray],
    config: Qwen2Config = small.CONFIG,
    **metadata: object,
) -> pathlib.Path:
    path = folder / "model.apr"
    write_apr(path, named, config.to_apr() | metadata)
    return path


@pytest.mark.parametrize("config", [small.CONFIG, UNTIED], ids=["tied", "untied"])
def test_an_apr_file_gives_its_logits(config: Qwen2Config, tmp_path: pathlib.Path) -> None:
    named, ids_BT = small.weights(config), small.ids(9)
    model, params = load_model(write(tmp_path, named, config))
    assert model.config == config
    for name, value in to_named(params).items():
        np.testing.assert_array_equal(value, named[name])
    want_BTV = reference.forward(config, named, ids_BT)["logits"]
    np.testing.assert_allclose(model.apply({"params": params}, ids_BT), want_BTV, atol=1e-5)


def test_a_folder_and_its_import_and_export_are_one_model(tmp_path: pathlib.Path) -> None:
    source, apr, export = tmp_path / "hf", tmp_path / "model.apr", tmp_path / "export"
    source.mkdir()
    save_file(small.weights(UNTIED), source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(UNTIED.to_hf("float32")))
    import_checkpoint(source, apr)
    export_checkpoint(apr, export)
    for path in (source, apr, export):
        model, params = load_model(path)
        assert model.config == UNTIED
        for name, value in small.weights(UNTIED).items():
            np.testing.assert_array_equal(to_named(params)[name], value)


def test_sixteen_bit_files_become_float32_masters(tmp_path: pathlib.Path) -> None:
    named = {name: value.astype(ml_dtypes.bfloat16) for name, value in small.weights().items()}
    model, params = load_model(write(tmp_path, named), compute_dtype=jnp.bfloat16, remat=True)
    assert model.compute_dtype == jnp.bfloat16 and model.remat
    for name, value in to_named(params).items():
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, named[name].astype(np.float32))


def test_param_dtype(tmp_path: pathlib.Path) -> None:
    _, params = load_model(write(tmp_path, small.weights()), param_dtype=jnp.bfloat16)
    assert {value.dtype for value in to_named(params).values()} == {jnp.dtype("bfloat16")}


def test_an_own_head_that_is_missing_is_missing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(LoadError, match=r"1 missing \(lm_head.weight\)"):
        load_model(write(tmp_path, small.weights(), UNTIED))


def test_missing_extra_and_misshapen_are_named(tmp_path: pathlib.Path) -> None:
    named = small.weights()
    del named["model.norm.weight"]
    named["model.layers.0.mlp.extra.weight"] = np.ones(3, np.float32)
    up = "model.layers.1.mlp.up_proj.weight"
    named[up] = np.ascontiguousarray(named[up].T)
    with pytest.raises(LoadError) as caught:
        load_model(write(tmp_path, named))
    message = str(caught.value)
    assert "1 missing (model.norm.weight)" in message
    assert "1 extra (model.layers.0.mlp.extra.weight)" in message
    assert f"{up} is [40, 56], needs [56, 40]" in message


@pytest.mark.parametrize("head", [False, True])
def test_a_file_without_biases_is_told_so(head: bool, tmp_path: pathlib.Path) -> None:
    named = {name: x for name, x in small.weights().items() if not name.endswith("_proj.bias")}
    if head:
        named[HEAD] = small.weights(UNTIED)[HEAD]
    config = UNTIED if head else small.CONFIG
    with pytest.raises(LoadError, match="all 6 biases of q, k and v are missing, as programs for"):
        load_model(write(tmp_path, named, config))


def test_one_missing_bias_is_not_taken_for_all(tmp_path: pathlib.Path) -> None:
    named = small.weights()
    del named["model.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(LoadError) as caught:
        load_model(write(tmp_path, named))
    assert "all" not in str(caught.value) and "1 missing" in str(caught.value)


def test_tensors_of_another_family_are_told_so(tmp_path: pathlib.Path) -> None:
    named = small.weights()
    named["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    with pytest.raises(LoadError, match="says qwen2, but the tensors are of qwen3"):
        load_model(write(tmp_path, named))


def test_metadata_of_another_family_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="'mistral'"):
        load_model(write(tmp_path, small.weights(), architecture="mistral"))
    with pytest.raises(LoadError, match="says llama, but the tensors are of qwen2"):
        load_model(write(tmp_path, small.weights(), architecture="llama"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float, tmp_path: pathlib.Path) -> None:
    named, name = small.weights(), "model.layers.1.mlp.up_proj.weight"
    named[name][3, 4] = bad
    with pytest.raises(LoadError, match=rf"{name} has 1 of 2,240 values that are not finite"):
        load_model(write(tmp_path, named))


def test_values_beyond_the_parameters_type_are_refused(tmp_path: pathlib.Path) -> None:
    named, name = small.weights(), "model.norm.weight"
    named[name][:] = 1e6
    with pytest.raises(LoadError, match=f"{name} has 40 of 40 .* in float16"):
        load_model(write(tmp_path, named), param_dtype=jnp.float16)


def test_integer_parameters_are_refused(tmp_path: pathlib.Path) -> None:
    named = small.weights()
    named["model.norm.weight"] = np.ones(40, np.int32)
    with pytest.raises(LoadError, match=r"model\.norm\.weight has type int32"):
        load_model(write(tmp_path, named))
