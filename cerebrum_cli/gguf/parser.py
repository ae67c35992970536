"""Parse the header of a GGUF file, whatever the file is for: metadata, and the entries of a tensor table.

The file is untrusted: counts and lengths are checked against the available bytes before anything is allocated, and
every failure is a ModelFileError of one line.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.files import Paths, reading_model
from cerebrum_cli.gguf.types import TENSOR_TYPES, TensorType

Scalar = str | int | float | bool

STRING, ARRAY = 8, 9
# By the number of a GGUF value type: its name, and that of an array's items.
_VALUE_TYPES = "UINT8 INT8 UINT16 INT16 UINT32 INT32 FLOAT32 BOOL STRING ARRAY UINT64 INT64 FLOAT64"
VALUE_TYPES = tuple(_VALUE_TYPES.split())
_ITEM_TYPES = "u8 i8 u16 i16 u32 i32 f32 bool string array u64 i64 f64"
ITEM_TYPES = tuple(_ITEM_TYPES.split())
# Of the types other than string and array: the layout as in the `struct` module.
LAYOUTS = dict(enumerate("BbHhIif?")) | dict(enumerate("Qqd", 10))

# Limits far above known models (large vocabularies take about 20 MB, per-expert layouts a few thousand tensors).
_HEADER_BYTES = 128 << 20
_METADATA_COUNT = 4096
MAX_TENSORS = 1 << 17
_MAX_STRING_BYTES = 16 << 20  # chat templates take kilobytes, an embedded tokenizer.json a few megabytes
_MAX_STORED_ITEMS = 512  # arrays with an item per layer are stored, those with an item per token are not
_TENSOR_DIMENSIONS = 4  # GGML_MAX_DIMS
ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT, in bytes

_NAME_A_FILE = "name a .gguf file; cerebrum pull converts a folder with safetensors"
VOCABULARY = "tokenizer.ggml."  # how the keys of a vocabulary begin


class Array(NamedTuple):
    """Type and length of a metadata array, with the values of a short array of numbers."""

    item_type: str
    length: int
    values: tuple[int | float | bool, ...] = ()


class Value(NamedTuple):
    """A metadata value with the GGUF name of its type, such as "UINT32".

    An array is an Array. If it was read whole, it is a tuple, and its strings are bytes.
    """

    type: str
    content: Any
    item_type: str = ""


class HeaderTruncated(ModelFileError):
    """The buffer ends before the header does."""


@dataclass(slots=True)
class Cursor:
    """A position in a file's header; each method reads values and advances, or raises ModelFileError.

    `whole` metadata has all its items, so that it can be written again.
    """

    path: Path
    data: mmap.mmap | bytes
    position: int
    whole: bool

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Read little-endian values of a layout, as in the `struct` module."""
        try:
            values = struct.unpack_from(f"<{layout}", self.data, self.position)
        except (struct.error, OverflowError):
            raise self._truncated() from None
        self.position += struct.calcsize(f"<{layout}")
        return values

    def string(self, label: str) -> bytes:
        """Read the bytes of a string, mostly UTF-8."""
        [length] = self.unpack("Q")
        if length > _MAX_STRING_BYTES:
            raise self.damaged(f"a {label} of {length:,} bytes at byte {self.position:,}")
        [data] = self.unpack(f"{length}s")
        return bytes(data)

    def value(self) -> Value:
        """Read a metadata value: its type, then its data."""
        [kind] = self.unpack("I")
        if kind == ARRAY:
            return self._array()
        if kind == STRING:
            encoding_errors = "surrogateescape" if self.whole else "replace"
            return Value("STRING", self.string("metadata string").decode(errors=encoding_errors))
        [number] = self.unpack(self._layout(kind))
        return Value(VALUE_TYPES[kind], number)

    def _layout(self, kind: int) -> str:
        if kind not in LAYOUTS:
            raise self.damaged(f"metadata value of unknown type {kind} at byte {self.position:,}")
        return LAYOUTS[kind]

    def _array(self) -> Value:
        kind, length = self.unpack("IQ")
        items = self._strings(length) if kind == STRING else self._numbers(kind, length)
        return Value("ARRAY", items, VALUE_TYPES[kind])

    def _numbers(self, kind: int, length: int) -> Array | tuple[Any, ...]:
        layout = self._layout(kind)
        if self.whole:
            return self.unpack(f"{length}{layout}")
        if length <= _MAX_STORED_ITEMS:
            return Array(ITEM_TYPES[kind], length, self.unpack(f"{length}{layout}"))
        self.unpack(f"{length * struct.calcsize(layout)}x")
        return Array(ITEM_TYPES[kind], length)

    def _strings(self, length: int) -> Array | tuple[bytes, ...]:
        if self.whole:
            return tuple(self.string("string") for _ in range(length))
        # the only loop that runs once per token and per merge (57 ns each)
        unpack = struct.Struct("<Q").unpack_from
        data = self.data
        end = self.position
        try:
            for _ in range(length):
                end += 8 + unpack(data, end)[0]
        except (struct.error, OverflowError):
            raise self._truncated() from None
        self.unpack(f"{end - self.position}x")
        return Array("string", length)

    def _truncated(self) -> HeaderTruncated:
        problem = f"truncated or damaged: its header does not end before byte {len(self.data):,}"
        return HeaderTruncated(self.path, problem)

    def damaged(self, problem: str) -> ModelFileError:
        return ModelFileError(self.path, f"damaged: {problem}")


