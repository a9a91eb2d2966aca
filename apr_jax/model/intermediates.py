"""What every operator of a forward pass gave, by HuggingFace's module names."""

from typing import Any

import flax.linen as nn
import jax

from apr_jax.model.params import to_named
from apr_jax.model.qwen2 import MLP, Attention, Decoder, Qwen2

# Their results are those of their last operator.
_CONTAINERS = (Attention, Decoder, MLP)


def intermediates(
    model: Qwen2, params: Any, ids_BT: jax.Array, **kwargs: jax.Array | None
) -> dict[str, jax.Array]:
    """The results of a forward pass under the names of `apr_jax.model.reference.forward`.

    `kwargs` are those of `model.apply`. Each result has the dtype in which it was computed.
    """
    _, state = model.apply(
        {"params": params},
        ids_BT,
        **kwargs,
        capture_intermediates=_is_operator,
        mutable=["intermediates"],
    )
    named = {
        name.removesuffix(".__call__"): value
        for name, (value,) in to_named(state["intermediates"]).items()
    }
    return {"logits" if name == "__call__" else name: value for name, value in named.items()}


def _is_operator(module: nn.Module, method: str) -> bool:
    return method == "__call__" and not isinstance(module, _CONTAINERS)
