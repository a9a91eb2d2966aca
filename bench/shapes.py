"""Public models by their numbers."""

from apr_jax.codec.qwen2 import Qwen2Config

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
