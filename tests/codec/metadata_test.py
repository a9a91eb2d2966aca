"""The JSON object: typed as the reference reader types it, and the same when null or absent."""

import pytest

from apr_jax.codec import errors, metadata


def test_null_is_absent_but_for_the_keys_that_always_stand():
    assert metadata.normalise({"author": None, "num_layers": None, "mine": None}) == {
        "model_type": "",
        "license": None,
        "data_source": None,
        "data_license": None,
        "total_size": 0,
        "param_count": 0,
        "mine": None,
    }


def test_known_keys_come_first_in_the_order_of_the_format():
    values = {"zeta": 1, "rope_theta": 1.0, "name": "n", "alpha": 2, "model_type": "m"}
    order = [key for key in metadata.normalise(values) if key in values]
    assert order == ["model_type", "name", "rope_theta", "zeta", "alpha"]


def test_objects_and_numbers_of_the_right_types_pass():
    values = {
        "quantization": {"quant_type": "q4", "bits": 4, "symmetric": True, "block_size": None},
        "sharding": {"shard_count": 2, "shard_index": 0, "total_size": 9, "pattern": None},
        "special_tokens": {"bos_token": "<s>", "eos_token": None},
        "rope_theta": 10000,
        "rope_type": 2**32 - 1,
        "total_size": 2**64 - 1,
    }
    assert metadata.parse(metadata.dump(values, "f"), "f") == metadata.normalise(values)


@pytest.mark.parametrize(
    "values, key",
    [
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"name": 3}, "name"),
        ({"rope_type": 2**32}, "rope_type"),
        ({"model_type": None}, "model_type"),
        ({"quantization": {"quant_type": "q", "bits": 256, "symmetric": True}}, "quantization"),
        ({"special_tokens": {"bos_token": 1}}, "special_tokens"),
        ({"mine": float("nan")}, "JSON"),
        ({"mine": object()}, "JSON"),
        ({"mine": "\ud800"}, "JSON"),
        ({1: "x"}, "JSON"),
    ],
)
def test_what_would_not_be_read_is_not_written(values, key):
    with pytest.raises(errors.MetadataError, match=f"f: metadata .*{key}"):
        metadata.dump(values, "f")


@pytest.mark.parametrize(
    "pair", [("num_layers", "n_layer"), ("rms_norm_eps", "norm_eps"), ("vocab_size", "n_vocab")]
)
def test_a_key_beside_its_alias_is_not_written(pair):
    with pytest.raises(errors.MetadataAlias, match=f"{pair[0]} and {pair[1]}.*keep {pair[0]}"):
        metadata.dump(dict.fromkeys(pair, 1), "f")
    assert metadata.parse(metadata.dump({pair[1]: 1}, "f"), "f")[pair[1]] == 1


def test_of_duplicate_keys_the_last_counts():
    assert metadata.parse(b'{"hidden_size":"x","hidden_size":2}', "f") == {"hidden_size": 2}


def test_metadata_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "MAX_BYTES", 10)
    with pytest.raises(errors.MetadataError, match="11 bytes"):
        metadata.parse(b'{"ab":1234}', "f")
