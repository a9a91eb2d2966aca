"""A Qwen2 small enough for tests, its sizes all different: no transpose fits by accident."""

import numpy as np

from apr_jax.codec.qwen2 import Qwen2Config
from tests.model import golden

CONFIG = Qwen2Config(
    vocab_size=61,
    hidden_size=40,
    intermediate_size=56,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tied=True,
)


def weights(config: Qwen2Config = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of `config` by name, none of them neutral."""
    return golden.weights({name: spec.shape for name, spec in config.tensors().items()}, seed)


def ids(length: int, *, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Random token ids BT, int32."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, CONFIG.vocab_size, (batch, length), dtype=np.int32)
