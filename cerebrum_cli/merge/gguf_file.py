"""GGUF files read and begun with the `gguf` library: the one door to it.

Importing it takes a third of a second and reading a vocabulary with it one or two: nothing else may use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from cerebrum_cli.ground.errors import ModelFileError
from cerebrum_cli.merge.table import ALIGNMENT, Table, Tensor, Value

ARCHITECTURE = "general.architecture"


class Entry(NamedTuple):
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
        reader = opened(path)
        if number == 0:
            fields = reader.fields.items()  # the counts of the file's own first bytes are among them
            metadata = {key: value_of(path, field) for key, field in fields if not key.startswith("GGUF.")}
        for each in reader.tensors:
            if each.name in tensors:
                raise ModelFileError(path, f"damaged: the tensor {each.name} is in another part too")
            shape = tuple(int(length) for length in each.shape)
            tensors[each.name] = Tensor(each.name, shape, int(each.tensor_type), path, int(each.data_offset))
    return Table(name, metadata, tensors)


def opened(path: Path) -> Any:
    """Return the library's reader of a file. It maps the file, of which only the header is read here."""
    try:
        return GGUFReader(path)
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(path, f"damaged, truncated, or of an encoding that cannot be merged ({reason})") from error


def value_of(path: Path, field: Any) -> Value:
    """Return a metadata value, its strings' bytes untouched."""
    kind = field.types[0]
    items = [field.parts[index] for index in field.data]
    if kind is not GGUFValueType.ARRAY:
        return Value(kind.name, string(bytes(items[0])) if kind is GGUFValueType.STRING else items[0][0].item())
    item_kind = field.types[1] if len(field.types) > 1 else GGUFValueType.UINT8  # that of an empty array is not kept
    if item_kind is GGUFValueType.ARRAY:
        raise ModelFileError(path, f"its {field.name} is an array of arrays", "merge another file of this model")
    if item_kind is GGUFValueType.STRING:
        return Value(kind.name, tuple(map(bytes, items)), item_kind.name)
    return Value(kind.name, tuple(np.concatenate(items).tolist()) if items else (), item_kind.name)


def string(data: bytes) -> str:
    """Return a text that becomes the same bytes again when it is written."""
    return data.decode("utf-8", "surrogateescape")


def header(metadata: Mapping[str, Value], entries: Iterable[Entry]) -> bytes:
    """Return all that stands in a file before its first tensor's bytes, which must follow in order, each aligned."""
    writer = GGUFWriter(None, str(metadata[ARCHITECTURE].content))  # which writes that by itself
    for key, value in metadata.items():
        if key == ARCHITECTURE or (value.is_array and not value.content):  # of empty arrays the library writes none
            continue
        sub_type = GGUFValueType[value.item_type] if value.is_array else None
        writer.add_key_value(key, stored(value), GGUFValueType[value.type], sub_type)
    for entry in entries:
        dimensions = tuple(reversed(entry.shape))
        kind = GGMLQuantizationType(entry.type)
        writer.add_tensor_info(entry.name, dimensions, np.dtype(np.float32), entry.size, raw_dtype=kind)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "header"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        written = path.read_bytes()
    return written + bytes(-len(written) % ALIGNMENT)


def stored(value: Value) -> Any:
    """Return a value as the library takes it: strings as bytes, so that none is changed."""
    return value.content.encode("utf-8", "surrogateescape") if value.type == "STRING" else value.content
