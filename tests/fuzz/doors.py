"""Bytes from anywhere, through each door of codec and text: what the fuzzer calls, and a test.

A door lets through what is refused in our own way, a `UserError` of one printable line, and
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
from apr_jax.text import load_tokenizer
from apr_jax.text.documents import read_documents

# Between the files of a folder: config.json, the index, then the shards.
SEPARATOR = b"\n--next--\n"
SHARDS = ("a.safetensors", "b.safetensors")

_TEXT = "hello  wörld 12\n<s>"
_CORPORA = {
    b"\x1f\x8b": "hostile.jsonl.gz",
    b"BZh": "hostile.jsonl.bz2",
    b"\xfd7zXZ": "hostile.txt.xz",
    b"\x28\xb5\x2f\xfd": "hostile.jsonl.zst",
    b"PAR1": "hostile.parquet",
}

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
    """Open `data` as a GGUF, then as for `apr`, and as a tokenizer."""
    path = folder / "hostile.gguf"
    path.write_bytes(data)
    _encode(path, None)
    with _refusals(), GgufFile(path) as file:
        _read_all(file, len(data))
    _open_checkpoint(path)


def tokenizer(data: bytes, folder: pathlib.Path) -> None:
    """Load `data` as a tokenizer: a SentencePiece model or rank file by content, else JSON."""
    path = folder / ("tokenizer.json" if data.startswith(b"{") else "hostile.model")
    path.write_bytes(data)
    for pretokenizer in (None, "qwen2"):
        _encode(path, pretokenizer)


def corpus(data: bytes, folder: pathlib.Path) -> None:
    """Read the documents in `data`, of the kind that its first bytes tell."""
    kinds = (name for start, name in _CORPORA.items() if data.startswith(start))
    path = folder / next(kinds, "hostile.jsonl")
    path.write_bytes(data)
    documents = read_documents([path], "a", max_bad=3)
    with _refusals():
        for text in documents:
            text.encode()
    for place in documents.bad:
        _require_one_line(place)


DOORS: dict[str, Callable[[bytes, pathlib.Path], None]] = {
    "apr": apr,
    "hf_folder": hf_folder,
    "gguf": gguf,
    "tokenizer": tokenizer,
    "corpus": corpus,
}


def _encode(path: pathlib.Path, pretokenizer: str | None) -> None:
    with _refusals():
        loaded = load_tokenizer(path, pretokenizer=pretokenizer)
        ids = loaded.encode(_TEXT)
        loaded.decode(ids)
        assert not len(ids) or 0 <= ids.min() <= ids.max() < loaded.vocab_size
        assert len(loaded.token_bytes()) == loaded.vocab_size


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


def _require_one_line(error: UserError | str) -> None:
    assert str(error).isprintable(), f"not one printable line: {str(error)!r}"
