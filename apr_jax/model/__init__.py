"""Qwen2: parameters and token ids to logits and text."""

from apr_jax.model.generate import GenerateError, generate
from apr_jax.model.intermediates import intermediates
from apr_jax.model.load import LoadError, load_model
from apr_jax.model.params import init_params, to_named, to_tree
from apr_jax.model.qwen2 import Qwen2, pallas_loss_unsupported
from kernels.attention import fastest as fastest_attention
from kernels.attention import unsupported as attention_unsupported
