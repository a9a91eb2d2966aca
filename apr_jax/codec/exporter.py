"""From `.apr` to a HuggingFace folder that `transformers` loads, or to a GGUF file."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import save_file

from apr_jax.codec import dtypes, folders
from apr_jax.codec.checkpoint import Checkpoint, open_checkpoint
from apr_jax.codec.compare import relative_error, verify_copy
from apr_jax.codec.errors import FolderInUse, UnknownFormat, UnsupportedDtype
from apr_jax.codec.gguf_export import write_gguf
from apr_jax.codec.hf_folder import CONFIG, INDEX, SINGLE
from apr_jax.files import WriteError, read_json, target_path, umask, write_json

EXPORT_DTYPES = ("float32", "bfloat16", "float16")
MAX_SHARD_BYTES = 5_000_000_000
RECORD = "export_record.json"
REPORT = "report.json"


def export_checkpoint(
    apr: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    strict: bool = True,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Export an `.apr` model as a HuggingFace folder or GGUF file, read it back and compare.

    The folder gets its name only when complete and verified. Tokenizer files come back from
    `NAME.tokenizer/` beside `NAME.apr`. `export_record.json` in it lists what was written; by it
    a later export knows that it may replace the folder. A GGUF file must not exist yet.

    Args:
      apr: the model file.
      out: the folder, missing, empty, or an earlier export to which nothing was added; or a path
        that ends in `.gguf`.
      max_shard_bytes: tensors beyond this many bytes go to further files, with an index.
      strict: refuse a file with oddities, such as a wrong CRC.
      dtype: one of `EXPORT_DTYPES` for every tensor; None leaves each in its own, and decodes the
        quantised to float32. Tensors that are decoded or cast take memory, a file of them at once.

    Returns:
      The report: paths, counts, the files written, what was left out, under `decoded` the tensors
      that are quantised in the source, and under `cast`, by name, the relative Frobenius error of
      those that `dtype` does not hold in full.

    Raises:
      AprError: the file is damaged, incomplete or not an `.apr`; or the folder is in use; or in
        `dtype` a finite value would be infinite, or a tensor all zeros.
      WriteError: the operating system refused.
    """
    target = target_path(out)
    to_gguf = target.suffix == ".gguf"
    if to_gguf and os.path.lexists(target):
        raise FolderInUse(target, "exists already; remove it, or choose another name")
    if not to_gguf:
        _require_replaceable(target)
    if dtype not in (None, *EXPORT_DTYPES):
        raise UnsupportedDtype(apr, f"{dtype!r} is none of the types {', '.join(EXPORT_DTYPES)}")
    with open_checkpoint(apr, strict=strict, dtype=dtype) as checkpoint:
        if checkpoint.format != "apr":
            raise UnknownFormat(apr, "is not an .apr file; export takes one")
        checkpoint.require_complete()
        if to_gguf:
            return _export_gguf(checkpoint, target)
        with folders.atomic_folder(target) as folder:
            _write_tensors(checkpoint, folder, max_shard_bytes)
            write_json(folder / CONFIG, checkpoint.config.to_hf(_torch_dtype(checkpoint)))
            folders.write_files(checkpoint.companion_files(), folder)
            files = sorted(file.name for file in folder.iterdir())
            write_json(folder / RECORD, {"source": pathlib.Path(apr).name, "files": files})
            with open_checkpoint(folder) as copy:
                verify_copy(checkpoint, copy)
        return {
            "folder": str(target),
            "files": files,
            "dtype": _torch_dtype(checkpoint),
            "decoded": [name for name in checkpoint.names if checkpoint.is_quantised(name)],
            "notes": checkpoint.notes,
            **_summary(checkpoint),
        }


def _export_gguf(checkpoint: Checkpoint, target: pathlib.Path) -> dict[str, Any]:
    done = write_gguf(checkpoint, target)
    return {
        "file": str(target),
        "types": done.types,
        "decoded": [
            name
            for name in checkpoint.names
            if checkpoint.is_quantised(name) and done.types[name] != checkpoint.stored(name)
        ],
        "notes": done.notes,
        **_summary(checkpoint),
    }


def _summary(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "apr": str(checkpoint.path),
        "tied_embeddings": checkpoint.config.tied,
        "parameters": checkpoint.config.num_parameters(),
        "tensors": len(checkpoint.names),
        "left_out": checkpoint.left_out,
        "cast": {
            name: relative_error(checkpoint.read_uncast(name), checkpoint.read(name))
            for name in checkpoint.names
            if checkpoint.is_narrowed(name)
        },
        "problems": [str(problem) for problem in checkpoint.problems],
    }


def _require_replaceable(target: pathlib.Path) -> None:
    """Refuse a folder with anything that an export did not write: it may be the original model."""
    ours: list[str] = []
    if (target / RECORD).is_file():
        record = read_json(target / RECORD)
        files = record.get("files") if isinstance(record, dict) else None
        ours = [RECORD, *map(str, files if isinstance(files, list) else [])]
        ours += [REPORT] if _is_of_an_export(target / REPORT) else []
    folders.require_only(target, ours)


def _is_of_an_export(report: pathlib.Path) -> bool:
    if not report.is_file():
        return False
    values = read_json(report)
    return isinstance(values, dict) and "folder" in values and "apr" in values


def _write_tensors(checkpoint: Checkpoint, folder: pathlib.Path, max_shard_bytes: int) -> None:
    shards = _shards(checkpoint, max_shard_bytes)
    if len(shards) == 1:
        _save(checkpoint, shards[0], folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(checkpoint, names, folder / file)
        weight_map |= dict.fromkeys(names, file)
    total = sum(checkpoint.nbytes(name) for name in checkpoint.names)
    write_json(
        folder / INDEX,
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )


def _shards(checkpoint: Checkpoint, max_bytes: int) -> list[list[str]]:
    """The tensors in the order of the layers, cut before a file would grow past `max_bytes`."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in checkpoint.config.tensors():
        nbytes = checkpoint.nbytes(name)
        if shards[-1] and size + nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _save(checkpoint: Checkpoint, names: Iterable[str], path: pathlib.Path) -> None:
    # Views on the memory map: the operating system pages them in and out as they are written.
    tensors = {name: checkpoint.read(name) for name in names}
    try:
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o666 & ~umask())  # save_file makes it readable by its owner alone
    except SafetensorError as error:
        raise WriteError(f"{path}: cannot be written ({error})") from error


def _torch_dtype(checkpoint: Checkpoint) -> str:
    """The one type of all tensors; of mixed ones a type that holds them all."""
    found = {dtypes.BY_NUMPY[checkpoint.dtype(name)].torch for name in checkpoint.names}
    if len(found) == 1:
        return str(found.pop())
    return "float64" if "float64" in found else "float32"
