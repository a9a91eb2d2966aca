"""Qwen2 in Flax Linen. Its parameter tree is the file's names, its matrices are [out, in] as there.

Letters in shapes: B batch, T query position, S key position, D model, N query heads, K key-value
heads, H head size, F feed-forward, V vocabulary; I and O are the in and out of any matrix.

The stream between the blocks has `compute_dtype`; parameters are cast where they are used.
Flax puts every module under a `jax.named_scope`, so profiles show `model.layers_0.mlp`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from apr_jax.codec.qwen2 import Qwen2Config, TensorSpec
from apr_jax.model.params import to_name
from kernels.attention import attention
from kernels.loss import linear_cross_entropy, unsupported


class Qwen2(nn.Module):
    """The causal language model.

    Attributes:
      config: everything that decides the mathematics.
      compute_dtype: of matrix products and of the stream between blocks.
      attention_impl: "xla", "cudnn" or "pallas", as `kernels.attention.attention` takes it.
      loss_impl: "xla" or "pallas", as `kernels.loss.linear_cross_entropy` takes it.
      remat: recompute each block in the backward pass instead of keeping its activations.
    """

    config: Qwen2Config
    compute_dtype: Any = jnp.float32
    attention_impl: str = "xla"
    loss_impl: str = "xla"
    remat: bool = False

    def setup(self) -> None:
        self.model = Decoder(self.config, self.compute_dtype, self.attention_impl, self.remat)
        if not self.config.tied:
            self.lm_head = Embedding(self.config)

    def __call__(
        self,
        ids_BT: jax.Array,
        segment_start_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits BTV in float32 of the token after each id.

        Args:
          ids_BT: int32, each below the number of vocabulary rows.
          segment_start_BT: int32, for rows packed with several documents: where in its row each
            token's document starts. Tokens see their own document only.
          positions_BT: int32, for RoPE; None counts from the start of the row, or of the segment.
        """
        return self.logits(self.hidden(ids_BT, segment_start_BT, positions_BT))

    def hidden(
        self,
        ids_BT: jax.Array,
        segment_start_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
    ) -> jax.Array:
        """What the head reads, BTD in `compute_dtype`, by `model.apply(..., method="hidden")`."""
        return self.model(ids_BT, segment_start_BT, positions_BT)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """The head alone: BTV in float32."""
        return self._head().attend(x_BTD)

    def cross_entropy(
        self,
        ids_BT: jax.Array,
        targets_BT: jax.Array,
        weights_BT: jax.Array,
        segment_start_BT: jax.Array | None = None,
        z_loss: float = 0.0,
    ) -> tuple[jax.Array, jax.Array]:
        """What training minimises and, without gradient, the nats alone: float32 sums over targets,
        without the logits in memory, by `model.apply(..., method="cross_entropy")`.

        A target's nats are its negative log-likelihood. What is minimised has, for each, also
        `z_loss` times the square of the log-normaliser; both are weighted.
        """
        objective, nats_BT = linear_cross_entropy(
            self.hidden(ids_BT, segment_start_BT),
            self._head().weight_VD,
            targets_BT,
            weights_BT,
            z_loss=z_loss,
            impl=self.loss_impl,
        )
        return objective, jnp.sum(jnp.where(weights_BT == 0, 0.0, weights_BT * nats_BT))

    def _head(self) -> "Embedding":
        return self.model.embed_tokens if self.config.tied else self.lm_head


