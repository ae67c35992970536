"""Files of datasets, and the Hugging Face cache that contains them."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

COMMIT = "a" * 40


def table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def cache_dataset(home: Path, repo_id: str, file: str, data: bytes) -> None:
    folder = f"datasets--{repo_id.replace('/', '--')}"
    path = home / ".cache" / "huggingface" / "hub" / folder / "snapshots" / COMMIT / file
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
