"""Attention: one public function, several implementations."""

from kernels.attention.api import IMPLEMENTATIONS, attention, fastest
