"""Threads for passes over bytes that let go of the interpreter: CRCs, hashes, comparing."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

_MOST = 8  # more of them take the interpreter from each other


@functools.cache
def pool() -> ThreadPoolExecutor:
    """One thread a core, shared by all. A task must not wait for another task."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST), thread_name_prefix="codec")


# A forked child has the object, but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)
