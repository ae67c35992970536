"""The tensors of a checkpoint: read from the headers of its safetensors files, without their weights.

The files are untrusted: names, types and offsets are checked, and every failure is a ModelFileError of one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.files import reading_model
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.gguf.parser import Shape, quoted
from cerebrum_cli.gguf.types import TENSOR_TYPES, TYPE_NUMBERS

INDEX = "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_NOT_SHARDS = ("consolidated", "adapter_")  # the same weights in Mistral's layout, and weights of adapters
FLOATS = ("F32", "F16", "BF16")
_MAX_HEADER = 100_000_000  # bytes, as in the format's own library
_MAX_JSON = 1 << 27
PULL_AGAIN = "pull it again, or copy it again"


class StoredTensor(NamedTuple):
    """A tensor in a file: its shape, outermost dimension first; name of its type; file, offset and size in bytes."""

    shape: Shape
    type: str
    path: Path
    offset: int
    size: int


def read_json(path: Path) -> JsonObject:
    """Read a JSON object. Raises ModelFileError."""
    with reading_model(path):
        if path.stat().st_size > _MAX_JSON:
            raise ModelFileError(path, "is too large")
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(path, f"not JSON: {error}", PULL_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelFileError(path, "not a JSON object", PULL_AGAIN)
    return value


def read_shards(folder: Path) -> dict[str, StoredTensor]:
    """The tensors in all shards of a checkpoint by name. Raises ModelFileError."""
    tensors = dict[str, StoredTensor]()
    index = folder / INDEX
    placed = shard_names(index) if index.is_file() else {}  # the shard of each tensor
    names = shards_among(folder, [path.name for path in folder.iterdir()])
    if not names:
        raise ModelFileError(folder, f"has no {_SUFFIX} files", "name a folder with config.json and safetensors")
    for name in names:
        for tensor, stored in read_header(folder / name).items():
            if tensor in tensors:
                raise ModelFileError(folder / name, f"the tensor {quoted(tensor)} is also in another file", PULL_AGAIN)
            tensors[tensor] = stored
    for tensor, name in placed.items():
        if tensor not in tensors or tensors[tensor].path.name != name:
            raise ModelFileError(index, f"the tensor {quoted(tensor)} is not in {name}", PULL_AGAIN)
    return tensors


def shards_among(folder: Path, files: Iterable[str]) -> list[str]:
    """The shards of a checkpoint with these files: those in its index, or else all. Raises ModelFileError."""
    index = folder / INDEX
    if index.is_file():
        return sorted({*shard_names(index).values()})
    return sorted(filter(is_shard, files))


def is_shard(name: str) -> bool:
    """Whether a file of this name in a checkpoint has weights of the model."""
    return name.endswith(_SUFFIX) and "/" not in name and not name.startswith(_NOT_SHARDS)


def shard_names(index: Path) -> dict[str, str]:
    """The name of the file of each tensor, by the index of a checkpoint. Raises ModelFileError."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelFileError(index, "has no weight_map", PULL_AGAIN)
    for name in placed.values():
        if not isinstance(name, str) or not name.endswith(_SUFFIX) or Path(name).name != name:
            raise ModelFileError(index, f"{quoted(str(name))} is not the name of a {_SUFFIX} file", PULL_AGAIN)
    return placed


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors in one file. Raises ModelFileError if it is damaged or truncated."""
    with reading_model(path), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        end = header_end(file.read(8))
        if not 10 <= end <= min(_MAX_HEADER, size):
            raise ModelFileError(path, f"not a {_SUFFIX} file, or truncated: {size:,} bytes", PULL_AGAIN)
        content = file.read(end - 8)
    return parse_header(path, content, end, size)


def header_end(beginning: bytes) -> int:
    """Where the header of a file that begins with these bytes ends, which is where weights begin."""
    return 8 + int.from_bytes(beginning[:8], "little")


def parse_header(path: Path, content: bytes, start: int, size: int) -> dict[str, StoredTensor]:
    """The tensors of a file of `size` bytes by its header; their bytes begin at `start`. Raises ModelFileError."""
    try:
        header = json.loads(content)
        tensors = {name: _stored(path, start, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(path, "damaged: its header is invalid", PULL_AGAIN) from error
    end = max((tensor.offset + tensor.size for tensor in tensors.values()), default=start)
    if end > size:
        problem = f"truncated: its tensors end at byte {end:,}, but the file has {size:,} bytes"
        raise ModelFileError(path, problem, PULL_AGAIN)
    return tensors


def _stored(path: Path, start: int, entry: Mapping[str, Any]) -> StoredTensor:
    """A tensor by its entry in a header. Raises ValueError, LookupError or TypeError for an invalid one."""
    begin, end = entry["data_offsets"]
    shape = tuple(map(int, entry["shape"]))
    kind = str(entry["dtype"])
    if begin < 0 or end < begin or any(length < 0 for length in shape):
        raise ValueError("invalid offsets or shape")
    if kind in FLOATS and end - begin != TENSOR_TYPES[TYPE_NUMBERS[kind]].bytes_of(prod(shape)):
        raise ValueError("a size unlike that of the shape")
    return StoredTensor(shape, kind, path, start + begin, end - begin)
