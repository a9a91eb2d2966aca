"""Typed access to what a file says of its model: nothing missing is guessed, nothing odd passes."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from apr_jax.errors import UserError, short

# What a file may claim: sizes that index arrays, and no more layers than can be listed at once.
MOST = 2**31 - 1
MOST_LAYERS = 10_000
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class ConfigError(UserError):
    """A model's configuration lacks a value, contradicts itself or is not plain Qwen2 or Llama."""


class Fields:
    """Typed access to a JSON object, with errors that name the file and the key."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values, self._source = values, source

    def count(self, key: str, most: int = MOST) -> int:
        value = self._get(key)
        if not _is_integer(value) or not 0 < value <= most:
            raise ConfigError(
                f"{self._source}: {key}={short(repr(value))} is not an integer from 1 to {most}"
            )
        return int(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key)
        if value is None:
            value = self._get(key) if default is None else default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value <= _FLOAT32_MAX
        ):
            raise ConfigError(
                f"{self._source}: {key}={short(repr(value))} is not a positive float32"
            )
        # .apr files hold these as float32; its shortest decimal is what their writers meant.
        return float(str(np.float32(value))) if float(np.float32(value)) == value else float(value)

    def token(self, key: str) -> int | None:
        """A token id; of a list (several ends of sequence) the first."""
        value = self._values.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is None:
            return None
        if not _is_integer(value) or not 0 <= value <= MOST:
            raise ConfigError(f"{self._source}: {key}={short(repr(value))} is not a token id")
        return int(value)

    def head_dim(self, key: str, hidden: int, heads: int) -> int:
        """The size of a head: what the file says, or else an equal share of the hidden size."""
        if self._values.get(key) is not None:
            return self.count(key)
        if hidden % heads:
            raise ConfigError(
                f"{self._source}: a hidden size of {hidden} does not divide among {heads} heads, "
                f"and there is no {key}"
            )
        return hidden // heads

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object; empty if the key is absent or null."""
        value = self._values.get(key) or {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self._source}: {key}={short(repr(value))} is not an object")
        return value

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise ConfigError(
                f"{self._source}: {key}={short(repr(value))} is neither true nor false"
            )
        return value

    def _get(self, key: str) -> Any:
        value = self._values.get(key)
        if value is None:
            raise ConfigError(
                f"{self._source}: has no {key}, and it is not guessed; add it to the file"
            )
        return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
