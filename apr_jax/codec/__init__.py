"""Checkpoints as bytes: `.apr` v2, safetensors and GGUF, in and out."""

from apr_jax.codec.checkpoint import Checkpoint, open_checkpoint
from apr_jax.codec.diff import TensorDiff, diff_checkpoints
from apr_jax.codec.errors import AprError
from apr_jax.codec.exporter import export_checkpoint
from apr_jax.codec.importer import import_checkpoint
from apr_jax.codec.qwen2 import ConfigError, Coverage, Qwen2Config, TensorSpec, coverage
from apr_jax.codec.reader import AprFile, open_apr
from apr_jax.codec.writer import AprWriter, ArraySpec, write_apr
