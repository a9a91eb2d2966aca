"""The kernels' sizes for a device and a head size, measured by `python -m bench.tune_attention`."""

import dataclasses
import functools
import json
import pathlib

import jax

from kernels.attention.tiles import ROWS

HEAD_SIZES = (64, 128)
_TABLE = pathlib.Path(__file__).with_name("tuning.json")


@dataclasses.dataclass(frozen=True)
class ForwardSizes:
    """What decides the speed of the forward pass, not its result."""

    keys: int = 128  # in one tile
    warpgroups: int = 2  # that compute
    stages: int = 2  # tiles of keys in flight
    heads: int = 1  # of packed rows, whose blocks are short, that one block goes through in turn

    @property
    def queries(self) -> int:
        """In one block."""
        return self.warpgroups * ROWS


@dataclasses.dataclass(frozen=True)
class BackwardSizes:
    """What decides the speed of a backward kernel, not its result."""

    tile: int = 64  # keys, or queries, of one step
    warpgroups: int = 2  # that compute, each 64 of what the kernel owns
    stages: int = 2  # tiles in flight

    @property
    def owned(self) -> int:
        """Queries, or keys, of one block."""
        return self.warpgroups * ROWS


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of all three kernels."""

    forward: ForwardSizes
    grad_q: BackwardSizes
    grad_kv: BackwardSizes


def sizes(head_size: int) -> Sizes:
    """What was fastest on this device, or, where none was measured, on the H100."""
    table = _table()
    kind = jax.devices()[0].device_kind
    entry = table.get(kind, table[table["otherwise"]])[str(head_size)]
    return Sizes(
        ForwardSizes(**entry["forward"]),
        BackwardSizes(**entry["grad_q"]),
        BackwardSizes(**entry["grad_kv"]),
    )


@functools.cache
def _table() -> dict:
    return json.loads(_TABLE.read_text())
