"""Parse the header of a GGUF file, whatever the file is for: metadata, and the entries of a tensor table.

The file is untrusted: counts and lengths are checked against the available bytes before anything is allocated, and
every failure is a ModelFileError of one line.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.files import exists, is_directory, is_file
from cerebrum_cli.gguf.types import SIGNATURE_BYTES, TENSOR_TYPES, TensorType, identify

Scalar = str | int | float | bool

STRING, ARRAY = 8, 9
# GGUF's value types by number.
VALUE_TYPES = (
    *("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "BOOL"),
    *("STRING", "ARRAY", "UINT64", "INT64", "FLOAT64"),
)
# Those other than string and array: short name and layout.
SCALARS = {
    number: (name, struct.Struct(f"<{layout}"))
    for number, name, layout in (
        *((0, "u8", "B"), (1, "i8", "b"), (2, "u16", "H"), (3, "i16", "h"), (4, "u32", "I"), (5, "i32", "i")),
        *((6, "f32", "f"), (7, "bool", "?"), (10, "u64", "Q"), (11, "i64", "q"), (12, "f64", "d")),
    )
}
_UINT32, _UINT64 = SCALARS[4][1], SCALARS[10][1]

# Limits far above known models (large vocabularies take about 20 MB, per-expert layouts a few thousand tensors).
_HEADER_BYTES = 128 << 20
_METADATA_COUNT = 4096
MAX_TENSORS = 1 << 17
_MAX_STRING_BYTES = 16 << 20  # chat templates take kilobytes, an embedded tokenizer.json a few megabytes
_MAX_STORED_ITEMS = 512  # arrays with an item per layer are stored, those with an item per token are not
_KEY_BYTES = 65535  # GGUF's own limit
_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME, less its zero byte
_TENSOR_DIMENSIONS = 4  # GGML_MAX_DIMS
ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT, in bytes
_VERSIONS = (2, 3)
METADATA_START = 24  # after the magic number, the version and two counts

# What the meaning of a token id, and the ids of a text, depend on.
VOCABULARY_KEYS = tuple(f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "token_type", "scores", "merges"))


class Array(NamedTuple):
    """Type and length of a metadata array, with the values of a short array of numbers."""

    item_type: str
    length: int
    values: tuple[int | float | bool, ...] = ()


class Value(NamedTuple):
    """A metadata value with the GGUF name of its type, such as "UINT32"; an array is a tuple, its strings are bytes."""

    type: str
    content: Any
    item_type: str = ""


class HeaderTruncated(ModelFileError):
    """The buffer ends before the header does."""


class Cursor:
    """A position in a file's header; each method reads one value and advances, or raises ModelFileError."""

    __slots__ = ("_data", "_end", "_path", "position")

    def __init__(self, path: Path, data: mmap.mmap | bytes, position: int) -> None:
        self._path = path
        self._data = data
        self._end = len(data)
        self.position = position

    def fail(self, problem: str) -> NoReturn:
        raise ModelFileError(self._path, problem)

    def uint32(self) -> int:
        return int(_UINT32.unpack_from(self._data, self._advance(4))[0])

    def uint64(self) -> int:
        return int(_UINT64.unpack_from(self._data, self._advance(8))[0])

    def string(self, label: str, max_length: int = _MAX_STRING_BYTES, errors: str = "replace") -> str:
        """Read a string; bytes that are not UTF-8 are replaced, unless `errors` names another handler."""
        return self._bytes(label, max_length).decode("utf-8", errors)

    def value(self) -> Scalar | Array:
        """Read a metadata value: its type, then its data."""
        value_type = self.uint32()
        if value_type == STRING:
            return self.string("metadata string")
        if value_type != ARRAY:
            return self._numbers(value_type, 1)[0]
        item_type, length = self.uint32(), self.uint64()
        if item_type == STRING:
            self._skip_strings(length)
            return Array("string", length)
        name, layout = self._scalar_type(item_type)
        if length <= _MAX_STORED_ITEMS:
            return Array(name, length, self._numbers(item_type, length))
        self._advance(layout.size * length)
        return Array(name, length)

    def whole_value(self) -> Value:
        """Read a metadata value that `value` accepts, with all items of an array, so that it can be written again."""
        value_type = self.uint32()
        if value_type == STRING:
            return Value("STRING", self.string("metadata string", errors="surrogateescape"))
        if value_type != ARRAY:
            return Value(VALUE_TYPES[value_type], self._numbers(value_type, 1)[0])
        item_type, length = self.uint32(), self.uint64()
        if item_type == STRING:
            return Value("ARRAY", tuple(self._bytes("string", self._end) for _ in range(length)), "STRING")
        return Value("ARRAY", self._numbers(item_type, length), VALUE_TYPES[item_type])

    def _bytes(self, label: str, max_length: int) -> bytes:
        length = self.uint64()
        if length > max_length:
            self.fail(f"damaged: a {label} of {length:,} bytes at byte {self.position:,}")
        start = self._advance(length)
        return self._data[start : start + length]

    def _numbers(self, value_type: int, count: int) -> tuple[int | float | bool, ...]:
        layout = self._scalar_type(value_type)[1]
        start = self._advance(layout.size * count)
        return struct.unpack_from(f"<{count}{layout.format[-1]}", self._data, start)

    def _skip_strings(self, count: int) -> None:
        """Skip `count` strings: the only loop that runs once per token and per merge (57 ns each)."""
        if count * 8 > self._end - self.position:
            self._fail_truncated()
        unpack, data, position = _UINT64.unpack_from, self._data, self.position
        try:
            for _ in range(count):
                position += 8 + unpack(data, position)[0]
        except (struct.error, OverflowError):
            self._fail_truncated()
        self.position = position
        self._advance(0)

    def _scalar_type(self, value_type: int) -> tuple[str, struct.Struct]:
        if value_type not in SCALARS:
            self.fail(f"damaged: metadata value of unknown type {value_type} at byte {self.position:,}")
        return SCALARS[value_type]

    def _advance(self, size: int) -> int:
        """Advance by `size` bytes and return where they begin."""
        start = self.position
        if size > self._end - start:
            self._fail_truncated()
        self.position = start + size
        return start

    def _fail_truncated(self) -> NoReturn:
        raise HeaderTruncated(self._path, f"truncated or damaged: its header does not end before byte {self._end:,}")