class Decoder(nn.Module):
    """Everything but the head."""

    config: Qwen2Config
    compute_dtype: Any
    attention_impl: str
    remat: bool

    def setup(self) -> None:
        block = nn.remat(Block) if self.remat else Block
        self.embed_tokens = Embedding(self.config)
        # Unrolled: on an H100 scanned layers trained at 0.79 of the speed in 1.5 times the memory.
        self.layers = [
            block(self.config, self.attention_impl) for _ in range(self.config.num_layers)
        ]
        self.norm = RMSNorm(self.config)

    def __call__(
        self,
        ids_BT: jax.Array,
        segment_start_BT: jax.Array | None,
        positions_BT: jax.Array | None,
    ) -> jax.Array:
        if positions_BT is None:
            positions_BT = jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
            if segment_start_BT is not None:
                positions_BT = positions_BT - segment_start_BT
        x_BTD = self.embed_tokens(ids_BT).astype(self.compute_dtype)
        for layer in self.layers:
            x_BTD = layer(x_BTD, segment_start_BT, positions_BT)
        return self.norm(x_BTD)


class Block(nn.Module):
    """Attention and feed-forward, each on the normalised stream and added back to it."""

    config: Qwen2Config
    attention_impl: str

    def setup(self) -> None:
        self.input_layernorm = RMSNorm(self.config)
        self.self_attn = Attention(self.config, self.attention_impl)
        self.post_attention_layernorm = RMSNorm(self.config)
        self.mlp = MLP(self.config)

    def __call__(
        self,
        x_BTD: jax.Array,
        segment_start_BT: jax.Array | None,
        positions_BT: jax.Array,
    ) -> jax.Array:
        x_BTD += self.self_attn(self.input_layernorm(x_BTD), segment_start_BT, positions_BT)
        self.sow("intermediates", "residual", x_BTD)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Attention(nn.Module):
    """Causal self-attention with grouped queries and half-split RoPE.

    With a "cache" collection (see `apr_jax.model.generate`) keys and values are written there, at
    the place that `positions_BT` names, and queries read all that the cache holds up to their own.
    """

    config: Qwen2Config
    attention_impl: str

    def setup(self) -> None:
        self.q_proj, self.k_proj = Linear(self.config), Linear(self.config)
        self.v_proj, self.o_proj = Linear(self.config), Linear(self.config)

    def __call__(
        self,
        x_BTD: jax.Array,
        segment_start_BT: jax.Array | None,
        positions_BT: jax.Array,
    ) -> jax.Array:
        (B, T, _), H, theta = x_BTD.shape, self.config.head_dim, self.config.rope_theta
        q_BTNH = _rotate(self.q_proj(x_BTD).reshape(B, T, -1, H), positions_BT, theta)
        k_BSKH = _rotate(self.k_proj(x_BTD).reshape(B, T, -1, H), positions_BT, theta)
        v_BSKH = self.v_proj(x_BTD).reshape(B, T, -1, H)
        self.sow("intermediates", "q_rope", q_BTNH)
        self.sow("intermediates", "k_rope", k_BSKH)
        q_offset: int | jax.Array = 0
        if self.has_variable("cache", "k_BSKH"):
            q_offset = positions_BT[0, 0]
            k_BSKH = self._extend_cache("k_BSKH", k_BSKH, q_offset)
            v_BSKH = self._extend_cache("v_BSKH", v_BSKH, q_offset)
        out_BTNH = attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            segment_start_BT=segment_start_BT,
            q_offset=q_offset,
            impl=self.attention_impl,
        )
        self.sow("intermediates", "attention", out_BTNH)
        return self.o_proj(out_BTNH.reshape(B, T, -1))

    def _extend_cache(self, name: str, new_BTKH: jax.Array, place: jax.Array) -> jax.Array:
        cache_BSKH = self.get_variable("cache", name)
        cache_BSKH = jax.lax.dynamic_update_slice_in_dim(cache_BSKH, new_BTKH, place, axis=1)
        self.put_variable("cache", name, cache_BSKH)
        return cache_BSKH


class MLP(nn.Module):
    """SwiGLU."""

    config: Qwen2Config

    def setup(self) -> None:
        self.gate_proj, self.up_proj = Linear(self.config), Linear(self.config)
        self.down_proj = Linear(self.config)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        product_BTF = _gated(self.gate_proj(x_BTD), self.up_proj(x_BTD))
        self.sow("intermediates", "product", product_BTF)
        return self.down_proj(product_BTF)


