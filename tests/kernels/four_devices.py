"""Programs on a host with four devices, which a process has from its start or not at all."""

import os
import subprocess
import sys
import textwrap


def run(program: str, *arguments: str) -> None:
    """Fails with the program's last words if it fails."""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # the time goes into compiling
    }
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
