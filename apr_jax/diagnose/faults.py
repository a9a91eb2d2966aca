"""A fault: what is wrong, where, and by which evidence."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Fault:
    """One finding that makes a checkpoint, or the forward pass on it, another model.

    `id` is one of CONFIG, MISSING, EXTRA, SHAPE, MISLABELLED, TRANSPOSED, ROPE-PAIRING, ZEROED,
    SCALED, SHIFTED, NOT-FINITE, MISPLACED, PERMUTED, DIFFERENT, FORWARD.
    """

    id: str
    where: str
    says: str

    def to_json(self) -> dict[str, Any]:
        """The fault as plain values."""
        return dataclasses.asdict(self)
