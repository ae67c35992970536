"""The tensors of a checkpoint: read from the headers of its safetensors files, without their weights.

The files are untrusted: names, types and offsets are checked, and every failure is a ModelFileError of one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.files import reading_model
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.gguf.contents import TENSOR_TYPES, TYPE_NUMBERS, Shape, quoted
from cerebrum_cli.gguf.header import not_a_model

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_NOT_SHARDS = ("consolidated", "adapter_")  # the same weights in Mistral's layout, and weights of adapters
FLOATS = ("F32", "F16", "BF16")
_NUMBERED = re.compile(r"(.*-)\d{5}(-of-(\d{5})\.safetensors)")
_MAX_HEADER = 100_000_000  # bytes, as in the format's own library
PULL_AGAIN = "pull it again, or copy it again"


class StoredTensor(NamedTuple):
    """A tensor in a file: its shape, outermost dimension first; name of its type; file, offset and size in bytes."""

    shape: Shape
    type: str
    path: Path
    offset: int
    size: int


StoredTensors = tuple[StoredTensor, ...]


def read_json(path: Path) -> JsonObject:
    """Read a JSON object, which is empty without the file. Raises ModelFileError."""
    with reading_model(path):
        if not path.is_file():
            return {}
        content = path.read_bytes()
    try:
        return dict(json.loads(content))
    except (TypeError, ValueError, RecursionError) as error:
        raise not_a_model(path, content, f"damaged: {error}", PULL_AGAIN) from error


def read_shards(folder: Path) -> dict[str, StoredTensor]:
    """The tensors in all shards of a checkpoint by name. Raises ModelFileError."""
    tensors = dict[str, StoredTensor]()
    files = file_names(folder)
    for name in shards_among(folder, files):
        if name not in files:
            raise ModelFileError(folder, f"lacks {name}, a part of the weights", "download this file as well")
        found = read_header(folder / name)
        for tensor in found.keys() & tensors:
            raise ModelFileError(folder / name, f"the tensor {quoted(tensor)} is also in another file", PULL_AGAIN)
        tensors |= found
    return tensors


def file_names(folder: Path) -> list[str]:
    with reading_model(folder):
        return [path.name for path in folder.iterdir() if path.is_file()]


def shards_among(folder: Path, files: Collection[str]) -> list[str]:
    """The shards of a checkpoint with these files, as transformers chooses them. Raises ModelFileError.

    They are the whole model in one file, or else those in its index, or else all, which must be as many as their names
    say.
    """
    if WHOLE in files:
        return [WHOLE]
    index = folder / INDEX
    if not index.is_file():
        shards = sorted(filter(is_shard, files))
        if shards and (numbered := _NUMBERED.fullmatch(shards[0])):
            return [f"{numbered[1]}{number:05}{numbered[2]}" for number in range(1, int(numbered[3]) + 1)]
        return shards
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) and is_shard(name) for name in placed.values()):
        raise ModelFileError(index, f"does not name the {_SUFFIX} file of each tensor", PULL_AGAIN)
    return sorted({*placed.values()})


def is_shard(name: str) -> bool:
    """Whether a file of this name in a checkpoint has weights of the model."""
    return name.endswith(_SUFFIX) and "/" not in name and not name.startswith(_NOT_SHARDS)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors in one file. Raises ModelFileError if it is damaged or truncated."""
    with reading_model(path), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        beginning = file.read(8)
        start = header_end(beginning)
        content = file.read(min(start, _MAX_HEADER) - 8)
    try:
        header = json.loads(content)
        tensors = {name: _stored(path, start, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"damaged, or not a {_SUFFIX} file: {error}"
        raise not_a_model(path, beginning + content, problem, PULL_AGAIN) from error
    end = max((tensor.offset + tensor.size for tensor in tensors.values()), default=start)
    if end > size:
        problem = f"truncated: its tensors end at byte {end:,}, but the file has {size:,} bytes"
        raise ModelFileError(path, problem, PULL_AGAIN)
    return tensors


def header_end(beginning: bytes) -> int:
    """Where the header of a file that begins with these bytes ends, which is where weights begin."""
    return 8 + int.from_bytes(beginning[:8], "little")


def _stored(path: Path, start: int, entry: JsonObject) -> StoredTensor:
    """Parse the entry of a tensor in a header. Raises ValueError, LookupError or TypeError if it is invalid."""
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    kind = str(entry["dtype"])
    if not all(type(number) is int for number in (begin, end, *shape)):
        raise TypeError("offsets or shape that are not whole numbers")
    if begin < 0 or end < begin or any(length < 0 for length in shape):
        raise ValueError("invalid offsets or shape")
    if kind in FLOATS and end - begin != TENSOR_TYPES[TYPE_NUMBERS[kind]].bytes_of(prod(shape)):
        raise ValueError("the size does not match the shape")
    return StoredTensor(shape, kind, path, start + begin, end - begin)
