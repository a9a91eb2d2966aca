"""From a HuggingFace checkpoint to `.apr`: every tensor kept bit for bit, or quantised."""

import math
import os
import pathlib
from typing import Any

from apr_jax.codec import dtypes, folders, quantised
from apr_jax.codec.checkpoint import Checkpoint, open_checkpoint
from apr_jax.codec.compare import digest, relative_error, verify_copy
from apr_jax.codec.errors import UnknownFormat, UnsupportedDtype
from apr_jax.codec.writer import AprWriter, ArraySpec
from apr_jax.progress import Progress

DEFAULT_NAME = "model.apr"
QUANTISED_TYPES = ("Q8", "Q4_K", "Q6_K")

_QUANTISED_ELEMENTS = 1024


def import_checkpoint(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, quantize: str | None = None
) -> dict[str, Any]:
    """Import a HuggingFace folder or safetensors file, then read the result back and compare.

    Tokenizer files travel along, into `NAME.tokenizer/` beside `NAME.apr`. The metadata holds,
    under `import_sha256`, the SHA-256 of each tensor's bytes in the source, so that two files can
    be told to be the same model.

    Args:
      source: the folder, or a `.safetensors` file with its `config.json` beside it.
      out: the `.apr` file, or a folder, which gets `model.apr`.
      quantize: one of `QUANTISED_TYPES`, or None. Biases, norms and tensors of fewer than 1024
        elements stay what they are.

    Returns:
      The report: paths, counts, what was left out and why, each tensor's type, shape and SHA-256 in
      the source and its type in the file; under `quantised`, by name, the relative Frobenius error
      of what the file gives back.

    Raises:
      AprError: the source is damaged, incomplete or not of a kind that can be imported, and nothing
        has been written; or `VerificationFailed`, the file differs from what it should hold.
      ConfigError: `config.json` is incomplete or not plain Qwen2.
      WriteError: the operating system refused.
    """
    target = apr_path(out)
    if quantize not in (None, *QUANTISED_TYPES):
        raise UnsupportedDtype(target, f"{quantize!r} is none of {', '.join(QUANTISED_TYPES)}")
    tokenizer = folders.tokenizer_folder(target)
    folders.require_only(tokenizer, folders.COMPANIONS)
    with open_checkpoint(source) as checkpoint:
        if checkpoint.format == "apr":
            raise UnknownFormat(source, "is an .apr file already; inspect or export it instead")
        checkpoint.require_complete()
        hashes = _hash(checkpoint)
        stored = {name: _stored_type(checkpoint, name, quantize) for name in checkpoint.names}
        errors, digests = _write(checkpoint, target, stored, _metadata(checkpoint, hashes, stored))
        folders.replace_companions(checkpoint.companions, tokenizer)
        with open_checkpoint(target, strict=True) as copy:
            verify_copy(checkpoint, copy, digests=digests)
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
            "quantize": quantize,
            "quantised": errors,
            "tensors": {
                name: {
                    "dtype": str(checkpoint.dtype(name)),
                    "stored": stored[name],
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
            hashes[name] = digest(checkpoint.read(name))
            progress.update()
    return hashes


def _stored_type(checkpoint: Checkpoint, name: str, quantize: str | None) -> str:
    """The format's type for a tensor, by the reference importer's rule for which are quantised."""
    own = dtypes.BY_NUMPY[checkpoint.dtype(name)].name
    large = math.prod(checkpoint.shape(name)) >= _QUANTISED_ELEMENTS
    kept = "bias" in name or "norm" in name or own not in dtypes.FLOATS
    return quantize if quantize and large and not kept else own


def _metadata(
    checkpoint: Checkpoint, hashes: dict[str, str], stored: dict[str, str]
) -> dict[str, Any]:
    """Nothing of the time or the machine: the same source gives the same file."""
    source = checkpoint.path.resolve()
    return checkpoint.config.to_apr() | {
        "model_type": "qwen2",
        "name": (source if source.is_dir() else source.parent).name,
        "original_format": checkpoint.format,
        "param_count": checkpoint.config.num_parameters(),
        "total_size": sum(
            dtypes.BY_NAME[dtype].nbytes(checkpoint.shape(name)) for name, dtype in stored.items()
        ),
        "import_sha256": hashes,
    }


def _write(
    checkpoint: Checkpoint, target: pathlib.Path, stored: dict[str, str], metadata: dict[str, Any]
) -> tuple[dict[str, float], dict[str, str]]:
    """Write the file. Returns the errors of quantised tensors and the SHA-256 of their values."""
    declared = {name: ArraySpec(dtype, checkpoint.shape(name)) for name, dtype in stored.items()}
    errors, digests = {}, {}
    with (
        AprWriter(target, declared, metadata) as writer,
        Progress("write", len(declared), "tensors") as progress,
    ):
        for name in sorted(declared):
            array = checkpoint.read(name)
            data = writer.add(name, array)
            if dtypes.BY_NAME[stored[name]].numpy is None:
                values = quantised.decode(stored[name], data, array.shape)
                errors[name], digests[name] = relative_error(array, values), digest(values)
            progress.update()
    return errors, digests
