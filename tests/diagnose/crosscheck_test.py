"""Every known mistake, made on purpose, is found and named."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from apr_jax.codec import open_apr, write_apr
from apr_jax.diagnose import crosscheck
from apr_jax.diagnose import forward as forward_lib
from apr_jax.errors import UserError
from apr_jax.model import qwen2
from tests.train.fixtures import TINY, write_model

Q = "model.layers.1.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
NORM = "model.norm.weight"
EMBED = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """bfloat16, as published checkpoints are."""
    folder = tmp_path_factory.mktemp("reference")
    tensors, metadata = _read(write_model(folder / "f32.apr"))
    write_apr(
        folder / "reference.apr",
        {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()},
        metadata,
    )
    return folder / "reference.apr"


def _read(path):
    with open_apr(path) as file:
        return {name: np.array(file.read(name)) for name in file.names}, dict(file.metadata)


def _changed(reference, tmp_path, change=None, **metadata):
    tensors, kept = _read(reference)
    if change is not None:
        change(tensors)
    write_apr(tmp_path / "changed.apr", tensors, kept | metadata)
    return crosscheck(tmp_path / "changed.apr", reference)


def _kinds(found):
    return {(fault["id"], fault["where"]) for fault in found["faults"]}


def test_a_copy_is_the_same_model(reference, tmp_path):
    found = _changed(reference, tmp_path)
    assert found["faults"] == [] and found["notes"] == []
    assert found["verdict"] == "the same model, and the forward pass computes it"
    assert found["tensors"] == len(TINY.tensors())
    assert 0 < found["forward_error"] < 1e-5


def test_another_precision_is_a_note(reference, tmp_path):
    def widen(tensors):
        tensors[UP] = tensors[UP].astype(np.float32)

    found = _changed(reference, tmp_path, widen)
    assert found["faults"] == []
    assert found["notes"] == [f"{UP}: float32 holds the values of bfloat16 exactly"]


def test_bfloat16_tagged_float16(reference, tmp_path):
    def retag(tensors):
        for name in tensors:
            tensors[name] = tensors[name].view(np.float16)

    found = _changed(reference, tmp_path, retag)
    assert _kinds(found) == {("MISLABELLED", name) for name in TINY.tensors()}
    assert found["logits"]["argmax_agreement"] < 0.5


def _transpose(tensors):
    tensors[UP] = np.ascontiguousarray(tensors[UP].T).reshape(tensors[UP].shape)


def _transpose_square(tensors):
    tensors[Q] = np.ascontiguousarray(tensors[Q].T)


def _interleave(tensors):
    rows = tensors[Q].reshape(TINY.num_heads, 2, TINY.head_dim // 2, -1).swapaxes(1, 2)
    tensors[Q] = np.ascontiguousarray(rows).reshape(tensors[Q].shape)


def _zero(tensors):
    tensors[UP] = np.zeros_like(tensors[UP])


def _scale(tensors):
    tensors[UP] = tensors[UP] * 2


def _shift(tensors):
    tensors[NORM] = tensors[NORM].astype(np.float32) - 1


def _spoil(tensors):
    tensors[UP][2, 3] = np.inf


def _permute(tensors):
    tensors[EMBED] = np.roll(tensors[EMBED], 1, axis=0)


def _exchange(tensors):
    tensors[UP], tensors[GATE] = tensors[GATE], tensors[UP]


def _flip_one(tensors):
    tensors[UP][4, 5] = -tensors[UP][4, 5]


@pytest.mark.parametrize(
    ("change", "kind", "where"),
    [
        (_transpose, "TRANSPOSED", UP),
        (_transpose_square, "TRANSPOSED", Q),
        (_interleave, "ROPE-PAIRING", Q),
        (_zero, "ZEROED", UP),
        (_scale, "SCALED", UP),
        (_shift, "SHIFTED", NORM),
        (_spoil, "NOT-FINITE", UP),
        (_permute, "PERMUTED", EMBED),
        (_flip_one, "DIFFERENT", UP),
    ],
)
def test_a_spoilt_tensor(reference, tmp_path, change, kind, where):
    found = _changed(reference, tmp_path, change)
    assert _kinds(found) == {(kind, where)}
    assert found["verdict"].startswith("another model")
    if kind == "NOT-FINITE":
        assert found["logits"] is None
    else:
        assert found["logits"]["relative_error"] > 0


def test_exchanged_tensors_are_named(reference, tmp_path):
    found = _changed(reference, tmp_path, _exchange)
    assert _kinds(found) == {("MISPLACED", UP), ("MISPLACED", GATE)}
    assert f"{GATE}: is the reference's {UP}, bit for bit" in found["verdict"]


def test_a_reference_that_lacks_a_tensor_is_none(reference, tmp_path):
    tensors, metadata = _read(reference)
    del tensors[UP]
    write_apr(tmp_path / "cut.apr", tensors, metadata)
    with pytest.raises(UserError, match=rf"is no reference.*1 missing \({UP}\)"):
        crosscheck(reference, tmp_path / "cut.apr")


def test_values_that_are_not_finite_are_none_of_a_reference(reference, tmp_path):
    tensors, metadata = _read(reference)
    _spoil(tensors)
    write_apr(tmp_path / "spoilt.apr", tensors, metadata)
    with pytest.raises(UserError, match=rf"is no reference: {UP} has 1 of 1,536 values"):
        crosscheck(tmp_path / "spoilt.apr", tmp_path / "spoilt.apr")


def test_a_forward_pass_that_overflows_has_a_report(reference, tmp_path):
    def enlarge(tensors):
        tensors[NORM] = (tensors[NORM].astype(np.float32) * 2e38).astype(ml_dtypes.bfloat16)

    found = _changed(reference, tmp_path, enlarge)
    assert found["faults"][0]["where"] == NORM
    assert found["forward_error"] is None
    json.dumps(found, allow_nan=False)


def test_a_missing_bias(reference, tmp_path):
    name = "model.layers.0.self_attn.k_proj.bias"
    found = _changed(reference, tmp_path, lambda tensors: tensors.pop(name))
    assert ("MISSING", name) in _kinds(found)
    assert found["forward_error"] is None


@pytest.mark.parametrize(("key", "value"), [("rope_theta", 1e4), ("rms_norm_eps", 1e-2)])
def test_a_wrong_number_in_the_configuration(reference, tmp_path, key, value):
    found = _changed(reference, tmp_path, **{key: value})
    assert _kinds(found) == {("CONFIG", key)}
    assert found["logits"]["relative_error"] > 1e-3


def test_a_wrong_forward_pass_is_found_at_its_operator(reference, tmp_path, monkeypatch):
    def adjacent_pairs(x_BTNH, positions_BT, theta):
        even_odd = np.r_[0 : TINY.head_dim : 2, 1 : TINY.head_dim : 2]
        return rotate(x_BTNH[..., even_odd], positions_BT, theta)

    rotate = qwen2._rotate
    monkeypatch.setattr(qwen2, "_rotate", adjacent_pairs)
    found = _changed(reference, tmp_path)
    assert _kinds(found) == {("FORWARD", "model.layers.0.self_attn.q_rope")}


def test_logits_of_equal_models_agree():
    logits_BTV = np.random.default_rng(0).normal(size=(1, 5, 11))
    found = forward_lib.compare_logits(logits_BTV, logits_BTV)
    assert found == {"relative_error": 0.0, "argmax_agreement": 1.0, "kl": 0.0}


def test_the_mathematics_of_kl():
    ours, wanted = np.log([[[0.5, 0.5]]]), np.log([[[0.9, 0.1]]])
    kl = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    np.testing.assert_allclose(forward_lib.compare_logits(ours, wanted)["kl"], kl)


def test_end_of_text_is_no_mathematics(reference, tmp_path):
    found = _changed(reference, tmp_path, **{"tokenizer.eos_token_id": 5})
    assert found["faults"] == []
    assert found["notes"] == ["eos_token_id is 5, the reference has 2"]
    assert dataclasses.asdict(TINY)["eos_token_id"] == 2