Metadata = Mapping[str, Scalar | Array]
Values = Mapping[str, Value]
Shape = tuple[int, ...]  # of a tensor, row length first


ReadBytes = Callable[[Path, int, int], bytes]  # reads from a file, at an offset, a number of bytes


class TensorSource(Protocol):
    """How the bytes of a tensor come from others; it is hashable."""

    @property
    def paths(self) -> Paths:
        """The files that are read."""

    def read(self, read: ReadBytes, begin: int, size: int) -> bytes:
        """Bytes of the tensor from `begin` on."""


class Tensor(NamedTuple):
    """A tensor in a file: its shape; ggml type number; file and offset in bytes.

    With a `source`, its bytes are computed, and the offset counts in these.
    """

    name: str
    shape: Shape
    type: int
    path: Path
    offset: int
    source: TensorSource | None = None

    @property
    def kind(self) -> TensorType:
        """Its type; an unknown one has a size of 0."""
        return TENSOR_TYPES.get(self.type) or TensorType(f"type {self.type}", 1, 0)

    @property
    def size(self) -> int:
        return self.kind.bytes_of(math.prod(self.shape))


class Tables(NamedTuple):
    """Parts of a header; its `length` is in bytes, without the padding before the tensors' data at `data_start`.

    `metadata` are the contents of `values`. Offsets of tensors count from the start of the data. `vocabulary` is where
    the values of the vocabulary begin and end in the file.
    """

    metadata: Metadata
    values: Values
    vocabulary: tuple[int, int]
    tensors: list[Tensor]
    length: int
    data_start: int


def read_tables(path: Path, whole: bool = False) -> Tables:
    """Read the header of a GGUF file, `whole` with all metadata as it is stored.

    Raises ModelFileError for a path or file that cannot be opened, or is damaged.
    """
    with reading_model(path):
        if not path.is_file():
            raise ModelFileError(path, "is not a file" if path.exists() else "file not found", _NAME_A_FILE)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            with mmap.mmap(file.fileno(), min(size, _HEADER_BYTES), access=mmap.ACCESS_READ) as data:
                return parse_tables(path, data, size, whole)


