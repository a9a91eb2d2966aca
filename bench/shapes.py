"""Public models by their numbers, and files of that shape."""

import pathlib

import ml_dtypes

from apr_jax.codec import write_apr
from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.model import init_params, to_named

QWEN2_5_0_5B = Qwen2Config(
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    max_position_embeddings=32_768,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tied=True,
    bos_token_id=151_643,
    eos_token_id=151_643,
)


def write_random_model(path: pathlib.Path, config: Qwen2Config) -> None:
    """A bfloat16 `.apr` of random values."""
    named = to_named(init_params(config, seed=0))
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in named.items()}
    write_apr(path, tensors, config.to_apr())
