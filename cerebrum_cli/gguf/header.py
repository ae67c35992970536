"""Read the header of a GGUF file in milliseconds, and reject files that llama.cpp could not load.

The file is untrusted: counts and lengths are checked against the available bytes before anything is allocated, and
every failure is a ModelFileError of one line.
"""

from __future__ import annotations

import math
import mmap
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.cursor import Array, Cursor, Scalar
from cerebrum_cli.gguf.signatures import SIGNATURE_BYTES, identify
from cerebrum_cli.gguf.sizes import ModelSizes, model_sizes
from cerebrum_cli.gguf.types import FILE_TYPES, TENSOR_TYPES

Metadata = Mapping[str, Scalar | Array]
T = TypeVar("T")

# Limits far above known models (large vocabularies take about 20 MB, per-expert layouts a few thousand tensors).
_HEADER_BYTES = 128 << 20
_METADATA_COUNT = 4096
_TENSOR_COUNT = 1 << 17
_KEY_BYTES = 65535  # GGUF's own limit
_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME, less its zero byte
_TENSOR_DIMENSIONS = 4  # GGML_MAX_DIMS
_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
_VERSIONS = (2, 3)

# What the meaning of a token id, and the ids of a text, depend on.
VOCABULARY_KEYS = tuple(f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "token_type", "scores", "merges"))

