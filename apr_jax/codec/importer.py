"""From a HuggingFace checkpoint to `.apr`: every tensor kept bit for bit."""

import hashlib
import os
import pathlib
from typing import Any

from apr_jax.codec import folders
from apr_jax.codec.checkpoint import Checkpoint, open_checkpoint
from apr_jax.codec.compare import as_bytes, verify_copy
from apr_jax.codec.errors import UnknownFormat
from apr_jax.codec.writer import AprWriter, ArraySpec
from apr_jax.progress import Progress

DEFAULT_NAME = "model.apr"


def import_checkpoint(
    source: str | os.PathLike[str], out: str | os.PathLike[str]
) -> dict[str, Any]:
    """Import a HuggingFace folder or safetensors file, then read the result back and compare.

    Tokenizer files travel along, into `NAME.tokenizer/` beside `NAME.apr`. The metadata holds,
    under `import_sha256`, the SHA-256 of each tensor's bytes, so that two files can be told to be
    the same model.

    Args:
      source: the folder, or a `.safetensors` file with its `config.json` beside it.
      out: the `.apr` file, or a folder, which gets `model.apr`.

    Returns:
      The report: paths, counts, what was left out and why, each tensor's type, shape and SHA-256.

    Raises:
      AprError: the source is damaged, incomplete or not of a kind that can be imported, and nothing
        has been written; or `VerificationFailed`, the file differs from the source.
      ConfigError: `config.json` is incomplete or not plain Qwen2.
      WriteError: the operating system refused.
    """
    target = apr_path(out)
    tokenizer = folders.tokenizer_folder(target)
    folders.require_only(tokenizer, folders.COMPANIONS)
    with open_checkpoint(source) as checkpoint:
        if checkpoint.format == "apr":
            raise UnknownFormat(source, "is an .apr file already; inspect or export it instead")
        checkpoint.require_complete()
        hashes = _hash(checkpoint)
        _write(checkpoint, target, _metadata(checkpoint, hashes))
        folders.replace_companions(checkpoint.companions, tokenizer)
        with open_checkpoint(target, strict=True) as copy:
            verify_copy(checkpoint, copy)
        return {
            "source": os.fspath(source),
            "apr": str(target),
            "tokenizer": str(tokenizer) if checkpoint.companions else None,
            "tokenizer_files": [file.name for file in checkpoint.companions],
            "original_format": checkpoint.format,
            "tied_embeddings": checkpoint.config.tied,
            "parameters": checkpoint.config.num_parameters(),
            "bytes": target.stat().st_size,
            "left_out": checkpoint.left_out,
            "tensors": {
                name: {
                    "dtype": str(checkpoint.dtype(name)),
                    "shape": list(checkpoint.shape(name)),
                    "sha256": hashes[name],
                }
                for name in checkpoint.names
            },
        }


def apr_path(out: str | os.PathLike[str]) -> pathlib.Path:
    """`out` itself if it is named like an `.apr` file, else `model.apr` in the folder `out`."""
    path = pathlib.Path(out)
    return path if path.suffix == ".apr" and not path.is_dir() else path / DEFAULT_NAME


def _hash(checkpoint: Checkpoint) -> dict[str, str]:
    hashes = {}
    with Progress("hash", len(checkpoint.names), "tensors") as progress:
        for name in checkpoint.names:
            hashes[name] = hashlib.sha256(as_bytes(checkpoint.read(name))).hexdigest()
            progress.update()
    return hashes


def _metadata(checkpoint: Checkpoint, hashes: dict[str, str]) -> dict[str, Any]:
    """Nothing of the time or the machine: the same source gives the same file."""
    source = checkpoint.path.resolve()
    return checkpoint.config.to_apr() | {
        "model_type": "qwen2",
        "name": (source if source.is_dir() else source.parent).name,
        "original_format": checkpoint.format,
        "param_count": checkpoint.config.num_parameters(),
        "total_size": sum(checkpoint.nbytes(name) for name in checkpoint.names),
        "import_sha256": hashes,
    }


def _write(checkpoint: Checkpoint, target: pathlib.Path, metadata: dict[str, Any]) -> None:
    declared = {
        name: ArraySpec(checkpoint.dtype(name), checkpoint.shape(name)) for name in checkpoint.names
    }
    with (
        AprWriter(target, declared, metadata) as writer,
        Progress("write", len(declared), "tensors") as progress,
    ):
        for name in sorted(declared):
            writer.add(name, checkpoint.read(name))
            progress.update()
