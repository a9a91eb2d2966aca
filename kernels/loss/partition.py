"""How the loss is cut over the devices of a mesh: by tokens.

The compiler alone would sum the rows' gradient over devices once a chunk.

Letters in shapes: M tokens, D model, V vocabulary.
"""

from collections.abc import Callable

from kernels.devices import over_devices


def partitioned_scores(function: Callable) -> Callable:
    """`function(x_MD, head_VD, targets_M) -> (M, M)`, over devices."""
    return over_devices(function, "m d, v d, m -> m, m", cut=("m",))


def partitioned_gradients(function: Callable) -> Callable:
    """`function(x_MD, head_VD, targets_M, weights_M) -> (M, M, MD, VD)`, over devices; the last is
    summed over them."""
    return over_devices(function, "m d, v d, m, m -> m, m, m d, v d", cut=("m",))
