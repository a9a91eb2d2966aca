"""From a HuggingFace or GGUF checkpoint to `.apr`: every tensor bit for bit, or quantised."""

import math
import os
import pathlib
from concurrent.futures import Future
from typing import Any, NamedTuple

from apr_jax.codec import dtypes, folders, quantised, threads
from apr_jax.codec.checkpoint import Checkpoint, open_checkpoint
from apr_jax.codec.compare import digest, relative_error, verify_copy
from apr_jax.codec.errors import (
    FolderInUse,
    FooterMissing,
    HeadClaim,
    MetadataAlias,
    Misaligned,
    MisleadingFlags,
    OddVersion,
    UnknownFormat,
    UnsupportedDtype,
)
from apr_jax.codec.metadata import without_aliases
from apr_jax.codec.writer import AprWriter, ArraySpec
from apr_jax.progress import Progress

DEFAULT_NAME = "model.apr"
QUANTISED_TYPES = ("Q8", "Q4_K", "Q6_K")

_OF_THE_FILE = ("quantization", "sharding")  # metadata of how a file is stored, not of its model
_QUANTISED_ELEMENTS = 1024

# What an older writer left in an `.apr` file and writing it again mends; the rest is damage.
_MENDED = (FooterMissing, HeadClaim, Misaligned, MisleadingFlags, MetadataAlias, OddVersion)


class _Written(NamedTuple):
    """By name: the SHA-256 of the source; of what was quantised that of the blocks, the error."""

    source: dict[str, str]
    stored: dict[str, str]
    errors: dict[str, float]


