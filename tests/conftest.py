"""One core is enough."""

import os

# JAX has a thread for each core. With a single one the interpreter of kernels waits for ever.
if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1:
    os.environ.setdefault("NPROC", "4")
