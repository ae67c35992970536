"""GGUF files read and begun with the `gguf` library: the one door to it.

Importing it takes a third of a second: nothing else may use it.
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
    """A tensor of a file that is to be written: row length first, ggml's number of its type, its bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    size: int


def read_table(name: str, paths: Sequence[Path]) -> Table:
    """Return what the files of a model say; the first holds the metadata of all.

    Raises ModelFileError for a file that is damaged, truncated, or of types the library does not know.
    """
    metadata: dict[str, Value] = {}
    tensors: dict[str, Tensor] = {}
    for number, path in enumerate(paths):
        reader = open_reader(path)
        if number == 0:
            fields = reader.fields.items()  # the counts of the file's own first bytes are among them
            metadata = {key: read_value(reader.arrays, field) for key, field in fields if not key.startswith("GGUF.")}
        for each in reader.tensors:
            if each.name in tensors:
                raise ModelFileError(path, f"damaged: the tensor {each.name} is in another part too")
            shape = tuple(int(length) for length in each.shape)
            tensors[each.name] = Tensor(each.name, shape, int(each.tensor_type), path, int(each.data_offset))
    return Table(name, metadata, tensors)


class Reader(GGUFReader):  # type: ignore[misc]  # it has no types
    """The library's reader, which takes arrays whole: it makes objects of each item, a second for each 50,000."""

    def __init__(self, path: Path) -> None:
        self.arrays: dict[int, Value] = {}  # by where their content begins
        super().__init__(path)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        """Return the bytes of a value, its parts, which of them are its content, and its types."""
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            found: tuple[int, list[Any], list[int], list[GGUFValueType]] = super()._get_field_parts(orig_offs, raw_type)
            return found
        item_type, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        kind, begin = GGUFValueType(item_type[0]), orig_offs + 12
        if kind is GGUFValueType.ARRAY:
            raise ValueError("it has an array of arrays")
        items, end = self._items(begin, kind, int(length[0]))
        self.arrays[orig_offs] = Value("ARRAY", items, kind.name)
        content = self._get(begin, np.uint8, end - begin)
        return end - orig_offs, [item_type, length, content], [2], [GGUFValueType.ARRAY, kind]

    def _items(self, begin: int, kind: GGUFValueType, length: int) -> tuple[tuple[Any, ...], int]:
        """Return the items of an array, and where it ends."""
        if kind is not GGUFValueType.STRING:
            items = self._get(begin, self.gguf_scalar_to_np[kind], length)
            if len(items) < length:
                raise ValueError("an array goes beyond its end")
            return tuple(items.tolist()), begin + items.nbytes
        data, position, strings = memoryview(self.data), begin, []
        for _ in range(length):
            after = position + 8 + _LENGTH.unpack_from(data, position)[0]
            strings.append(bytes(data[position + 8 : after]))
            position = after
        if position > len(self.data):
            raise ValueError("a string goes beyond its end")
        return tuple(strings), position


_LENGTH = Struct("<Q")


def open_reader(path: Path) -> Reader:
    """Return a reader of a file. It maps the file, of which only the header is read here."""
    try:
        return Reader(path)
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, StructError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(path, f"damaged, truncated, or of an encoding that cannot be merged ({reason})") from error


def read_value(arrays: Mapping[int, Value], field: Any) -> Value:
    """Return a metadata value, its strings' bytes untouched; an array is looked for by where its content begins.

    One that is not found there is put together of the library's parts: what `Reader` overrides is not public.
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
    """Return a text that becomes the same bytes again when it is written."""
    return data.decode("utf-8", "surrogateescape")


def encode_header(metadata: Mapping[str, Value], tensors: Iterable[TensorInfo]) -> bytes:
    """Return all that stands in a file before its first tensor's bytes, which must follow in order, each aligned."""
    writer = GGUFWriter(None, str(metadata[ARCHITECTURE].content))  # which writes that by itself
    for key, value in metadata.items():
        if key == ARCHITECTURE or (value.is_array and not value.content):  # of empty arrays the library writes none
            continue
        sub_type = GGUFValueType[value.item_type] if value.is_array else None
        writer.add_key_value(key, encode_value(value), GGUFValueType[value.type], sub_type)
    for tensor in tensors:
        dimensions = tuple(reversed(tensor.shape))
        kind = GGMLQuantizationType(tensor.type)
        writer.add_tensor_info(tensor.name, dimensions, np.dtype(np.float32), tensor.size, raw_dtype=kind)
    written = BytesIO()
    writer.fout, writer.state = [written], WriterState.EMPTY  # as if it had opened a file
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    data = written.getvalue()
    return data + bytes(-len(data) % ALIGNMENT)


def encode_value(value: Value) -> Any:
    """Return a value as the library takes it: strings as bytes, so that none is changed."""
    return value.content.encode("utf-8", "surrogateescape") if value.type == "STRING" else value.content
