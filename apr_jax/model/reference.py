"""Qwen2 once more, in NumPy float64 and in no hurry: the oracle for the model in `qwen2.py`.

It shares nothing with it but the config. The mathematics: RMSNorm (Zhang and Sennrich 2019), RoPE
(Su et al. 2021) as rotation of complex numbers, grouped queries (Ainslie et al. 2023), SwiGLU
(Shazeer 2020), put together as Qwen2 (Yang et al. 2024).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from apr_jax.codec.qwen2 import Qwen2Config


def forward(
    config: Qwen2Config,
    named: Mapping[str, Any],
    ids_BT: np.ndarray,
    segment_start_BT: np.ndarray | None = None,
    positions_BT: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every operator's result in float64, in the order of computation; the last is "logits".

    Args:
      named: arrays by the names of files, matrices [out, in].
      ids_BT, segment_start_BT, positions_BT: as `Qwen2.__call__` takes them.

    Returns:
      By HuggingFace's module names, such as "model.layers.0.mlp.gate_proj"; results that no
      module owns are "q_rope" and "k_rope" (BTNH, BSKH), "attention" (BTNH, before `o_proj`),
      "product" (of the gated unit) and "residual" (between attention and feed-forward).
    """
    B, T = ids_BT.shape
    if segment_start_BT is None:
        segment_start_BT = np.zeros((B, T), np.int64)
    if positions_BT is None:
        positions_BT = np.arange(T) - segment_start_BT
    positions_BT = np.broadcast_to(positions_BT, (B, T))
    return _Pass(config, named, segment_start_BT, positions_BT).run(ids_BT)


class _Pass:
    """One forward pass: its inputs, and the results so far."""

    def __init__(
        self,
        config: Qwen2Config,
        named: Mapping[str, Any],
        segment_start_BT: np.ndarray,
        positions_BT: np.ndarray,
    ) -> None:
        self.config, self.named = config, named
        self.segment_start_BT, self.positions_BT = segment_start_BT, positions_BT
        self.results: dict[str, np.ndarray] = {}

    def run(self, ids_BT: np.ndarray) -> dict[str, np.ndarray]:
        embedding = "model.embed_tokens"
        rows_BTD = np.asarray(self.named[f"{embedding}.weight"])[ids_BT]
        h_BTD = self._keep(embedding, rows_BTD.astype(np.float64))
        for layer in range(self.config.num_layers):
            h_BTD = self._block(f"model.layers.{layer}", h_BTD)
        h_BTD = self._norm("model.norm", h_BTD)
        head = embedding if self.config.tied else "lm_head"
        self._keep("logits", h_BTD @ self._read(f"{head}.weight").T)
        return self.results

    def _block(self, at: str, h_BTD: np.ndarray) -> np.ndarray:
        x_BTD = self._norm(f"{at}.input_layernorm", h_BTD)
        h_BTD = self._keep(f"{at}.residual", h_BTD + self._attention(f"{at}.self_attn", x_BTD))
        x_BTD = self._norm(f"{at}.post_attention_layernorm", h_BTD)
        return self._keep(at, h_BTD + self._feed_forward(f"{at}.mlp", x_BTD))

    def _attention(self, at: str, x_BTD: np.ndarray) -> np.ndarray:
        (B, T, _), H, bias = x_BTD.shape, self.config.head_dim, self.config.attention_bias
        q_BTNH = self._linear(f"{at}.q_proj", x_BTD, bias=bias).reshape(B, T, -1, H)
        k_BSKH = self._linear(f"{at}.k_proj", x_BTD, bias=bias).reshape(B, T, -1, H)
        v_BSKH = self._linear(f"{at}.v_proj", x_BTD, bias=bias).reshape(B, T, -1, H)
        q_BTNH = self._keep(f"{at}.q_rope", self._rotate(q_BTNH))
        k_BSKH = self._keep(f"{at}.k_rope", self._rotate(k_BSKH))
        group = self.config.num_heads // self.config.num_kv_heads
        out_BTNH = np.empty_like(q_BTNH)
        for b, t, n in np.ndindex(*q_BTNH.shape[:3]):
            seen = slice(self.segment_start_BT[b, t], t + 1)
            scores_S = k_BSKH[b, seen, n // group] @ q_BTNH[b, t, n] / np.sqrt(H)
            weights_S = np.exp(scores_S - scores_S.max())
            out_BTNH[b, t, n] = weights_S @ v_BSKH[b, seen, n // group] / weights_S.sum()
        self._keep(f"{at}.attention", out_BTNH)
        return self._linear(f"{at}.o_proj", out_BTNH.reshape(B, T, -1))

    def _rotate(self, x_BTNH: np.ndarray) -> np.ndarray:
        """Channels i and i + H/2 are a complex number; position p turns it by p * theta^(-2i/H)."""
        half = x_BTNH.shape[-1] // 2
        frequency_h = self.config.rope_theta ** (-np.arange(half) / half)
        turn_BTh = np.exp(1j * self.positions_BT[..., None] * frequency_h)
        turned_BTNh = (x_BTNH[..., :half] + 1j * x_BTNH[..., half:]) * turn_BTh[:, :, None]
        return np.concatenate([turned_BTNh.real, turned_BTNh.imag], axis=-1)

    def _feed_forward(self, at: str, x_BTD: np.ndarray) -> np.ndarray:
        gate_BTF = self._linear(f"{at}.gate_proj", x_BTD)
        up_BTF = self._linear(f"{at}.up_proj", x_BTD)
        sigmoid_BTF = (1 + np.tanh(gate_BTF / 2)) / 2
        product_BTF = self._keep(f"{at}.product", gate_BTF * sigmoid_BTF * up_BTF)
        return self._linear(f"{at}.down_proj", product_BTF)

    def _linear(self, at: str, x_BTI: np.ndarray, *, bias: bool = False) -> np.ndarray:
        y_BTO = x_BTI @ self._read(f"{at}.weight").T
        return self._keep(at, y_BTO + self._read(f"{at}.bias") if bias else y_BTO)

    def _norm(self, at: str, x_BTD: np.ndarray) -> np.ndarray:
        rms_BT1 = np.sqrt(np.mean(x_BTD**2, axis=-1, keepdims=True) + self.config.rms_norm_eps)
        return self._keep(at, x_BTD / rms_BT1 * self._read(f"{at}.weight"))

    def _read(self, name: str) -> np.ndarray:
        return np.asarray(self.named[name], np.float64)

    def _keep(self, name: str, value: np.ndarray) -> np.ndarray:
        self.results[name] = value
        return value
