"""Read the header of a model in milliseconds, and refuse what llama.cpp cannot load, or what generates no text."""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.files import reading_model
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.gguf.contents import (
    ALIGNMENT,
    ARRAY,
    FILE_TYPES,
    ITEM_TYPES,
    LAYOUTS,
    MAX_TENSORS,
    STRING,
    VALUE_TYPES,
    VOCABULARY,
    Array,
    HeaderTruncated,
    Metadata,
    Tables,
    Tensor,
    Value,
    Values,
    aligned,
    quoted,
)
from cerebrum_cli.gguf.sizes import Hyperparameters, ModelSizes, checked_integer, model_sizes

USE_DECODER = "use a decoder-only model; cerebrum list --available shows some"


class Kind(NamedTuple):
    """What a file that cannot answer a prompt is, and a hint."""

    words: str
    hint: str = USE_DECODER


DRAFT = Kind("a draft head for speculative decoding, not a whole model", "use the model that it was made for")
EMBEDDING = Kind("an embedding model or reranker, which generates no text")
NOT_CAUSAL = Kind("an encoder, encoder-decoder or diffusion model, which is not supported")
DECISIONS = Kind("a decision model, which generates no text", "use a chat model; cerebrum decide takes any")
NOT_WHOLE = Kind("a vocabulary without tensors", "use the whole model")
PROJECTOR = Kind(
    "a projector for images or sound, not a language model", "use the language model in the same repository"
)
# Types and architectures of llama.cpp 0c1e57098 (gguf-py/gguf/constants.py, tools/).
_BY_TYPE: dict[object, Kind] = {
    "adapter": Kind("a LoRA adapter, not a model", "apply it to its base model: -m MODEL --lora FILE"),
    "controlvector": Kind("a control vector, not a model", "use the model that it was made for"),
    "mmproj": PROJECTOR,
    "imatrix": Kind("an importance matrix, not a model", "use the model that was quantized with it"),
}
_DRAFTS = r"eagle.*|dflash|dspark|medusa|mtp|.*[-_]assistant"
_POOLED = range(1, 5)  # LLAMA_POOLING_TYPE_*, without "none" and "unspecified"


def kind_of(metadata: Mapping[str, object], tensors: Iterable[str]) -> Kind | None:
    """The kind of a file by its metadata and the names of its tensors; None for a language model.

    What else cannot answer, llama.cpp refuses, or `load_model` in engine/llama/load.py after loading.
    """
    if kind := _BY_TYPE.get(metadata.get("general.type")):
        return kind
    architecture = metadata.get("general.architecture")
    if architecture == "clip":
        return PROJECTOR
    if any(key.endswith(".decision.type") for key in metadata):  # llama-server's special models
        return DECISIONS
    if metadata.get(f"{architecture}.attention.causal") is False:
        return NOT_CAUSAL
    if metadata.get(f"{architecture}.pooling_type") in _POOLED:
        return EMBEDDING
    names = list(tensors)
    # The first part of a split model may have no tensors. A model with layers to predict several tokens has others.
    if not names and f"{VOCABULARY}tokens" in metadata and metadata.get("split.count", 1) in (0, 1):
        return NOT_WHOLE
    predicts_only = metadata.get(f"{architecture}.block_count") == metadata.get(f"{architecture}.nextn_predict_layers")
    has_first_layer = any(name.startswith("blk.0.") for name in names)
    is_head = any(".nextn." in name for name in names) and (predicts_only or not has_first_layer)
    if is_head or re.fullmatch(_DRAFTS, str(architecture)):
        return DRAFT
    return None


# Limits far above known models.
_MAX_STRING_BYTES = 16 << 20  # chat templates take kilobytes, an embedded tokenizer.json a few megabytes
_MAX_STORED_ITEMS = 512  # arrays with an item per layer are stored, those with an item per token are not
_TENSOR_DIMENSIONS = 4  # GGML_MAX_DIMS


