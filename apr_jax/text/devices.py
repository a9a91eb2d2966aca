"""Whether JAX may be used for something beside: it must not take hold of a GPU by the way."""

import importlib.metadata
import os


def jax_has_only_cpu() -> bool:
    """Whether starting JAX starts it on the CPU alone."""
    if (platforms := os.environ.get("JAX_PLATFORMS")) is not None:
        return platforms == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins")
