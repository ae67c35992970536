"""The rows of Parquet files: read as JSON Lines, and written with a column for each key. Needs pyarrow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from os import SEEK_END
from types import SimpleNamespace
from typing import Any, BinaryIO

from cerebrum_cli.batch.input_row import INPUT
from cerebrum_cli.batch.json_rows import KNOWN
from cerebrum_cli.core.errors import DAMAGE, UsageError
from cerebrum_cli.core.json_types import JsonObject, to_json
from cerebrum_cli.core.text import pip_install
from cerebrum_cli.results.rows import Table

ROWS = 4096  # of a row group that is written
READ_ROWS = 16  # in memory at a time: a repeated value takes only a few bits in the file
MAX_READ_BYTES = 64_000_000  # of these rows, and of the mean row of a group
HUGE = "its rows are too large: more than 64 MB"
MAX_BYTES = 1_000_000_000  # of the lines of a file; for a large one, EXPANSION times its size
EXPANSION = 100
INTEGERS = ("prompt_tokens", "completion_tokens", "seed")
FRACTIONS = ("probability", "mean")  # and keys that begin like these


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


_encode = json.JSONEncoder(ensure_ascii=False, default=_text).encode


def json_lines(
    file: BinaryIO,
    name: str,
    fields: Collection[str] = (),
    hint: str = "",
) -> Iterator[bytes]:
    """Yield the rows of an open file as lines of JSON, without missing values.

    If a column is named in `fields`, only such columns and those in KNOWN are read. A text that is not UTF-8 makes its
    line invalid. Raises UsageError, with the hint for a damaged or huge file.
    """
    pyarrow, parquet = _import_pyarrow()
    left = max(MAX_BYTES, EXPANSION * file.seek(0, SEEK_END))
    try:
        source = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 16)
        columns = _chosen(source.schema_arrow.names, fields)
        groups = map(source.metadata.row_group, range(source.num_row_groups))
        if any(group.total_byte_size > MAX_READ_BYTES * (group.num_rows or 1) for group in groups):
            raise ValueError(HUGE)
        for batch in source.iter_batches(READ_ROWS, columns=columns, use_threads=False):
            if batch.nbytes > MAX_READ_BYTES:
                raise ValueError(HUGE)
            for cells in zip(*map(batch.column, columns), strict=True):
                line = _line(columns, cells)
                left -= len(line)
                if left < 0:
                    raise ValueError("its rows are much larger than the file")
                yield line
    except (pyarrow.ArrowException, OSError, *DAMAGE) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"cannot read {name}: {reason}", hint) from error


def _chosen(names: Sequence[str], fields: Collection[str]) -> Sequence[str]:
    columns = names
    if not set(fields).isdisjoint(names):
        columns = [name for name in names if name in KNOWN or name in fields]
    for name, count in Counter(columns).items():
        if count > 1:
            raise ValueError(f"several columns are named `{name}`" if name else "several columns have no name")
    return columns


def _line(columns: Sequence[str], cells: Iterable[Any]) -> bytes:
    row = {}
    for name, cell in zip(columns, cells, strict=True):
        try:
            value = cell.as_py()
        except UnicodeDecodeError as error:
            value = error.object.decode(errors="surrogateescape")
        except DAMAGE as error:
            raise ValueError(f"column `{name}`: {error}") from error
        if value is not None and value == value:
            row[name] = value
    return f"{_encode(row)}\n".encode(errors="surrogateescape")


def parquet_table(keys: Sequence[str]) -> Table:
    """Encoder of the values that the objects of rows have under some keys, and of their input.

    Numbers of tokens and seeds are integers, probabilities are floating-point numbers, all else is text or JSON.
    """
    pyarrow, parquet = _import_pyarrow()

    def encode(objects: Iterable[JsonObject]) -> Iterator[bytes]:
        types = dict.fromkeys((*keys, INPUT), pyarrow.string())
        for key in types:
            if key in INTEGERS:
                types[key] = pyarrow.int64()
            elif key.startswith(FRACTIONS):
                types[key] = pyarrow.float64()
        schema, parts, objects = pyarrow.schema(types), list[bytes](), iter(objects)
        sink = SimpleNamespace(write=lambda data: parts.append(bytes(data)), flush=bool, close=bool, closed=False)
        with parquet.ParquetWriter(sink, schema) as writer:
            while rows := [{key: _cell(key, row.get(key)) for key in types} for row in islice(objects, ROWS)]:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
                yield b"".join(parts)
                parts.clear()
        yield b"".join(parts)

    return encode


def _cell(key: str, value: Any) -> Any:
    if value is None or isinstance(value, str) or key in INTEGERS or key.startswith(FRACTIONS):
        return value
    return to_json(value)


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"Parquet files need pyarrow: {error}", pip_install('"cerebrum-cli[eval]"')) from error
    return pyarrow, parquet