Metadata = Mapping[str, Scalar | Array]


class Tensor(NamedTuple):
    """A tensor in a file: its shape, row length first; ggml type number; file and offset in bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    path: Path
    offset: int

    @property
    def kind(self) -> TensorType:
        """Its type; an unknown one has no bytes."""
        return TENSOR_TYPES.get(self.type) or TensorType(f"type {self.type}", 1, 0)

    @property
    def size(self) -> int:
        """Size in bytes; 0 for an unknown type."""
        return self.kind.bytes_of(math.prod(self.shape))


class Tables(NamedTuple):
    """Parts of a header; its `length` is in bytes, without the padding before the tensors' data at `data_start`.

    Offsets of tensors count from the start of the data. `vocabulary` are the first byte and the end of each
    VOCABULARY_KEYS value that the file has.
    """

    metadata: Metadata
    vocabulary: Mapping[str, tuple[int, int]]
    tensors: list[Tensor]
    length: int
    data_start: int


def read_tables(path: Path) -> Tables:
    """Read the header of a GGUF file. Raises ModelFileError for a path or file that cannot be opened, or is damaged."""
    with _mapped(path) as (data, size):
        return parse_tables(path, data, size)


def read_values(path: Path) -> tuple[Tables, dict[str, Value]]:
    """Read the header of a GGUF file with all metadata as it is stored. Raises ModelFileError as `read_tables` does."""
    with _mapped(path) as (data, size):
        tables = parse_tables(path, data, size)
        cursor = Cursor(path, data, METADATA_START)
        return tables, {cursor.string("metadata key"): cursor.whole_value() for _ in tables.metadata}


@contextmanager
def _mapped(path: Path) -> Iterator[tuple[mmap.mmap, int]]:
    """The first bytes of a file, and its size."""
    try:
        if not exists(path):
            raise ModelFileError(path, "file not found", "check the path")
        if is_directory(path):
            raise ModelFileError(path, "is a directory", "name the .gguf file inside it")
        if not is_file(path):
            raise ModelFileError(path, "is not a regular file", "name a .gguf file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise ModelFileError(path, "the file is empty")
            with mmap.mmap(file.fileno(), min(size, _HEADER_BYTES), access=mmap.ACCESS_READ) as data:
                yield data, size
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, or a shrinking file
        raise ModelFileError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse_tables(path: Path, data: mmap.mmap | bytes, size: int) -> Tables:
    """Parse the header of a GGUF file of `size` bytes from its first bytes; `path` is for error messages.

    Raises HeaderTruncated if `data` ends before the header, ModelFileError for other failures.
    """
    if data[:4] != b"GGUF":
        raise ModelFileError(path, *identify(data[:SIGNATURE_BYTES]))
    cursor = Cursor(path, data, position=4)
    version = cursor.uint32()
    if version and not version & 0xFFFF:
        raise ModelFileError(path, "big-endian", "pull the little-endian file of this model")
    if version < min(_VERSIONS):
        raise ModelFileError(path, f"GGUF version {version} is no longer supported", "pull a newer file of this model")
    if version > max(_VERSIONS):
        raise ModelFileError(path, f"GGUF version {version} is newer than version {max(_VERSIONS)}", "update cerebrum")
    tensor_count, metadata_count = cursor.uint64(), cursor.uint64()
    if tensor_count > MAX_TENSORS or metadata_count > _METADATA_COUNT:
        cursor.fail(f"damaged: {tensor_count:,} tensors and {metadata_count:,} metadata values")
    metadata, vocabulary = _read_metadata(cursor, metadata_count)
    tensors = _read_tensors(path, cursor, tensor_count)
    alignment = checked_integer(path, "general.alignment", metadata.get("general.alignment", ALIGNMENT))
    if alignment == 0 or alignment & (alignment - 1):
        raise ModelFileError(path, f"damaged: its general.alignment {alignment:,} is not a power of two")
    tables = Tables(metadata, vocabulary, tensors, cursor.position, aligned(cursor.position, alignment))
    _check_extent(path, tables, alignment, size)
    return tables


def checked_integer(path: Path, key: str, value: Scalar | Array) -> int:
    """A metadata value as an unsigned integer of 32 bits. Raises ModelFileError for any other."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise ModelFileError(path, f"damaged: its {quoted(key)} is {quoted(str(value))}")
    return value


