"""Names to trees and back, and new parameters."""

import dataclasses

import numpy as np

from apr_jax.model import init_params, to_named, to_tree
from tests.model import small


def test_paths_are_names() -> None:
    tree = to_tree({"model.layers.12.self_attn.q_proj.weight": 1, "lm_head.weight": 2})
    assert tree == {
        "model": {"layers_12": {"self_attn": {"q_proj": {"weight": 1}}}},
        "lm_head": {"weight": 2},
    }


def test_names_survive_the_tree() -> None:
    named = small.weights(dataclasses.replace(small.CONFIG, tied=False))
    assert to_named(to_tree(named)) == named


def test_init_follows_the_declaration() -> None:
    config = dataclasses.replace(small.CONFIG, vocab_size=2000)
    named = to_named(init_params(config, 0))
    assert named.keys() == config.tensors().keys()
    for name, spec in config.tensors().items():
        value = named[name]
        assert value.dtype == np.float32 and value.shape == spec.shape
        if spec.init == "normal":
            spread = 4 * config.initializer_range / np.sqrt(value.size)
            assert abs(value.mean()) < spread and abs(value.std() - 0.02) < spread
        else:
            assert np.all(value == (spec.init == "ones"))


def test_init_depends_on_seed_and_name_alone() -> None:
    deeper = dataclasses.replace(small.CONFIG, num_layers=3)
    one, again = (to_named(init_params(small.CONFIG, seed)) for seed in (0, 0))
    other, larger = to_named(init_params(small.CONFIG, 1)), to_named(init_params(deeper, 0))
    name = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(one[name], again[name])
    np.testing.assert_array_equal(one[name], larger[name])
    assert not np.any(one[name] == other[name])
    assert not np.any(one[name] == one["model.layers.0.mlp.up_proj.weight"])
