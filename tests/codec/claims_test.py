"""What metadata claims is held against the tensors and against what else it claims."""

import numpy as np
import pytest

from apr_jax.codec import errors, open_apr, open_checkpoint, write_apr
from apr_jax.codec.claims import family_of
from tests.codec import small


def apr(path, values=None, **changes):
    write_apr(path, values or small.finite_tensors(), small.config().to_apr() | changes)
    return path


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hf_architecture": "LlamaForCausalLM"}, "hf_architecture='LlamaForCausalLM' beside"),
        ({"hf_model_type": "llama"}, "hf_model_type='llama' beside architecture='qwen2'"),
        ({"model.rope_theta": 1e4}, r"rope_theta=1000000.0 but model.rope_theta=10000.0"),
        ({"model.rms_norm_eps": 1e-5}, "rms_norm_eps=1e-06 but model.rms_norm_eps=1e-05"),
    ],
)
def test_entries_that_contradict_each_other(tmp_path, changes, message):
    path = apr(tmp_path / "a.apr", **changes)
    with open_apr(path) as file:
        assert [type(problem) for problem in file.problems] == [errors.ArchitectureClaim]
    with pytest.raises(errors.ArchitectureClaim, match=message):
        open_checkpoint(path, strict=True)


def test_entries_that_agree_are_no_problem(tmp_path):
    with open_apr(apr(tmp_path / "a.apr", **{"model.rope_theta": 1e6})) as file:
        assert file.problems == []


@pytest.mark.parametrize(
    "extra, without, message",
    [
        ("model.layers.0.self_attn.q_norm.weight", "", "says qwen2, but the tensors are of qwen3,"),
        ("model.layers.0.self_attn.qkv_proj.weight", "", "the tensors are of phi3,"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "", "are of a mixture of experts,"),
        ("", "_proj.bias", "all 6 biases of q, k and v are missing"),
    ],
)
def test_tensors_of_another_family_are_named(tmp_path, extra, without, message):
    values = {
        name: array
        for name, array in small.finite_tensors().items()
        if not (without and name.endswith(without))
    }
    values |= {extra: np.ones(4, np.float32)} if extra else {}
    with (
        open_checkpoint(apr(tmp_path / "a.apr", values)) as checkpoint,
        pytest.raises(errors.IncompleteModel, match=message),
    ):
        checkpoint.require_complete()


def test_llama_is_told_from_qwen2_by_its_biases(tmp_path):
    names = list(small.config().tensors())
    assert family_of(names) == "qwen2"
    assert family_of([name for name in names if not name.endswith("bias")]) == "llama"
    assert family_of(["a"]) is None
    path = apr(tmp_path / "a.apr", architecture="llama")
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(errors.IncompleteModel, match="says llama, but the tensors are of qwen2;"),
    ):
        checkpoint.require_complete()
