"""Attention: one public function, several implementations."""

from kernels.attention.api import (
    IMPLEMENTATIONS,
    attention,
    attention_and_lse,
    fastest,
    unsupported,
)