class Linear(nn.Module):
    """x @ W.T, plus a bias where the declaration has one."""

    config: Qwen2Config

    @nn.compact
    def __call__(self, x_BTI: jax.Array) -> jax.Array:
        weight_OI = _parameter(self, "weight").astype(x_BTI.dtype)
        y_BTO = jnp.einsum("BTI,OI->BTO", x_BTI, weight_OI, precision=_precision(x_BTI))
        if to_name((*self.path, "bias")) in _declared(self.config):
            y_BTO += _parameter(self, "bias").astype(y_BTO.dtype)[None, None]
        return y_BTO


class Embedding(nn.Module):
    """One row of D for each vocabulary id: looked up by id, or as a head that scores every row."""

    config: Qwen2Config

    def setup(self) -> None:
        self.weight_VD = _parameter(self, "weight")

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        # `take` gives NaN for an id that has no row, where indexing would give some other row.
        return jnp.take(self.weight_VD, ids_BT, axis=0)

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        return jnp.einsum(
            "BTD,VD->BTV",
            x_BTD,
            self.weight_VD.astype(x_BTD.dtype),
            precision=_precision(x_BTD),
            preferred_element_type=jnp.float32,
        )


class RMSNorm(nn.Module):
    """Divides by the root mean square. No mean is subtracted and no bias is added."""

    config: Qwen2Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        # In float32: the mean of D squares needs more than 8 bits.
        x32_BTD = x_BTD.astype(jnp.float32)
        mean_BT1 = jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True)
        normed_BTD = x32_BTD * jax.lax.rsqrt(mean_BT1 + self.config.rms_norm_eps)
        return (normed_BTD * _parameter(self, "weight")[None, None]).astype(x_BTD.dtype)


@jax.checkpoint
def _gated(gate_BTF: jax.Array, up_BTF: jax.Array) -> jax.Array:
    """silu(gate) * up.

    Marked so that the backward pass shares nothing with the forward pass but `gate` and `up`: then
    XLA makes both gradients in one kernel, not two, and a step on an H100 is 1.02 times as fast.
    """
    return nn.silu(gate_BTF) * up_BTF


def pallas_loss_unsupported(config: Qwen2Config, compute_dtype: Any) -> str | None:
    """Why `loss_impl="pallas"` cannot run such a model here; None if it can."""
    return unsupported(compute_dtype, config.vocab_size, config.hidden_size)


def _rotate(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """RoPE, half-split: channel i turns with channel i + H/2 by position * theta^(-2i/H)."""
    H = x_BTNH.shape[-1]
    frequency_h = (theta ** (-np.arange(0, H, 2) / H)).astype(np.float32)
    # In float32: bfloat16 cannot even count the positions past 256.
    angle_BT1h = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_h[None, None, None]
    cos_BT1h, sin_BT1h = jnp.cos(angle_BT1h), jnp.sin(angle_BT1h)
    a_BTNh, b_BTNh = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    halves = (a_BTNh * cos_BT1h - b_BTNh * sin_BT1h, b_BTNh * cos_BT1h + a_BTNh * sin_BT1h)
    return jnp.concatenate(halves, axis=-1).astype(x_BTNH.dtype)


def _precision(x: jax.Array) -> jax.lax.Precision | None:
    """float32 is meant when asked for: by default GPUs would multiply it in TF32."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


@functools.cache
def _declared(config: Qwen2Config) -> dict[str, TensorSpec]:
    return config.tensors()


def _parameter(module: nn.Module, leaf: str) -> jax.Array:
    """The float32 parameter `leaf` of a module; shape and start come from `Qwen2Config.tensors`."""
    spec = _declared(module.config)[to_name((*module.path, leaf))]
    initializers = {
        "normal": nn.initializers.normal(module.config.initializer_range),
        "zeros": nn.initializers.zeros,
        "ones": nn.initializers.ones,
    }
    return module.param(leaf, initializers[spec.init], spec.shape, jnp.float32)
