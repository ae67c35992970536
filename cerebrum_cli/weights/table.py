"""A model with all its metadata and the location of each tensor: read from its files, and encoded for a new one."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from cerebrum_cli.core.errors import MergeError, ModelFileError
from cerebrum_cli.gguf.contents import (
    LAYOUTS,
    STRING,
    TENSOR_TYPES,
    VALUE_TYPES,
    Shape,
    Tensor,
    Tensors,
    Value,
    Values,
    aligned,
)
from cerebrum_cli.gguf.header import read_tables

ARCHITECTURE = "general.architecture"
VERSION = 3  # of the files written
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def split_layer(name: str) -> tuple[int | None, str]:
    """Split a tensor name into its layer number, None outside of layers, and the rest of the name."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return None, name
    return int(match[1]), match[2]


@dataclass(frozen=True)
class Table:
    """One model: the user's name for it, its metadata, and its tensors in file order."""

    name: str
    metadata: Values
    tensors: Tensors

    @property
    def architecture(self) -> str:
        return str(self.metadata[ARCHITECTURE].content)

    @property
    def n_layers(self) -> int:
        """Number of layers, which `require_loadable` has checked."""
        return int(self.hyperparameter("block_count"))

    @cached_property
    def tensors_by_layer(self) -> Mapping[int | None, Tensors]:
        """Tensors by layer number and name without it; under None those outside of layers."""
        result: dict[int | None, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            layer, suffix = split_layer(name)
            result.setdefault(layer, {})[suffix] = tensor
        return result

    @cached_property
    def global_tensors(self) -> Tensors:
        return self.tensors_by_layer.get(None, {})

    def content(self, key: str, default: Any = None) -> Any:
        if key not in self.metadata:
            return default
        return self.metadata[key].content

    def text(self, key: str) -> str | None:
        content = self.content(key)
        if not isinstance(content, str):
            return None
        return content or None

    def hyperparameter(self, key: str) -> Any:
        return self.content(f"{self.architecture}.{key}")

    def whole_number(self, key: str) -> int:
        """A hyperparameter, of the first layer if it has a value for each; 0 if it is missing. Raises MergeError."""
        value = self.hyperparameter(key)
        if isinstance(value, tuple):
            value = value[0] if value else None
        if not isinstance(value, int | None):
            problem = f"{self.name}: {self.architecture}.{key} is not a whole number: {str(value)[:60]!r}"
            raise MergeError(problem, "the file is damaged: download it again")
        return value or 0


def read_table(name: str, paths: Sequence[Path]) -> Table:
    """Read a model, whose first file has the metadata. Raises ModelFileError for a damaged file or an unknown type."""
    metadata: Values = {}
    tensors = {}
    for path in paths:
        tables = read_tables(path, whole=True)
        metadata = metadata or tables.values
        for entry in tables.tensors:
            if entry.name in tensors:
                raise ModelFileError(path, f"damaged: tensor {entry.name} is also in another part")
            if entry.type not in TENSOR_TYPES:
                raise ModelFileError(path, f"tensor {entry.name} has the unknown type {entry.type}")
            tensors[entry.name] = entry._replace(offset=tables.data_start + entry.offset)
    return Table(name, metadata, tensors)


def encode_header(metadata: Values, tensors: Iterable[tuple[str, Shape, int]]) -> bytes:
    """Encode everything before the first tensor's bytes, given each tensor's name, shape and type number.

    The tensors must follow in order, each aligned. The architecture comes first; empty arrays are left out.
    """
    values = {ARCHITECTURE: metadata[ARCHITECTURE], **metadata}
    rows = []
    for key, value in values.items():
        if value.content != ():
            rows.append(encode_string(key) + encode_value(value))
    infos = []
    offset = 0
    for name, shape, kind in tensors:
        infos.append(encode_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
        offset += aligned(TENSOR_TYPES[kind].bytes_of(prod(shape)))
    start = struct.pack("<4sIQQ", b"GGUF", VERSION, len(infos), len(rows))
    data = b"".join((start, *rows, *infos))
    return data.ljust(aligned(len(data)), b"\0")


def encode_value(value: Value) -> bytes:
    kind = VALUE_TYPES.index(value.type)
    if value.type == "ARRAY":
        item_kind = VALUE_TYPES.index(value.item_type)
        return struct.pack("<IIQ", kind, item_kind, len(value.content)) + encode_items(item_kind, value.content)
    return struct.pack("<I", kind) + encode_items(kind, (value.content,))


def encode_items(kind: int, items: Sequence[Any]) -> bytes:
    if kind == STRING:
        return b"".join(map(encode_string, items))
    return struct.pack(f"<{len(items)}{LAYOUTS[kind]}", *items)


def encode_string(text: str | bytes) -> bytes:
    """Encode a string with its length; bytes that were not UTF-8 when it was decoded stay unchanged."""
    if isinstance(text, str):
        text = text.encode(errors="surrogateescape")
    return struct.pack("<Q", len(text)) + text
