"""Our logits against HuggingFace's: recorded ones always, live ones where torch is installed."""

import importlib.util
import json
from typing import Any

import jax
import numpy as np
import pytest

from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.model import Qwen2, reference, to_tree
from tests.model import golden, small

CASES: dict[str, Any] = json.loads((golden.FOLDER / "index.json").read_text())["cases"]


def ours(config: Qwen2Config, named: dict[str, np.ndarray], ids_BT: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(Qwen2(config).apply)({"params": to_tree(named)}, ids_BT))


def load(case: str) -> tuple[Qwen2Config, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    config = Qwen2Config.from_hf(CASES[case]["config"], case)
    with np.load(golden.FOLDER / f"{case}.npz") as file:
        ids_BT, logits_BTV = file["ids_BT"], file["logits_BTV"]
    return config, small.weights(config, CASES[case]["seed"]), ids_BT, logits_BTV


def test_every_mix_is_recorded() -> None:
    configs = [Qwen2Config.from_hf(case["config"], name) for name, case in CASES.items()]
    assert {c.tied for c in configs if c.architecture == "llama"} == {True, False}
    mixes = {(c.tied, c.num_heads // c.num_kv_heads, c.head_dim) for c in configs}
    assert mixes == {
        (tied, group, head_dim)
        for tied in (True, False)
        for group in (1, 2, 6, 7, 8)
        for head_dim in (64, 128)
    }


@pytest.mark.parametrize("case", CASES)
def test_model_gives_huggingface_logits(case: str) -> None:
    config, named, ids_BT, want_BTV = load(case)
    assert np.abs(ours(config, named, ids_BT) - want_BTV).max() <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_reference_gives_huggingface_logits(case: str) -> None:
    config, named, ids_BT, want_BTV = load(case)
    error = np.abs(reference.forward(config, named, ids_BT)["logits"] - want_BTV).max()
    assert error <= 1e-5 * np.abs(want_BTV).max()


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: the recorded logits stand in for it",
)
@pytest.mark.parametrize("case", ["h64_g7_tied", "h128_g7_untied"])
def test_model_gives_live_huggingface_logits(case: str) -> None:
    import torch

    from tests.model.make_golden import build

    config, named, ids_BT, _ = load(case)
    ids_BT = ids_BT[:, ::-1].copy()
    with torch.no_grad():
        model = build(CASES[case]["config"], CASES[case]["seed"])
        want_BTV = model(torch.from_numpy(ids_BT).long()).logits.numpy()
    assert np.abs(ours(config, named, ids_BT) - want_BTV).max() <= 1e-4