def import_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    quantize: str | None = None,
    retag: bool = False,
    config: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Import a HuggingFace folder, safetensors file or GGUF; it is read back and compared.

    The file gets its name when that has found no difference. Tokenizer files travel along, into
    `NAME.tokenizer/` beside `NAME.apr`; the vocabulary of a GGUF becomes a tokenizer.json if its
    pre-tokeniser is a known one. Names that lack their `model.` get it back. File and folder are
    each replaced in one step, the folder last: killed between the two, import again.

    The metadata holds, under `import_sha256`, the SHA-256 of each tensor's bytes as they were read
    from the source: of GGUF's types that `.apr` files have not these are the decoded float32
    values, of Llama's q and k in a GGUF the rows in HuggingFace's order.

    Args:
      source: the folder, a `.safetensors` file, or a GGUF; or an `.apr` file to be written as
        this writer does, if it has oddities that this mends, or is to be quantised.
      out: the `.apr` file, or a folder, which gets `model.apr`.
      quantize: one of `QUANTISED_TYPES`, or None. Biases, norms and tensors of fewer than 1024
        elements stay what they are.
      retag: give F16 tensors that hold BF16 their true type, and the other way round; without it
        they are refused.
      config: the `config.json` of a `.safetensors` file; None takes the one beside it.

    Returns:
      The report: paths, counts, what was left out and why, each tensor's type, shape and SHA-256 in
      the source and its type in the file; what was `retagged`, what was `mended` in an `.apr` file,
      and what `decoded` from types that `.apr` files have not; under `quantised`, by name, the
      relative Frobenius error of what the file gives back.

    Raises:
      AprError: the source is damaged, incomplete or not of a kind that can be imported, or what was
        written differs from what it should hold (`VerificationFailed`); nothing has changed.
      ConfigError: `config.json` is incomplete or not plain Qwen2 or Llama.
      WriteError: the operating system refused.
    """
    target = apr_path(out)
    if quantize not in (None, *QUANTISED_TYPES):
        raise UnsupportedDtype(target, f"{quantize!r} is none of {', '.join(QUANTISED_TYPES)}")
    tokenizer = folders.tokenizer_folder(target)
    folders.require_only(tokenizer, folders.COMPANIONS)
    with open_checkpoint(source, retag=retag, mend_names=True, config=config) as checkpoint:
        mended = _mended(checkpoint)
        if checkpoint.format == "apr" and not mended and not quantize:
            raise UnknownFormat(
                source, "is an .apr file already, with nothing to mend; inspect or export it"
            )
        checkpoint.require_complete()
        files = checkpoint.companion_files()
        if not files and folders.companions(tokenizer):
            raise FolderInUse(
                tokenizer, "holds a tokenizer, but the source brings none; move it away first"
            )
        stored = {name: _stored_type(checkpoint, name, quantize) for name in checkpoint.names}
        _require_quantised(checkpoint, stored, quantize)
        written = _write(checkpoint, target, stored)
        folders.replace_companions(files, tokenizer)
        return _report(checkpoint, stored, written) | {
            "source": os.fspath(source),
            "apr": str(target),
            "tokenizer": str(tokenizer) if files else None,
            "tokenizer_files": sorted(files),
            "bytes": target.stat().st_size,
            "quantize": quantize,
            "mended": mended,
        }


def _mended(checkpoint: Checkpoint) -> list[str]:
    """What is odd about an `.apr` file and will not be so in what is written.

    Raises:
      Oddity: writing it again would not mend that.
    """
    mended = [*checkpoint.retagged.values()]
    for problem in checkpoint.problems:
        if not isinstance(problem, _MENDED):
            raise problem
        mended.append(str(problem))
    mended += [f"{name}: {reason}" for name, reason in checkpoint.left_out.items()]
    if checkpoint.renamed:
        mended.append("the names lack the `model.` at their start")
    return mended if checkpoint.format == "apr" else []


def _report(checkpoint: Checkpoint, stored: dict[str, str], written: _Written) -> dict[str, Any]:
    return {
        "notes": checkpoint.notes,
        "original_format": checkpoint.format,
        "tied_embeddings": checkpoint.config.tied,
        "parameters": checkpoint.config.num_parameters(),
        "left_out": checkpoint.left_out,
        "retagged": checkpoint.retagged,
        "decoded": checkpoint.decoded,
        "quantised": written.errors,
        "tensors": {
            name: {
                "dtype": str(checkpoint.dtype(name)),
                "stored": stored[name],
                "shape": list(checkpoint.shape(name)),
                "sha256": written.source[name],
            }
            for name in checkpoint.names
        },
    }


def apr_path(out: str | os.PathLike[str]) -> pathlib.Path:
    """`out` itself if it is named like an `.apr` file, else `model.apr` in the folder `out`."""
    path = pathlib.Path(out)
    return path if path.suffix == ".apr" and not path.is_dir() else path / DEFAULT_NAME


def _stored_type(checkpoint: Checkpoint, name: str, quantize: str | None) -> str:
    """The format's type for a tensor, by the reference importer's rule for which are quantised."""
    own = checkpoint.stored(name)
    large = math.prod(checkpoint.shape(name)) >= _QUANTISED_ELEMENTS
    kept = "bias" in name or "norm" in name or own not in dtypes.FLOATS
    return quantize if quantize and large and not kept else own


def _require_quantised(
    checkpoint: Checkpoint, stored: dict[str, str], quantize: str | None
) -> None:
    """Refuse to quantise a model of which all is quantised already: it would stay as it is."""
    before = {name: checkpoint.stored(name) for name in stored}
    kinds = sorted({kind for kind in before.values() if dtypes.BY_NAME[kind].numpy is None})
    if quantize and before == stored and kinds:
        raise UnsupportedDtype(
            checkpoint.path,
            f"is quantised already, as {', '.join(kinds)}; take the model before that",
        )


def _metadata(
    checkpoint: Checkpoint, hashes: dict[str, str], stored: dict[str, str]
) -> dict[str, Any]:
    """Nothing of the time or the machine: the same source gives the same file."""
    source = checkpoint.path.resolve()
    folder = source if source.is_dir() else source.parent
    carried = without_aliases(checkpoint.metadata)
    for key in _OF_THE_FILE:
        carried.pop(key, None)
    return (
        {
            "name": folder.name if checkpoint.format == "safetensors" else source.stem,
            "original_format": checkpoint.format,
        }
        | carried
        | checkpoint.config.to_apr()
        | {
            "model_type": checkpoint.config.architecture,
            "param_count": checkpoint.config.num_parameters(),
            "total_size": sum(
                dtypes.BY_NAME[dtype].nbytes(checkpoint.shape(name))
                for name, dtype in stored.items()
            ),
            "import_sha256": hashes,
        }
    )


def _write(checkpoint: Checkpoint, target: pathlib.Path, stored: dict[str, str]) -> _Written:
    """Write the file; the hashes of the source, which stand first, are put in last."""
    declared = {name: ArraySpec(dtype, checkpoint.shape(name)) for name, dtype in stored.items()}
    unknown = dict.fromkeys(stored, digest(b""))
    hashes: dict[str, Future[str]] = {}
    written = _Written({}, {}, {})

    def check(path: str) -> None:
        with open_checkpoint(path, strict=True) as copy:
            copy.path = target  # the name that it is to get
            verify_copy(checkpoint, copy, hashes=written.stored)

    first = _metadata(checkpoint, unknown, stored)
    with (
        AprWriter(target, declared, first, check=check) as writer,
        Progress("write", len(declared), "tensors") as progress,
    ):
        for name in sorted(declared):
            raw = checkpoint.raw(name)
            hashes[name] = threads.pool().submit(digest, raw)
            if stored[name] == checkpoint.stored(name):
                writer.add_raw(name, raw)
            else:
                array = checkpoint.read(name)
                data = writer.add(name, array)
                values = quantised.decode(stored[name], data, array.shape)
                written.errors[name] = relative_error(array, values)
                written.stored[name] = digest(data)
            if not isinstance(raw, memoryview):  # memory that was made for this tensor
                hashes[name].result()
            progress.update()
        written.source.update((name, hashes[name].result()) for name in checkpoint.names)
        writer.replace_metadata(_metadata(checkpoint, written.source, stored))
    return written
