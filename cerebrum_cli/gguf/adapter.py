"""Adapter to the `gguf` library: read GGUF files and encode their headers.

Importing the library takes 0.3 s, so nothing else may import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.gguf_writer import WriterState

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.table import ALIGNMENT, Table, Tensor, Value

ARCHITECTURE = "general.architecture"


class TensorInfo(NamedTuple):
    """Header entry of a tensor: its shape, row length first, ggml type number and size in bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    size: int


def read_table(name: str, paths: Sequence[Path]) -> Table:
    """Read metadata and tensor locations of a model's files; the first file has the metadata.

    Raises ModelFileError for a file that is damaged, truncated, or has types unknown to the library.
    """
    metadata: dict[str, Value] = {}
    tensors: dict[str, Tensor] = {}
    for number, path in enumerate(paths):
        reader = open_reader(path)
        if number == 0:
            fields = reader.fields.items()  # includes the counts in the file's first bytes
            metadata = {key: read_value(reader.arrays, field) for key, field in fields if not key.startswith("GGUF.")}
        for each in reader.tensors:
            if each.name in tensors:
                raise ModelFileError(path, f"damaged: tensor {each.name} is also in another part")
            shape = tuple(int(length) for length in each.shape)
            tensors[each.name] = Tensor(each.name, shape, int(each.tensor_type), path, int(each.data_offset))
    return Table(name, metadata, tensors)


class Reader(GGUFReader):  # type: ignore[misc]  # it has no types
    """The library's reader, but arrays are read whole; the library creates objects per item, 1 s for 50,000."""

    def __init__(self, path: Path) -> None:
        self.arrays: dict[int, Value] = {}  # by the offset of their content
        super().__init__(path)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        """Size of a value in bytes, its parts, the indices of the parts with its content, and its types."""
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            found: tuple[int, list[Any], list[int], list[GGUFValueType]] = super()._get_field_parts(orig_offs, raw_type)
            return found
        item_type, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        kind, begin = GGUFValueType(item_type[0]), orig_offs + 12
        if kind is GGUFValueType.ARRAY:
            raise ValueError("nested array")
        items, end = self._items(begin, kind, int(length[0]))
        self.arrays[orig_offs] = Value("ARRAY", items, kind.name)
        content = self._get(begin, np.uint8, end - begin)
        return end - orig_offs, [item_type, length, content], [2], [GGUFValueType.ARRAY, kind]

    def _items(self, begin: int, kind: GGUFValueType, length: int) -> tuple[tuple[Any, ...], int]:
        """Items of an array, and the offset of its end."""
        if kind is not GGUFValueType.STRING:
            items = self._get(begin, self.gguf_scalar_to_np[kind], length)
            if len(items) < length:
                raise ValueError("array extends beyond the end of the file")
            return tuple(items.tolist()), begin + items.nbytes
        data, position, strings = memoryview(self.data), begin, []
        for _ in range(length):
            end = position + 8 + _LENGTH.unpack_from(data, position)[0]
            strings.append(bytes(data[position + 8 : end]))
            position = end
        if position > len(self.data):
            raise ValueError("string extends beyond the end of the file")
        return tuple(strings), position


_LENGTH = Struct("<Q")


def open_reader(path: Path) -> Reader:
    """Open a reader. It maps the file and reads only the header."""
    try:
        return Reader(path)
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, StructError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(path, f"damaged, truncated, or unsupported ({reason})") from error


def read_value(arrays: Mapping[int, Value], field: Any) -> Value:
    """Convert a field to a metadata value; strings keep their bytes.

    An array that `Reader` has not collected (it overrides a private method) is built from the library's parts.
    """
    kind = field.types[0]
    items = [field.parts[index] for index in field.data]
    if kind is not GGUFValueType.ARRAY:
        return Value(kind.name, decode_string(bytes(items[0])) if kind is GGUFValueType.STRING else items[0][0].item())
    begin = field.offset + sum(part.nbytes for part in field.parts[:3])
    if begin in arrays or len(field.types) < 2:
        return arrays.get(begin, Value(kind.name, (), GGUFValueType.UINT8.name))
    item_kind = field.types[1]
    if item_kind is GGUFValueType.STRING:
        return Value(kind.name, tuple(map(bytes, items)), item_kind.name)
    return Value(kind.name, tuple(np.concatenate(items).tolist()), item_kind.name)


def decode_string(data: bytes) -> str:
    """Decode a string so that encoding it gives the same bytes."""
    return data.decode("utf-8", "surrogateescape")


def encode_header(metadata: Mapping[str, Value], tensors: Iterable[TensorInfo]) -> bytes:
    """Encode everything before the first tensor's bytes; tensors must follow in order, each aligned."""
    writer = GGUFWriter(None, str(metadata[ARCHITECTURE].content))  # which writes the architecture itself
    for key, value in metadata.items():
        if key == ARCHITECTURE or (value.is_array and not value.content):  # the library cannot write empty arrays
            continue
        sub_type = GGUFValueType[value.item_type] if value.is_array else None
        writer.add_key_value(key, encode_value(value), GGUFValueType[value.type], sub_type)
    for tensor in tensors:
        dimensions = tuple(reversed(tensor.shape))
        kind = GGMLQuantizationType(tensor.type)
        writer.add_tensor_info(tensor.name, dimensions, np.dtype(np.float32), tensor.size, raw_dtype=kind)
    written = BytesIO()
    writer.fout, writer.state = [written], WriterState.EMPTY  # instead of opening a file
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    data = written.getvalue()
    return data + bytes(-len(data) % ALIGNMENT)


def encode_value(value: Value) -> Any:
    """Content of a value for the library: strings as bytes, so that they stay unchanged."""
    return value.content.encode("utf-8", "surrogateescape") if value.type == "STRING" else value.content
