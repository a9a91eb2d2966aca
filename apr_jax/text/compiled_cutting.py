"""Finding where words start, compiled by XLA: what `cutting` does for each byte, in one pass."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from apr_jax.text.cutting import Cutter, marks
from apr_jax.text.on_cpu import apart, cpu
from apr_jax.text.pretokenizers import Rule


class CompiledCutter(Cutter):
    """A cutter for texts whose `room` is the same or one of few: it compiles for each."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self._device = cpu()
        self._compiled = jax.jit(functools.partial(_marks, rule, self.codes))

    def _marks(self, folded: np.ndarray, size: int) -> np.ndarray:
        with apart(self._device):
            return np.asarray(self._compiled(folded))[:size]


def _marks(rule: Rule, codes: bytes, folded: Any) -> Any:
    other, divider = codes[ord("!")], codes[0xFF]
    found = jnp.full(folded.shape, other, jnp.uint8)
    for first, last in _runs(codes):
        if codes[first] != other:
            is_here = folded - np.uint8(first) <= np.uint8(last - first)
            found = jnp.where(is_here, np.uint8(codes[first]), found)
    found = lax.optimization_barrier(found)  # or they are made for each use
    # Of the first and the last two apart, as padding every byte would cost as much as all else.
    ends = (
        marks(rule, jnp.concatenate([jnp.full(2, divider, jnp.uint8), found[:4]]), folded[:2]),
        marks(rule, jnp.concatenate([found[-4:], jnp.full(2, divider, jnp.uint8)]), folded[-2:]),
    )
    return jnp.concatenate([ends[0], marks(rule, found, folded[2:-2]), ends[1]])


def _runs(codes: bytes) -> list[tuple[int, int]]:
    """The first and the last of bytes of one code."""
    first = [byte for byte in range(256) if byte == 0 or codes[byte] != codes[byte - 1]]
    return [*zip(first, [*(byte - 1 for byte in first[1:]), 255], strict=True)]
