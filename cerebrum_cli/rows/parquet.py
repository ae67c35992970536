"""The rows of a Parquet file as lines of JSON. Needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO

from cerebrum_cli.core.errors import DAMAGE, UsageError
from cerebrum_cli.core.text import pip_install

READ_ROWS = 1024  # in memory at a time


def json_lines(file: BinaryIO, name: str, hint: str) -> Iterator[bytes]:
    """Yield the rows of an open file without missing values. Raises UsageError, with the hint for a damaged file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"Parquet files need pyarrow: {error}", pip_install('"cerebrum-cli[eval]"')) from error
    try:
        source = parquet.ParquetFile(file)
        names = source.schema_arrow.names
        if len(set(names)) < len(names):
            raise ValueError("several columns have the same name")
        for batch in source.iter_batches(READ_ROWS, use_threads=False):
            for row in batch.to_pylist():
                present = {key: value for key, value in row.items() if value is not None and value == value}
                yield f"{json.dumps(present, ensure_ascii=False, default=_text)}\n".encode()
    except (pyarrow.ArrowException, OSError, *DAMAGE) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"cannot read {name}: {reason}", hint) from error


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
