"""A column of text in a Parquet file, streamed a few rows at a time."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from apr_jax.text.compressed import CorpusError

_ROWS, _BYTES = 256, 8 << 20  # of one batch, whichever is less


def read_column(path: pathlib.Path, column: str) -> Iterator[tuple[bytes, np.ndarray, int, float]]:
    """The texts in the column, batch by batch.

    Yields:
      The batch's texts one behind another as UTF-8, int64 [n + 1] where each begins and the last
      ends, how many further rows have none, and which share of the file's rows is read by then.

    Raises:
      CorpusError: pyarrow is missing, the file is damaged, or no such column holds text.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CorpusError(
            f"{path}: reading Parquet needs pyarrow: pip install 'apr-jax[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            _check(path, column, file.schema_arrow, pyarrow.types)
            read, total = 0, max(1, file.metadata.num_rows)
            rows = _rows_of_a_batch(file.metadata)
            for batch in file.iter_batches(rows, columns=[column], use_threads=False):
                texts = batch.column(0).cast(pyarrow.large_string())
                read += len(texts)
                yield (*_content(texts.drop_null()), texts.null_count, read / total)
    except CorpusError:
        raise
    # What a damaged file makes the package trip over can be of any class.
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CorpusError(f"{path}: cannot be read as Parquet ({reason})") from error


def _rows_of_a_batch(metadata: Any) -> int:
    """So many rows that even those of the group with the longest ones, on average, fit."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(_ROWS, _BYTES // max(1, longest)))


def _check(path: pathlib.Path, column: str, schema: Any, types: Any) -> None:
    if column in schema.names and _is_text(schema.field(column).type, types):
        return
    texts = [field.name for field in schema if _is_text(field.type, types)]
    advice = (
        f"give --content_field, one of {', '.join(map(repr, texts))}" if texts else "no column does"
    )
    if column in schema.names:
        raise CorpusError(
            f"{path}: column {column!r} holds {schema.field(column).type}, not text: {advice}"
        )
    raise CorpusError(f"{path}: has no column {column!r} that holds text: {advice}")


def _is_text(kind: Any, types: Any) -> bool:
    value = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)


def _content(texts: Any) -> tuple[bytes, np.ndarray]:
    if not len(texts):
        return b"", np.zeros(1, np.int64)
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = data.slice(int(starts[0]), int(starts[-1] - starts[0])).to_pybytes() if data else b""
    return content, starts - starts[0]