def parse_tables(path: Path, data: mmap.mmap | bytes, size: int, whole: bool = False) -> Tables:
    """Parse the header of a GGUF file of `size` bytes from its first bytes; `path` is for error messages.

    Raises HeaderTruncated if `data` ends before the header, ModelFileError for other failures.
    """
    cursor = Cursor(path, data, 4, whole)
    n_tensors, n_values = _read_counts(cursor)
    values, vocabulary = _read_values(cursor, n_values)
    metadata = {key: value.content for key, value in values.items()}
    alignment = checked_integer(path, "general.alignment", metadata.get("general.alignment", ALIGNMENT))
    if alignment.bit_count() != 1:
        raise cursor.damaged(f"its general.alignment {alignment:,} is not a power of two")
    tensors = [_read_tensor(cursor) for _ in range(n_tensors)]
    data_start = aligned(cursor.position, alignment)
    end = data_start + max((tensor.offset + tensor.size for tensor in tensors), default=0)
    if tensors and end > size:
        problem = f"truncated: its tensors end at byte {end:,}, but the file has {size:,} bytes"
        raise ModelFileError(path, problem, "pull it again, or copy it again")
    return Tables(metadata, values, vocabulary, tensors, cursor.position, data_start)


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    """The numbers of tensors and metadata values, behind the magic bytes and the version."""
    path, magic = cursor.path, bytes(cursor.data[:40])
    if not magic.startswith(b"GGUF"):
        hint = "llama.cpp reads GGUF: pull a GGUF of this model, or convert it"
        if path.suffix == ".safetensors":
            hint = f"convert its folder: cerebrum pull {path.parent}"
        raise not_a_model(path, magic, f"not a GGUF file: it begins with {magic!r}", hint)
    version, n_tensors, n_values = cursor.unpack("IQQ")
    if version not in (2, 3):  # that of a big-endian file is very large
        raise ModelFileError(path, f"GGUF version {version:,}, not 2 or 3", "pull another file of this model")
    if n_tensors > MAX_TENSORS or n_values > _METADATA_COUNT:
        raise cursor.damaged(f"{n_tensors:,} tensors and {n_values:,} metadata values")
    return n_tensors, n_values


def checked_integer(path: Path, key: str, value: Scalar | Array) -> int:
    """A metadata value as an unsigned integer of 32 bits. Raises ModelFileError for any other."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise ModelFileError(path, f"damaged: its {quoted(key)} is {quoted(str(value))}")
    return value


def not_a_model(path: Path, beginning: bytes, problem: str, hint: str) -> ModelFileError:
    """The error for a file that does not hold what its name promises; Git may hold it elsewhere."""
    if beginning.startswith(b"version https://git-lfs"):
        return ModelFileError(path, "a Git LFS pointer, not the file", "download the file: git lfs pull")
    return ModelFileError(path, problem, hint)


def quoted(text: str) -> str:
    """Text from the file, quoted, shortened and safe to print."""
    if len(text) > 80:
        text = f"{text[:80]}..."
    return ascii(text)


def _read_values(cursor: Cursor, count: int) -> tuple[Values, tuple[int, int]]:
    """Read metadata values, and where those of the vocabulary begin and end."""
    values = {}
    vocabulary = (0, 0)
    for _ in range(count):
        key = cursor.string("metadata key").decode(errors="replace")
        start = cursor.position
        values[key] = cursor.value()
        if key.startswith(VOCABULARY):
            vocabulary = (vocabulary[0] or start, cursor.position)
    return values, vocabulary


def _read_tensor(cursor: Cursor) -> Tensor:
    name = cursor.string("tensor name").decode(errors="replace")
    [n_dims] = cursor.unpack("I")
    if n_dims > _TENSOR_DIMENSIONS:
        raise cursor.damaged(f"the tensor {quoted(name)} has {n_dims:,} dimensions")
    *shape, number, offset = cursor.unpack(f"{n_dims}QIQ")
    tensor = Tensor(name, tuple(shape), number, cursor.path, offset)
    row = shape[0] if shape else 1
    if row % tensor.kind.block_size:
        problem = f"has rows of {row:,} weights in blocks of {tensor.kind.block_size} ({tensor.kind.name})"
        raise cursor.damaged(f"the tensor {quoted(name)} {problem}")
    return tensor


def aligned(position: int, alignment: int = ALIGNMENT) -> int:
    """Round a position or size up to the alignment."""
    return -(-position // alignment) * alignment
