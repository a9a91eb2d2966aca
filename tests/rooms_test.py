"""Data flows one way: a room imports only rooms above it, and some know nothing of JAX."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SHARED = {"apr_jax.errors", "apr_jax.files", "apr_jax.lock", "apr_jax.progress"}
MAY_IMPORT = {
    "apr_jax/codec": {"apr_jax.codec"},
    "apr_jax/text": {"apr_jax.text", "apr_jax.codec"},
    "kernels": {"kernels"},
    "apr_jax/model": {"apr_jax.model", "apr_jax.codec", "kernels"},
    "apr_jax/train": {"apr_jax.train", "apr_jax.model", "apr_jax.text", "apr_jax.codec"},
}
MAY_IMPORT["apr_jax/diagnose"] = {"apr_jax.diagnose"} | MAY_IMPORT["apr_jax/train"]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_above_it(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in _imports(path):
            if name.split(".")[0] not in ("apr_jax", "kernels", "experiments", "tests", "bench"):
                continue
            allowed = MAY_IMPORT[room] | (SHARED if room != "kernels" else set())
            assert any(name == a or name.startswith(f"{a}.") for a in allowed), f"{path}: {name}"


@pytest.mark.parametrize("room", ["apr_jax.codec", "apr_jax.text"])
def test_rooms_that_need_no_jax_do_not_import_it(room):
    code = f"import {room}, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_environment_of_ours_has_torch():
    for lock in (ROOT / "setup").glob("*.lock"):
        assert not any(line.startswith("torch==") for line in lock.read_text().splitlines())
