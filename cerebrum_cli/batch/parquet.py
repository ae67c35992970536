"""The rows of Parquet files: read as JSON Lines, and written with a column for each key. Needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any, BinaryIO

from cerebrum_cli.batch.rows import INPUT, OUTPUT_KEYS
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import pip_install
from cerebrum_cli.results.schema import Table, to_json

ROWS = 4096  # in memory at a time, and of a row group
INTEGERS = ("prompt_tokens", "completion_tokens", "seed")


def json_lines(
    file: BinaryIO, name: str, error_type: type[CerebrumError] = UsageError, hint: str = "check the file"
) -> Iterator[bytes]:
    """Yield the rows of an open file as lines of JSON, some at a time, without missing values.

    Raises the type of errors, with the hint for a damaged file.
    """
    pyarrow, parquet = _import_pyarrow(error_type)
    try:
        for batch in parquet.ParquetFile(file, pre_buffer=False).iter_batches(ROWS, use_threads=False):
            rows = (
                {key: value for key, value in row.items() if value is not None and value == value}
                for row in batch.to_pylist()
            )
            yield "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise error_type(f"{name} is not a Parquet file that pyarrow can read: {reason}", hint) from error


def parquet_table() -> Table:
    """Encoder of the objects of rows: numbers of tokens and seeds are integers, all else is text, or JSON as text."""
    pyarrow, parquet = _import_pyarrow(UsageError)

    def encode(objects: Iterable[JsonObject]) -> Iterator[bytes]:
        keys = (*OUTPUT_KEYS, INPUT)
        types = {key: pyarrow.int64() if key in INTEGERS else pyarrow.string() for key in keys}
        schema, parts, objects = pyarrow.schema(types), list[bytes](), iter(objects)
        sink = SimpleNamespace(write=lambda data: parts.append(bytes(data)), flush=bool, close=bool, closed=False)
        with parquet.ParquetWriter(sink, schema) as writer:
            while rows := [{key: _cell(key, row.get(key)) for key in keys} for row in islice(objects, ROWS)]:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
                yield b"".join(parts)
                parts.clear()
        yield b"".join(parts)

    return encode


def _cell(key: str, value: Any) -> Any:
    return value if value is None or key in INTEGERS or isinstance(value, str) else to_json(value)


def _import_pyarrow(error_type: type[CerebrumError]) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise error_type(f"Parquet files need pyarrow: {error}", pip_install('"cerebrum-cli[eval]"')) from error
    return pyarrow, parquet
