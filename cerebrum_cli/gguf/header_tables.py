"""What the header of a GGUF file consists of, whatever the file is for: metadata, and the entries of a tensor table.

The file is untrusted: counts and lengths are checked against the available bytes before anything is allocated, and
every failure is a ModelFileError of one line.
"""

from __future__ import annotations

import math
import mmap
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.cursor import Array, Cursor, Scalar
from cerebrum_cli.gguf.signatures import SIGNATURE_BYTES, identify
from cerebrum_cli.gguf.types import TENSOR_TYPES

Metadata = Mapping[str, Scalar | Array]

# Limits far above known models (large vocabularies take about 20 MB, per-expert layouts a few thousand tensors).
_HEADER_BYTES = 128 << 20
_METADATA_COUNT = 4096
MAX_TENSORS = 1 << 17
_KEY_BYTES = 65535  # GGUF's own limit
_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME, less its zero byte
_TENSOR_DIMENSIONS = 4  # GGML_MAX_DIMS
_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
_VERSIONS = (2, 3)

# What the meaning of a token id, and the ids of a text, depend on.
VOCABULARY_KEYS = tuple(f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "token_type", "scores", "merges"))


class TensorEntry(NamedTuple):
    """Entry of the tensor table: `shape` with the row length first, `type` as ggml's number, `offset` in the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def type_name(self) -> str:
        known = TENSOR_TYPES.get(self.type)
        return known.name if known else f"type {self.type}"

    @property
    def size(self) -> int | None:
        """Size in bytes; None for an unknown type."""
        known = TENSOR_TYPES.get(self.type)
        return known and known.bytes_of(math.prod(self.shape))


class Tables(NamedTuple):
    """What a header consists of; its `length` is in bytes.

    `vocabulary` are the first byte and the end of each VOCABULARY_KEYS value that the file has.
    """

    version: int
    metadata: Metadata
    vocabulary: Mapping[str, tuple[int, int]]
    tensors: list[TensorEntry]
    length: int


def read_tables(path: Path) -> Tables:
    """Read the header of a GGUF file, and check its tensor table against the file's size.

    Raises ModelFileError for a path or file that cannot be opened.
    """
    try:
        _require_file(path)
        with path.open("rb") as file:
            signature = file.read(SIGNATURE_BYTES)
            if not signature:
                raise ModelFileError(path, "the file is empty")
            size = file.seek(0, 2)
            with mmap.mmap(file.fileno(), min(size, _HEADER_BYTES), access=mmap.ACCESS_READ) as data:
                return parse_tables(path, data, size)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, or a shrinking file
        raise ModelFileError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse_tables(path: Path, data: mmap.mmap | bytes, size: int) -> Tables:
    """Parse the header of a GGUF file of `size` bytes from its first bytes; `path` is for error messages.

    Raises HeaderTruncated if `data` ends before the header, ModelFileError for other failures.
    """
    if data[:4] != b"GGUF":
        raise ModelFileError(path, *identify(data[:SIGNATURE_BYTES]))
    cursor = Cursor(path, data, position=4)
    version = _version(path, cursor)
    tensor_count, metadata_count = cursor.uint64(), cursor.uint64()
    if tensor_count > MAX_TENSORS or metadata_count > _METADATA_COUNT:
        cursor.fail(f"damaged: {tensor_count:,} tensors and {metadata_count:,} metadata values")
    metadata, vocabulary = _read_metadata(cursor, metadata_count)
    tensors = _read_tensors(cursor, tensor_count)
    _check_extent(path, _alignment(path, metadata), tensors, cursor.position, size)
    return Tables(version, metadata, vocabulary, tensors, cursor.position)


def checked_integer(path: Path, key: str, value: Scalar | Array) -> int:
    """A metadata value as an unsigned integer of 32 bits. Raises ModelFileError for any other."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise ModelFileError(path, f"damaged: its {quoted(key)} is {quoted(str(value))}")
    return value


def quoted(text: str) -> str:
    """Text from the file, quoted, shortened and safe to print."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise ModelFileError(path, "file not found", "check the path") from error
    if stat.S_ISDIR(mode):
        raise ModelFileError(path, "is a directory", "name the .gguf file inside it")
    if not stat.S_ISREG(mode):
        raise ModelFileError(path, "is not a regular file", "copy it to a regular file, which can be memory-mapped")


def _version(path: Path, cursor: Cursor) -> int:
    version = cursor.uint32()
    if version and not version & 0xFFFF:
        raise ModelFileError(path, "big-endian", "pull the little-endian file of this model")
    if version < min(_VERSIONS):
        raise ModelFileError(path, f"GGUF version {version} is no longer supported", "pull a newer file of this model")
    if version > max(_VERSIONS):
        raise ModelFileError(path, f"GGUF version {version} is newer than version {max(_VERSIONS)}", "update cerebrum")
    return version


def _read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, Scalar | Array], dict[str, tuple[int, int]]]:
    """Read the metadata, and where the vocabulary is."""
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


def _read_tensors(cursor: Cursor, count: int) -> list[TensorEntry]:
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
        shape = cursor.dimensions(n_dims)
        if math.prod(shape) >= 1 << 63:
            cursor.fail(f"damaged: the tensor {quoted(name)} has {math.prod(shape):,} weights")
        tensors.append(TensorEntry(name, shape, cursor.uint32(), cursor.uint64()))
    return tensors


def _alignment(path: Path, metadata: Metadata) -> int:
    """Alignment of tensor data, a power of two."""
    value = metadata.get("general.alignment")
    if value is None:
        return _ALIGNMENT
    alignment = checked_integer(path, "general.alignment", value)
    if alignment == 0 or alignment & (alignment - 1):
        raise ModelFileError(path, f"damaged: its general.alignment {alignment:,} is not a power of two")
    return alignment


def _check_extent(path: Path, alignment: int, tensors: Iterable[TensorEntry], header_end: int, size: int) -> None:
    """Check that tensors are contiguous, as llama.cpp expects, and that the file contains them all.

    The end of a tensor of an unknown type is unknown; the offset of the next one is then accepted.
    """
    expected: int | None = 0
    end = 0
    for tensor in tensors:
        if tensor.offset % alignment or (expected is not None and tensor.offset != expected) or tensor.offset < end:
            where = f"at byte {tensor.offset:,} of the data" + (f", not {expected:,}" if expected is not None else "")
            raise ModelFileError(path, f"damaged: the tensor {quoted(tensor.name)} begins {where}")
        length = _tensor_bytes(path, tensor)
        end = tensor.offset + (length or 0)
        expected = None if length is None else _aligned(end, alignment)
    needed = _aligned(header_end, alignment) + end if end else header_end
    if needed > size:
        problem = f"truncated: its tensors end at byte {needed:,}, but the file has {size:,} bytes"
        raise ModelFileError(path, problem, "pull it again, or copy it again")


def _tensor_bytes(path: Path, tensor: TensorEntry) -> int | None:
    tensor_type = TENSOR_TYPES.get(tensor.type)
    if tensor_type is None:
        return None
    row = tensor.shape[0] if tensor.shape else 1
    if row % tensor_type.block_size:
        problem = f"the tensor {quoted(tensor.name)} has rows of {row:,} weights in blocks of {tensor_type.block_size}"
        raise ModelFileError(path, f"damaged: {problem} ({tensor_type.name})")
    return tensor.size


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
