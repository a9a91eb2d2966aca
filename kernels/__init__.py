"""Fused operations on arrays, each beside its plain reference. JAX only: nothing of apr_jax.

A HuggingFace package has this name too, and transformers probes for it: importing this package
must stay cheap and free of side effects.
"""
