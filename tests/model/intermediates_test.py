"""Every operator's result, from the model and from the reference, under the same names."""

import dataclasses

import numpy as np
import pytest

from apr_jax.model import Qwen2, intermediates, reference, to_tree
from tests.model import small

LAYER = [
    "input_layernorm",
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "q_rope", "k_rope")),
    "self_attn.attention",
    "self_attn.o_proj",
    "residual",
    "post_attention_layernorm",
    *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "product", "down_proj")),
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("remat", [True, False])
def test_operators_agree(remat: bool, tied: bool) -> None:
    config = dataclasses.replace(small.CONFIG, tied=tied)
    named, ids_BT = small.weights(config), small.ids(33)
    starts_BT = np.zeros((2, 33), np.int32)
    starts_BT[0, 10:] = 10
    starts_BT[1, 20:] = 20
    got = intermediates(
        Qwen2(config, remat=remat), to_tree(named), ids_BT, segment_start_BT=starts_BT
    )
    want = reference.forward(config, named, ids_BT, starts_BT)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == value.shape, name
        np.testing.assert_allclose(got[name], value, atol=1e-5 * np.abs(value).max(), err_msg=name)


def test_reference_is_in_order_of_computation() -> None:
    names = list(reference.forward(small.CONFIG, small.weights(), small.ids(3)))
    layers = [
        name
        for layer in range(2)
        for name in (
            *(f"model.layers.{layer}.{operator}" for operator in LAYER),
            f"model.layers.{layer}",
        )
    ]
    assert names == ["model.embed_tokens", *layers, "model.norm", "logits"]
