"""Bytes from anywhere, through each door of the codec: what the fuzzer calls, and a test.

A door lets through what the codec refuses in its own way, a `UserError` of one printable line, and
raises for all else: another exception, an array larger than its file can hold.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

from apr_jax.codec import open_apr, open_checkpoint
from apr_jax.codec.gguf_file import GgufFile
from apr_jax.codec.hf_folder import CONFIG, INDEX, HfFolder
from apr_jax.codec.reader import AprFile
from apr_jax.errors import UserError

# Between the files of a folder: config.json, the index, then the shards.
SEPARATOR = b"\n--next--\n"
SHARDS = ("a.safetensors", "b.safetensors")

# GGUF's densest types have 1.56 bits for a float32 value, those of `.apr` files 4.5.
_MOST_BYTES_PER_BYTE = 21


def apr(data: bytes, folder: pathlib.Path) -> None:
    """Open `data` as an `.apr` file and as a checkpoint; ask for all that they have."""
    path = folder / "hostile.apr"
    path.write_bytes(data)
    with _refusals(), open_apr(path) as file:
        for problem in file.problems:
            _require_one_line(problem)
        _read_all(file, len(data))
    _open_checkpoint(path)


def hf_folder(data: bytes, folder: pathlib.Path) -> None:
    """Cut `data` into the files of a HuggingFace folder, then as for `apr`. Empty ones are none."""
    files = data.split(SEPARATOR, len(SHARDS) + 1)
    for name, content in zip((CONFIG, INDEX, *SHARDS), [*files, b"", b"", b""], strict=False):
        if content:
            (folder / name).write_bytes(content)
        else:
            (folder / name).unlink(missing_ok=True)
    with _refusals(), HfFolder(folder) as tensors:
        _read_all(tensors, len(data))
        tensors.config()
    _open_checkpoint(folder)


def gguf(data: bytes, folder: pathlib.Path) -> None:
    """Open `data` as a GGUF, then as for `apr`."""
    path = folder / "hostile.gguf"
    path.write_bytes(data)
    with _refusals(), GgufFile(path) as file:
        _read_all(file, len(data))
    _open_checkpoint(path)


DOORS: dict[str, Callable[[bytes, pathlib.Path], None]] = {
    "apr": apr,
    "hf_folder": hf_folder,
    "gguf": gguf,
}


def _open_checkpoint(path: pathlib.Path) -> None:
    with _refusals(), open_checkpoint(path) as checkpoint:
        for problem in checkpoint.problems:
            _require_one_line(problem)
        for name in checkpoint.names:
            with _refusals():
                checkpoint.read(name)
                checkpoint.raw(name)
        with _refusals():
            checkpoint.companion_files()
        checkpoint.require_complete()


def _read_all(source: AprFile | HfFolder | GgufFile, size: int) -> None:
    for name in source.names:
        source.info(name)
        with _refusals():
            array = source.read(name)
            assert array.nbytes <= _MOST_BYTES_PER_BYTE * size, f"{name!r} has {array.nbytes} bytes"


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        _require_one_line(error)


def _require_one_line(error: UserError) -> None:
    assert str(error).isprintable(), f"not one printable line: {str(error)!r}"