@dataclass(slots=True)
class Cursor:
    """A position in the header of an untrusted file, whatever that is for; each method reads values and advances.

    Counts and lengths are checked against the available bytes before anything is allocated. Raises ModelFileError.
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
        items: Array | tuple[Any, ...]
        if kind == STRING:
            items = self._strings(length)
        else:
            layout = self._layout(kind)
            if self.whole:
                items = self.unpack(f"{length}{layout}")
            elif length <= _MAX_STORED_ITEMS:
                items = Array(ITEM_TYPES[kind], length, self.unpack(f"{length}{layout}"))
            else:
                self.unpack(f"{length * struct.calcsize(layout)}x")
                items = Array(ITEM_TYPES[kind], length)
        return Value("ARRAY", items, VALUE_TYPES[kind])

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

    def values(self, count: int) -> tuple[Values, tuple[int, int]]:
        """Read metadata, and where the values of the vocabulary begin and end."""
        values = {}
        vocabulary = (0, 0)
        for _ in range(count):
            key = self.string("metadata key").decode(errors="replace")
            start = self.position
            values[key] = self.value()
            if key.startswith(VOCABULARY):
                vocabulary = (vocabulary[0] or start, self.position)
        return values, vocabulary

    def tensor(self) -> Tensor:
        """Read an entry of the tensor table."""
        name = self.string("tensor name").decode(errors="replace")
        [n_dims] = self.unpack("I")
        if n_dims > _TENSOR_DIMENSIONS:
            raise self.damaged(f"the tensor {quoted(name)} has {n_dims:,} dimensions")
        *shape, number, offset = self.unpack(f"{n_dims}QIQ")
        tensor = Tensor(name, tuple(shape), number, self.path, offset)
        row = shape[0] if shape else 1
        if row % tensor.kind.block_size:
            problem = f"has rows of {row:,} weights in blocks of {tensor.kind.block_size} ({tensor.kind.name})"
            raise self.damaged(f"the tensor {quoted(name)} {problem}")
        return tensor

    def _truncated(self) -> HeaderTruncated:
        problem = f"truncated or damaged: its header does not end before byte {len(self.data):,}"
        return HeaderTruncated(self.path, problem)

    def damaged(self, problem: str) -> ModelFileError:
        return ModelFileError(self.path, f"damaged: {problem}")


# Layout of Mixtral files before April 2024, one tensor per expert, which llama.cpp no longer loads.
_EXPERT_TENSOR = re.compile(r"blk\.\d+\.ffn_(?:gate|down|up)\.\d+\.weight")
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_HEADER_BYTES = 128 << 20  # far above known models: large vocabularies take about 20 MB
_METADATA_COUNT = 4096
_NAME_A_FILE = "name a .gguf file; cerebrum pull converts a folder with safetensors"
UNKNOWN_FILE_TYPE = 2**32 - 1


class NoLanguageModel(ModelFileError):
    """The file cannot answer a prompt. It may belong to a model that can."""


@frozen
class Header:
    """Metadata of a GGUF file and totals of its tensor table; no weights are read.

    `tensor_types` counts the tensors of each type. `n_kv_heads` is the maximum of any layer.
    `chat_template` is untrusted code. `per_expert_tensors` marks the old Mixtral layout, which llama.cpp no longer
    loads. `vocabulary` as in Tables. `kind` is that of a file that cannot answer a prompt.
    """

    architecture: str
    quantization: str | None
    tensor_types: Mapping[str, int]
    parameters: int
    n_layers: int
    n_kv_heads: int
    context_length: int | None
    chat_template: str | None
    sizes: ModelSizes
    per_expert_tensors: bool
    vocabulary: tuple[int, int]
    metadata: Metadata
    kind: Kind | None

    @property
    def unsupported(self) -> str | None:
        """What the file is, if it cannot answer a prompt."""
        return self.kind and self.kind.words

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache per token in f16."""
        return 2 * self.sizes.kv_length


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file. Raises ModelFileError for a path or file that cannot be opened as a model."""
    return header_from_tables(path, read_tables(path))


def parts_sizes(paths: Sequence[Path]) -> ModelSizes:
    """Sizes of a model in several files. Raises ModelFileError for a damaged one."""
    parts = [read_tables(path) for path in paths]
    keys = Hyperparameters(paths[0], parts[0].metadata)
    return model_sizes(keys, [(tensor.name, tensor.size) for part in parts for tensor in part.tensors])


def header_from_tables(path: Path, tables: Tables) -> Header:
    """The header with these tables; `path` is for error messages. Raises ModelFileError for an unusable value."""
    metadata = tables.metadata
    _require_part_name(path, metadata)
    names = []
    sizes_by_name = []
    tensor_types: Counter[str] = Counter()
    parameters = 0
    for tensor in tables.tensors:
        names.append(tensor.name)
        sizes_by_name.append((tensor.name, tensor.size))
        tensor_types[tensor.kind.name] += 1
        parameters += math.prod(tensor.shape)
    kind = kind_of(metadata, names)
    if kind:
        metadata = {"general.architecture": "", **metadata}
    keys = Hyperparameters(path, metadata)
    sizes = model_sizes(keys, sizes_by_name)
    file_type = metadata.get("general.file_type", UNKNOWN_FILE_TYPE)
    template = metadata.get("tokenizer.chat_template")
    return Header(
        architecture=keys.architecture,
        quantization=FILE_TYPES.get(checked_integer(path, "general.file_type", file_type)),
        tensor_types=tensor_types,
        parameters=parameters,
        n_layers=keys.n_layers,
        n_kv_heads=max(keys.per_layer("attention.head_count_kv"), default=sizes.n_heads),
        context_length=keys.integer("context_length") or None,
        chat_template=template.lstrip("\ufeff") if isinstance(template, str) and template.strip() else None,
        sizes=sizes,
        per_expert_tensors=any(map(_EXPERT_TENSOR.fullmatch, names)),
        vocabulary=tables.vocabulary,
        metadata=metadata,
        kind=kind,
    )


def require_generative(path: Path, header: Header) -> None:
    """Raise ModelFileError for a model that llama.cpp cannot load, or that cannot answer a prompt."""
    if kind := header.kind:
        raise NoLanguageModel(path, f"{kind.words} (architecture {header.architecture or 'none'})", kind.hint)
    require_loadable(path, header)


def require_loadable(path: Path, header: Header) -> None:
    """Raise ModelFileError for a file that llama.cpp does not load, before a load or download."""
    if header.per_expert_tensors:
        raise ModelFileError(
            path,
            "made before April 2024 with one tensor per expert, which llama.cpp no longer loads",
            "pull a newer conversion of this model; for Cerebrum-1.0-8x7b: cerebrum pull cerebrum-8x7b",
        )
    if not header.n_layers:
        raise NoLanguageModel(path, f"not a language model (architecture {header.architecture})", USE_DECODER)
    if header.n_layers > MAX_LAYERS:
        raise _damaged(path, f"it has {header.n_layers:,} layers")
    for key, value in header.metadata.items():
        if key.endswith("epsilon") and isinstance(value, float) and not 0 <= value < math.inf:
            raise _damaged(path, f"its {key} is {value}")  # llama.cpp aborts when it evaluates the first token


def _require_part_name(path: Path, metadata: Metadata) -> None:
    """Raise ModelFileError for a part of a split model under a name by which llama.cpp would not find the others."""
    count = metadata.get("split.count", 1)
    ending = f"-of-{count!s:0>5}.gguf"
    is_first = metadata.get("split.no", 0) == 0
    if count not in (0, 1) and not (is_first and path.name.lower().endswith(ending)):
        hint = f"rename its parts to NAME-00001{ending}, and so on"
        raise ModelFileError(path, f"one of {count} parts of a model, under another name", hint)


def _damaged(path: Path, problem: str) -> ModelFileError:
    return ModelFileError(path, f"damaged: {problem}", "pull it again, or pull another conversion of this model")


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
    values, vocabulary = cursor.values(n_values)
    metadata = {key: value.content for key, value in values.items()}
    alignment = checked_integer(path, "general.alignment", metadata.get("general.alignment", ALIGNMENT))
    if alignment.bit_count() != 1:
        raise cursor.damaged(f"its general.alignment {alignment:,} is not a power of two")
    tensors = []
    data_size = 0
    for _ in range(n_tensors):
        tensor = cursor.tensor()
        tensors.append(tensor)
        data_size = max(data_size, tensor.offset + tensor.size)
    data_start = aligned(cursor.position, alignment)
    end = data_start + data_size
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


def not_a_model(path: Path, beginning: bytes, problem: str, hint: str) -> ModelFileError:
    """The error for a file that does not hold what its name promises; Git may hold it elsewhere."""
    if beginning.startswith(b"version https://git-lfs"):
        return ModelFileError(path, "a Git LFS pointer, not the file", "download the file: git lfs pull")
    return ModelFileError(path, problem, hint)
