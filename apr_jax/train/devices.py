"""What the devices are, and the choices that follow from them."""

import contextlib
import resource
from collections.abc import Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.model import attention_unsupported, fastest_attention, pallas_loss_unsupported
from apr_jax.train.config import TrainError

# Dense bfloat16 FLOP/s by the vendor's datasheet. A device that is not here gets no utilisation.
_PEAK_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
}


def model_options(
    compute_dtype: str, attention: str, *, mask_documents: bool, head_dim: int
) -> dict[str, Any]:
    """`load_model`'s options, with "auto" decided for the devices at hand.

    Raises:
      TrainError: the attention that was chosen cannot run.
    """
    on_gpu = jax.default_backend() == "gpu"
    if compute_dtype == "auto":
        compute_dtype = "bfloat16" if on_gpu else "float32"
    dtype = jnp.dtype(compute_dtype)
    if attention == "auto":
        attention = fastest_attention(dtype, head_dim, packed=mask_documents)
    reason = attention_unsupported(attention, dtype, head_dim, packed=mask_documents)
    if reason:
        raise TrainError(f"attention={attention!r} {reason}; take attention='xla'")
    return {"compute_dtype": dtype, "attention_impl": attention}


def choose_loss(choice: str, config: Qwen2Config, compute_dtype: Any) -> dict[str, str]:
    """`load_model`'s option `loss_impl`, with "auto" decided: "pallas" where it can run.

    Raises:
      TrainError: "pallas" was chosen and cannot run.
    """
    reason = pallas_loss_unsupported(config, compute_dtype)
    if choice == "pallas" and reason:
        raise TrainError(f"loss_impl='pallas' {reason}; take loss_impl='xla'")
    if choice == "auto":
        choice = "xla" if reason else "pallas"
    return {"loss_impl": choice}


@contextlib.contextmanager
def memory_explained(advice: str) -> Iterator[None]:
    """Turn a device that runs out of memory into one line with `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TrainError(f"the device's memory is too small for this: {advice}") from error


def versions() -> dict[str, str]:
    """The libraries that decide numbers, and the devices."""
    devices = jax.devices()
    return {
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "device": devices[0].device_kind,
        "devices": str(len(devices)),
        "backend": jax.default_backend(),
    }


def flops_per_token(config: Qwen2Config, seq_length: int) -> float:
    """Multiply-adds times two of forward and backward: 6 per weight, and causal attention."""
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * seq_length / 2
    weights = config.num_parameters()
    if not config.tied:
        weights -= config.vocab_size * config.hidden_size  # looked up, not multiplied
    return 6.0 * weights + attention


def utilisation(
    tokens_per_second: float, config: Qwen2Config, seq_length: int, devices: int
) -> float | None:
    """Share of the datasheet's bfloat16 rate that the model's own FLOPs reach; None if unknown."""
    peak = _PEAK_FLOPS.get(jax.devices()[0].device_kind)
    if peak is None:
        return None
    return tokens_per_second * flops_per_token(config, seq_length) / (peak * devices)


def peak_memory_bytes() -> int:
    """Largest memory so far: of the first device where it counts, else of this process."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
