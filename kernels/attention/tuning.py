"""The kernels' sizes for a device and a head size, measured by `python -m bench.tune_attention`."""

import dataclasses
import functools
import json
import pathlib

import jax

from kernels.attention.backward import BackwardSizes
from kernels.attention.forward import ForwardSizes

HEAD_SIZES = (64, 128)
_TABLE = pathlib.Path(__file__).with_name("tuning.json")


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
