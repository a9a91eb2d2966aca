"""Threads for passes over bytes that let go of the interpreter: CRCs, hashes, comparing."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor


@functools.cache
def pool() -> ThreadPoolExecutor:
    """One thread a core, shared by all. A task must not wait for another task."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="codec")
