"""From `.apr` to a GGUF file, through the `gguf` package's writer, one tensor at a time."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf.gguf_writer import WriterState

from apr_jax.codec import dtypes, gguf_map
from apr_jax.codec.bpe import Bpe
from apr_jax.codec.checkpoint import Checkpoint, open_checkpoint
from apr_jax.codec.compare import verify_copy
from apr_jax.codec.embedded import GGML, TEMPLATE
from apr_jax.codec.errors import TokenizerLeftOut, UnsupportedDtype
from apr_jax.codec.qwen2 import Qwen2Config
from apr_jax.files import atomic_write
from apr_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class GgufExport:
    """What was written: GGUF's type of each tensor, and what could not come along."""

    types: dict[str, str]
    notes: list[str]


def write_gguf(checkpoint: Checkpoint, path: pathlib.Path) -> GgufExport:
    """Write a model as `path`, which appears when it is complete and reads back as it should.

    Types are kept where GGUF has them. Norms and biases in 16 bits become float32, exactly, since
    llama.cpp computes with them in nothing else; types that GGUF has not are decoded to float32.

    Raises:
      UnsupportedDtype: a tensor is of a type that GGUF has not, and no float.
      ConfigError: a number of the configuration is none in float32, all that GGUF has for it.
      VerificationFailed: the file differs from what it should hold.
      WriteError: the operating system refused.
    """
    types = {name: _type(checkpoint, name) for name in checkpoint.config.tensors()}
    config = gguf_map.rounded(checkpoint.config, str(checkpoint.path))
    tokenizer, notes = _tokenizer(checkpoint)
    with atomic_write(path) as file:
        writer = _Writer(file, checkpoint.config.architecture)
        keys: dict[str, Any] = {"general.name": checkpoint.path.stem}
        for key, value in (keys | gguf_map.write_config(config) | tokenizer).items():
            writer.put(key, value)
        if any(dtypes.BY_NAME[kind].numpy is None for kind in types.values()):
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for name, kind in types.items():
            code, shape = gguf.GGMLQuantizationType[kind], checkpoint.shape(name)
            bytes_shape = gguf.quant_shape_to_byte_shape(shape, code)
            writer.add_tensor_info(
                gguf_map.their_name(name),
                bytes_shape,
                np.dtype(np.uint8),
                math.prod(bytes_shape),
                code,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with Progress("write", len(types), "tensors") as progress:
            for name, kind in types.items():
                rows = gguf_map.to_their_rows(
                    name, _rows(checkpoint, name, kind), checkpoint.config
                )
                writer.write_tensor_data(np.ascontiguousarray(rows))
                progress.update()
        file.flush()
        with open_checkpoint(file.name) as copy:
            copy.path = path  # the name that it is to get
            verify_copy(checkpoint, copy, config=config)
    return GgufExport(types, [*_rounding(checkpoint.config, config), *notes])


def _rounding(exact: Qwen2Config, config: Qwen2Config) -> Iterator[str]:
    for field in dataclasses.fields(exact):
        before, after = getattr(exact, field.name), getattr(config, field.name)
        if before != after:
            yield f"{field.name}={before!r} is {after!r} in GGUF, which has float32"


class _Writer(gguf.GGUFWriter):
    """The package's writer, on a file that is open already, and with keys typed by their values."""

    def __init__(self, file: BinaryIO, architecture: str) -> None:
        super().__init__(None, architecture)
        self.fout, self.state = [file], WriterState.EMPTY  # type: ignore[list-item]

    def add_tensor_info(self, *arguments: Any, **named: Any) -> None:
        # The package wants all of these before it opens the file itself.
        self.state = WriterState.NO_FILE
        super().add_tensor_info(*arguments, **named)
        self.state = WriterState.EMPTY

    def put(self, key: str, value: Any) -> None:
        match value:
            case bool():
                self.add_bool(key, value)
            case int():
                self.add_uint32(key, value)
            case float():
                self.add_float32(key, value)
            case str():
                self.add_string(key, value)
            case list():
                self.add_array(key, value)


def _type(checkpoint: Checkpoint, name: str) -> str:
    """GGUF's name of the type to write; of the types that both have, the names are the same."""
    shape = checkpoint.shape(name)
    if checkpoint.is_quantised(name) and not checkpoint.is_cast:
        stored = checkpoint.stored(name)
        # GGUF has no padded rows.
        whole = (
            stored in ("Q4_K", "Q6_K") and shape and shape[-1] % dtypes.BY_NAME[stored].block == 0
        )
        return stored if whole else "F32"
    kind = dtypes.BY_NUMPY[checkpoint.dtype(name)].name
    if kind not in gguf.GGMLQuantizationType.__members__:
        raise UnsupportedDtype(checkpoint.path, f"has type {kind}, which GGUF has not", tensor=name)
    return "F32" if kind in ("F16", "BF16") and len(shape) <= 1 else kind


def _rows(checkpoint: Checkpoint, name: str, kind: str) -> np.ndarray:
    """The bytes of each row in the type `kind`."""
    if dtypes.BY_NAME[kind].numpy is None:
        data = np.frombuffer(checkpoint.raw(name), np.uint8)
    else:
        values = checkpoint.read(name).astype(dtypes.BY_NAME[kind].numpy, copy=False)
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    shape = checkpoint.shape(name)
    return data.reshape(gguf.quant_shape_to_byte_shape(shape, gguf.GGMLQuantizationType[kind]))


def _tokenizer(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """The keys of the tokenizer that travels with the model, and a note if there are none."""
    files = checkpoint.companion_files()
    if "tokenizer.json" not in files:
        return {}, checkpoint.notes or ["tokenizer left out: there is no tokenizer.json"]
    try:
        rows = checkpoint.config.vocab_size
        bpe = Bpe.from_file(files["tokenizer.json"], rows, checkpoint.path)
    except TokenizerLeftOut as error:
        return {}, [f"tokenizer left out: {error}"]
    keys: dict[str, Any] = {GGML + key: value for key, value in bpe.to_keys().items()}
    if "chat_template.jinja" in files:
        keys[TEMPLATE] = files["chat_template.jinja"].decode(errors="replace")
    return keys, []