def quoted(text: str) -> str:
    """Text from the file, quoted, shortened and safe to print."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")


def _read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, Scalar | Array], dict[str, tuple[int, int]]]:
    metadata: dict[str, Scalar | Array] = {}
    vocabulary = {}
    for _ in range(count):
        key = cursor.string("metadata key", _KEY_BYTES)
        if not key or key in metadata:
            cursor.fail(f"damaged: the metadata key {quoted(key)} is {'duplicated' if key else 'empty'}")
        start = cursor.position
        metadata[key] = cursor.value()
        if key in VOCABULARY_KEYS:
            vocabulary[key] = start, cursor.position
    return metadata, vocabulary


def _read_tensors(path: Path, cursor: Cursor, count: int) -> list[Tensor]:
    tensors = []
    names = set()
    for _ in range(count):
        name = cursor.string("tensor name", _TENSOR_NAME_BYTES)
        if name in names:
            cursor.fail(f"damaged: the tensor {quoted(name)} is duplicated")
        names.add(name)
        n_dims = cursor.uint32()
        if n_dims > _TENSOR_DIMENSIONS:
            cursor.fail(f"damaged: the tensor {quoted(name)} has {n_dims:,} dimensions")
        shape = tuple(cursor.uint64() for _ in range(n_dims))
        if math.prod(shape) >= 1 << 63:
            cursor.fail(f"damaged: the tensor {quoted(name)} has {math.prod(shape):,} weights")
        tensors.append(Tensor(name, shape, cursor.uint32(), path, cursor.uint64()))
    return tensors


def _check_extent(path: Path, tables: Tables, alignment: int, size: int) -> None:
    """Check that tensors are contiguous, as llama.cpp expects, and that the file contains them all.

    The end of a tensor of an unknown type is unknown; the offset of the next one is then accepted.
    """
    expected: int | None = 0
    end = 0
    for tensor in tables.tensors:
        offset = tensor.offset
        if offset % alignment or (expected is not None and offset != expected) or offset < end:
            where = f"at byte {offset:,} of the data" + (f", not {expected:,}" if expected is not None else "")
            raise ModelFileError(path, f"damaged: the tensor {quoted(tensor.name)} begins {where}")
        kind = TENSOR_TYPES.get(tensor.type)
        row = tensor.shape[0] if tensor.shape else 1
        if kind and row % kind.block_size:
            problem = f"the tensor {quoted(tensor.name)} has rows of {row:,} weights in blocks of {kind.block_size}"
            raise ModelFileError(path, f"damaged: {problem} ({kind.name})")
        end = offset + tensor.size
        expected = aligned(end, alignment) if kind else None
    needed = tables.data_start + end if end else tables.length
    if needed > size:
        problem = f"truncated: its tensors end at byte {needed:,}, but the file has {size:,} bytes"
        raise ModelFileError(path, problem, "pull it again, or copy it again")


def aligned(position: int, alignment: int = ALIGNMENT) -> int:
    """Round a position or size up to the alignment."""
    return -(-position // alignment) * alignment
