"""Choices that follow from the devices, and the arithmetic of utilisation."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import pytest

from apr_jax.train import TrainError, devices
from bench.shapes import QWEN2_5_0_5B


def test_flops_of_the_half_billion_model():
    found = devices.flops_per_token(QWEN2_5_0_5B, 2048)
    assert found == 6 * 494_032_768 + 12 * 24 * 896 * 2048 / 2


def test_an_untied_embedding_is_looked_up_and_not_multiplied():
    untied = dataclasses.replace(QWEN2_5_0_5B, tied=False)
    assert devices.flops_per_token(untied, 8) == devices.flops_per_token(QWEN2_5_0_5B, 8)


def test_utilisation_is_known_for_known_devices_only(monkeypatch):
    assert devices.utilisation(1e5, QWEN2_5_0_5B, 2048, 1) is None
    h100 = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(jax, "devices", lambda: [h100])
    found = devices.utilisation(121_600, QWEN2_5_0_5B, 2048, 1)
    assert found == pytest.approx(0.397, abs=5e-4)
    assert devices.utilisation(121_600, QWEN2_5_0_5B, 2048, 2) == pytest.approx(found / 2)


@pytest.mark.parametrize(
    ("backend", "capability", "mask", "head_dim", "dtype", "attention"),
    [
        ("cpu", None, False, 64, "float32", "xla"),
        ("gpu", "9.0", False, 64, "bfloat16", "pallas"),
        ("gpu", "9.0", True, 128, "bfloat16", "pallas"),
        ("gpu", "9.0", False, 256, "bfloat16", "cudnn"),
        ("gpu", "9.0", False, 20, "bfloat16", "pallas"),
        ("gpu", "8.0", False, 64, "bfloat16", "cudnn"),
        ("gpu", "8.0", True, 64, "bfloat16", "xla"),
        ("gpu", "8.0", False, 20, "bfloat16", "xla"),
    ],
)
def test_auto_takes_what_fits(monkeypatch, backend, capability, mask, head_dim, dtype, attention):
    device = types.SimpleNamespace(compute_capability=capability, device_kind="a device")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    options = devices.model_options("auto", "auto", mask_documents=mask, head_dim=head_dim)
    assert options == {"compute_dtype": jnp.dtype(dtype), "attention_impl": attention}


@pytest.mark.parametrize(
    ("attention", "backend", "reason"),
    [
        ("pallas", "cpu", "attention='pallas' needs a CUDA GPU, and JAX computes on 'cpu' here"),
        ("cudnn", "gpu", "attention='cudnn' has no mask for packed rows"),
        ("pallas", "gpu", "attention='pallas' needs a Hopper GPU (H100, H200), not 'a device'"),
    ],
)
def test_attention_that_cannot_run_is_refused(monkeypatch, attention, backend, reason):
    device = types.SimpleNamespace(compute_capability="8.0", device_kind="a device")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    with pytest.raises(TrainError, match=f"{re.escape(reason)}.*; take attention='xla'"):
        devices.model_options("bfloat16", attention, mask_documents=True, head_dim=64)


def test_the_loss_is_the_kernel_where_it_can_run(monkeypatch):
    def chosen(choice, reason):
        monkeypatch.setattr(devices, "pallas_loss_unsupported", lambda config, dtype: reason)
        return devices.choose_loss(choice, QWEN2_5_0_5B, jnp.bfloat16)["loss_impl"]

    assert chosen("auto", None) == chosen("pallas", None) == "pallas"
    assert chosen("auto", "is slow") == chosen("xla", "is slow") == chosen("xla", None) == "xla"
    with pytest.raises(TrainError, match="loss_impl='pallas' is slow; take loss_impl='xla'"):
        chosen("pallas", "is slow")


def test_only_memory_is_explained():
    with pytest.raises(TrainError, match="too small for this: buy more"):
        with devices.memory_explained("buy more"):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 1 GB")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with devices.memory_explained("buy more"):
            raise jax.errors.JaxRuntimeError("INTERNAL: no")