# Layout of Mixtral files before April 2024, one tensor per expert, which llama.cpp no longer loads.
_EXPERT_TENSOR = re.compile(r"blk\.\d+\.ffn_(?:gate|down|up)\.\d+\.weight")


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
    """What a header consists of; `vocabulary` as in Header, `length` in bytes."""

    version: int
    metadata: Metadata
    vocabulary: Mapping[str, tuple[int, int]]
    tensors: list[TensorEntry]
    length: int


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata of a GGUF file and totals of its tensor table; no weights are read.

    `tensor_types` counts the tensors of each type. `n_heads` and `n_kv_heads` are the maximum of any layer.
    `chat_template` is untrusted code. `per_expert_tensors` marks the old Mixtral layout, which llama.cpp no longer
    loads. `vocabulary` are the first byte and the end of each VOCABULARY_KEYS value that the file has.
    """

    version: int
    architecture: str
    name: str | None
    file_type: int | None
    quantization: str | None
    tensor_count: int
    tensor_types: Mapping[str, int]
    parameters: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    embedding_length: int
    vocabulary_size: int
    context_length: int | None
    sliding_window: int | None
    expert_count: int
    chat_template: str | None
    sizes: ModelSizes
    split_count: int
    per_expert_tensors: bool
    vocabulary: Mapping[str, tuple[int, int]]
    metadata: Metadata

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache per token in f16."""
        return 2 * self.sizes.kv_length


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file and check its tensor table against the file's size.

    Raises ModelFileError for a path or file that cannot be opened as a model.
    """
    return _parse_file(path, parse_header)


def read_tables(path: Path) -> Tables:
    """Read the metadata and the tensor table of a GGUF file of any kind. Raises ModelFileError."""
    return _parse_file(path, _read_tables)


def _parse_file(path: Path, parse: Callable[[Path, mmap.mmap, int], T]) -> T:
    try:
        _require_file(path)
        with path.open("rb") as file:
            signature = file.read(SIGNATURE_BYTES)
            if not signature:
                raise ModelFileError(path, "the file is empty")
            size = file.seek(0, 2)
            with mmap.mmap(file.fileno(), min(size, _HEADER_BYTES), access=mmap.ACCESS_READ) as data:
                return parse(path, data, size)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, or a shrinking file
        raise ModelFileError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse_header(path: Path, data: mmap.mmap | bytes, size: int) -> Header:
    """Parse the header of a GGUF file of `size` bytes from its first bytes; `path` is for error messages.

    Raises HeaderTruncated if `data` ends before the header, ModelFileError for other failures.
    """
    return _header(path, _read_tables(path, data, size))


def header_length(path: Path, data: mmap.mmap | bytes, size: int) -> int:
    """Number of bytes before the tensor data of a GGUF file, which may be a part without a model's metadata.

    Arguments and errors are those of `parse_header`.
    """
    return _read_tables(path, data, size).length


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise ModelFileError(path, "file not found", "check the path") from error
    if stat.S_ISDIR(mode):
        raise ModelFileError(path, "is a directory", "name the .gguf file inside it")
    if not stat.S_ISREG(mode):
        raise ModelFileError(path, "is not a regular file", "copy it to a regular file, which can be memory-mapped")


def _read_tables(path: Path, data: mmap.mmap | bytes, size: int) -> Tables:
    if data[:4] != b"GGUF":
        raise ModelFileError(path, *identify(data[:SIGNATURE_BYTES]))
    cursor = Cursor(path, data, position=4)
    version = _version(path, cursor)
    tensor_count, metadata_count = cursor.uint64(), cursor.uint64()
    if tensor_count > _TENSOR_COUNT or metadata_count > _METADATA_COUNT:
        cursor.fail(f"damaged: {tensor_count:,} tensors and {metadata_count:,} metadata values")
    metadata, vocabulary = _read_metadata(cursor, metadata_count)
    tensors = _read_tensors(cursor, tensor_count)
    _check_extent(path, _Integers(path, metadata).alignment(), tensors, cursor.position, size)
    return Tables(version, metadata, vocabulary, tensors, cursor.position)


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


def _header(path: Path, tables: Tables) -> Header:
    version, metadata, vocabulary, tensors, _ = tables
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelFileError(path, "not a language model: no general.architecture")
    integers = _Integers(path, metadata, architecture)
    heads = integers.per_layer("attention.head_count")
    kv_heads = integers.per_layer("attention.head_count_kv") or heads
    tokens = metadata.get("tokenizer.ggml.tokens")
    vocabulary_size = tokens.length if isinstance(tokens, Array) else integers.hyperparameter("vocab_size")
    pattern = metadata.get(f"{architecture}.attention.sliding_window_pattern")
    windows = pattern.values if isinstance(pattern, Array) else ()
    sizes = [(tensor.name, _tensor_bytes(path, tensor) or 0) for tensor in tensors]
    file_type = integers.optional("general.file_type")
    return Header(
        version=version,
        architecture=architecture,
        name=_text(metadata, "general.name"),
        file_type=file_type,
        quantization=None if file_type is None else FILE_TYPES.get(file_type),
        tensor_count=len(tensors),
        tensor_types=Counter(tensor.type_name for tensor in tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        n_layers=integers.layers(),
        n_heads=max(heads, default=0),
        n_kv_heads=max(kv_heads, default=0),
        embedding_length=integers.hyperparameter("embedding_length"),
        vocabulary_size=vocabulary_size,
        context_length=integers.hyperparameter("context_length") or None,
        sliding_window=integers.hyperparameter("attention.sliding_window") or None,
        expert_count=integers.hyperparameter("expert_count"),
        chat_template=_text(metadata, "tokenizer.chat_template"),
        sizes=model_sizes(sizes, integers.hyperparameter, integers.per_layer, vocabulary_size, windows),
        split_count=integers.optional("split.count") or 1,
        per_expert_tensors=any(_EXPERT_TENSOR.fullmatch(tensor.name) for tensor in tensors),
        vocabulary=vocabulary,
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class _Integers:
    """Integer metadata of a file, validated on access."""

    path: Path
    metadata: Metadata
    architecture: str = ""

    def optional(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return None if value is None else self._checked(key, value)

    def hyperparameter(self, key: str) -> int:
        """Value of a hyperparameter; 0 if it is not set."""
        return self.optional(f"{self.architecture}.{key}") or 0

    def per_layer(self, key: str) -> tuple[int, ...]:
        """Values of a hyperparameter per layer; the file may have one for all layers."""
        key = f"{self.architecture}.{key}"
        value = self.metadata.get(key)
        if isinstance(value, Array) and value.length == len(value.values):
            return tuple(self._checked(key, item) for item in value.values)
        return () if value is None else (self._checked(key, value),) * self.layers()

    def alignment(self) -> int:
        """Alignment of tensor data, a power of two."""
        value = self.optional("general.alignment")
        if value is not None and (value == 0 or value & (value - 1)):
            raise ModelFileError(self.path, f"damaged: its general.alignment {value:,} is not a power of two")
        return value or _ALIGNMENT

    def layers(self) -> int:
        """Number of layers. Raises ModelFileError for an impossible one."""
        layers = self.hyperparameter("block_count")
        if layers > _TENSOR_COUNT:
            raise ModelFileError(self.path, f"damaged: {layers:,} layers")
        return layers

    def _checked(self, key: str, value: Scalar | Array) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
            raise ModelFileError(self.path, f"damaged: its {quoted(key)} is {quoted(str(value))}")
        return value


def _text(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def quoted(text: str) -> str:
    """Text from the file, quoted, shortened and safe to print."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")
