"""Read the header of a model in milliseconds, and refuse what llama.cpp cannot load, or what generates no text."""

from __future__ import annotations

import math
import mmap
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.core.conversion import InvalidValue
from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.settings import MODEL_FILE, SourcedLayer, convert
from cerebrum_cli.gguf.architectures import EMBEDDING, ENCODER_ONLY, facts_of
from cerebrum_cli.gguf.parser import (
    MAX_TENSORS,
    VOCABULARY_KEYS,
    Array,
    Metadata,
    Tables,
    Tensor,
    checked_integer,
    parse_tables,
    read_tables,
)
from cerebrum_cli.gguf.sizes import ModelSizes, layer_windows, model_sizes
from cerebrum_cli.gguf.types import FILE_TYPES

# Layout of Mixtral files before April 2024, one tensor per expert, which llama.cpp no longer loads.
_EXPERT_TENSOR = re.compile(r"blk\.\d+\.ffn_(?:gate|down|up)\.\d+\.weight")
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
SAMPLING_KEYS = {  # general.sampling.*, by the settings they recommend; there are others without an equivalent here
    **{key: key for key in ("top_k", "top_p", "min_p")},
    "temp": "temperature",
    "penalty_repeat": "repeat_penalty",
}
FLOAT_DIGITS = 6  # of a number that the file holds in 32 bits: 0.95 is read as 0.949999988...
GENERATIVE_HINT = "use a decoder-only model; cerebrum list --available shows some"

_RERANKER = "a reranker, which scores texts and generates none"
_NO_POOLING, _RANK = (None, 0, 2**32 - 1), 4  # LLAMA_POOLING_TYPE_*; llama.cpp writes "unspecified", -1, unsigned


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata of a GGUF file and totals of its tensor table; no weights are read.

    `tensor_types` counts the tensors of each type. `n_heads` and `n_kv_heads` are the maximum of any layer.
    `chat_template` is untrusted code. `per_expert_tensors` marks the old Mixtral layout, which llama.cpp no longer
    loads. `vocabulary` as in Tables.
    """

    architecture: str
    quantization: str | None
    tensor_types: Mapping[str, int]
    parameters: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    embedding_length: int
    vocabulary_size: int
    context_length: int | None
    expert_count: int
    chat_template: str | None
    sizes: ModelSizes
    per_expert_tensors: bool
    vocabulary: Mapping[str, tuple[int, int]]
    metadata: Metadata

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache per token in f16."""
        return 2 * self.sizes.kv_length

    @property
    def sampling(self) -> SourcedLayer:
        """The sampling settings that the file recommends; invalid ones are ignored."""
        values = {}
        for key, name in SAMPLING_KEYS.items():
            value = self.metadata.get(f"general.sampling.{key}")
            with suppress(InvalidValue):
                if value is not None:
                    values[name] = convert(name, round(value, FLOAT_DIGITS) if isinstance(value, float) else value)
        return SourcedLayer(values, origin=MODEL_FILE)


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file. Raises ModelFileError for a path or file that cannot be opened as a model."""
    return _header(path, read_tables(path))


def parse_header(path: Path, data: mmap.mmap | bytes, size: int) -> Header:
    """Parse the header of a GGUF file from its first bytes. Arguments and errors are those of `parse_tables`."""
    return _header(path, parse_tables(path, data, size))


def parts_sizes(paths: Sequence[Path]) -> ModelSizes:
    """Sizes of a model in several files. Raises ModelFileError for a damaged one."""
    parts = [read_tables(path) for path in paths]
    return _sizes(paths[0], parts[0].metadata, [tensor for part in parts for tensor in part.tensors])


def vocabulary_digest(path: Path, header: Header) -> str | None:
    """Digest in hexadecimal of the vocabulary in a file with this header; None if the file cannot be read.

    It has 16 bytes, and covers those of the vocabulary in the file, a few megabytes: a millisecond for 49,000 tokens.
    """
    import hashlib

    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            for key in VOCABULARY_KEYS:
                start, end = header.vocabulary.get(key, (0, 0))
                file.seek(start)
                digest.update(f"{key} {end - start}\n".encode())
                digest.update(file.read(end - start))
    except OSError:
        return None
    return digest.hexdigest()[:32]


def _header(path: Path, tables: Tables) -> Header:
    metadata, tensors = tables.metadata, tables.tensors
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelFileError(path, "not a language model: no general.architecture")
    integers = _Integers(path, metadata, architecture)
    heads = integers.per_layer("attention.head_count")
    kv_heads = integers.per_layer("attention.head_count_kv") or heads
    sizes = _sizes(path, metadata, tensors)
    file_type, template = integers.optional("general.file_type"), metadata.get("tokenizer.chat_template")
    return Header(
        architecture=architecture,
        quantization=None if file_type is None else FILE_TYPES.get(file_type),
        tensor_types=Counter(tensor.kind.name for tensor in tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        n_layers=integers.layers(),
        n_heads=max(heads, default=0),
        n_kv_heads=max(kv_heads, default=0),
        embedding_length=integers.hyperparameter("embedding_length"),
        vocabulary_size=sizes.vocabulary_size,
        context_length=integers.hyperparameter("context_length") or None,
        expert_count=integers.hyperparameter("expert_count"),
        chat_template=template if isinstance(template, str) and template else None,
        sizes=sizes,
        per_expert_tensors=any(_EXPERT_TENSOR.fullmatch(tensor.name) for tensor in tensors),
        vocabulary=tables.vocabulary,
        metadata=metadata,
    )


def _sizes(path: Path, metadata: Metadata, tensors: Iterable[Tensor]) -> ModelSizes:
    architecture = str(metadata.get("general.architecture"))
    integers = _Integers(path, metadata, architecture)
    tokens = metadata.get("tokenizer.ggml.tokens")
    vocabulary_size = tokens.length if isinstance(tokens, Array) else integers.hyperparameter("vocab_size")
    listed = metadata.get(f"{architecture}.attention.sliding_window_pattern")
    pattern = listed.values if isinstance(listed, Array) else listed if isinstance(listed, int) else 0
    windows = layer_windows(architecture, integers.layers(), integers.hyperparameter, pattern)
    sizes = [(tensor.name, tensor.size) for tensor in tensors]
    return model_sizes(sizes, integers.hyperparameter, integers.per_layer, vocabulary_size, windows)


@dataclass(frozen=True, slots=True)
class _Integers:
    """Integer metadata of a file, validated on access."""

    path: Path
    metadata: Metadata
    architecture: str

    def optional(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return None if value is None else checked_integer(self.path, key, value)

    def hyperparameter(self, key: str) -> int:
        """Value of a hyperparameter; 0 if it is not set."""
        return self.optional(f"{self.architecture}.{key}") or 0

    def per_layer(self, key: str) -> tuple[int, ...]:
        """Values of a hyperparameter per layer; the file may have one for all layers."""
        key = f"{self.architecture}.{key}"
        value = self.metadata.get(key)
        if isinstance(value, Array) and value.length == len(value.values):
            return tuple(checked_integer(self.path, key, item) for item in value.values)
        return () if value is None else (checked_integer(self.path, key, value),) * self.layers()

    def layers(self) -> int:
        """Number of layers. Raises ModelFileError for an impossible one."""
        layers = self.hyperparameter("block_count")
        if layers > MAX_TENSORS:
            raise ModelFileError(self.path, f"damaged: {layers:,} layers")
        return layers


def unsupported_kind(header: Header) -> str | None:
    """The kind of a model that cannot answer a prompt; None for one that can."""
    name, metadata = header.architecture, header.metadata
    if kind := facts_of(name).unsupported:
        return kind
    if metadata.get(f"{name}.attention.causal") is False:
        return ENCODER_ONLY
    if (pooling := metadata.get(f"{name}.pooling_type")) in _NO_POOLING:
        return None
    return _RERANKER if pooling == _RANK else EMBEDDING


def require_generative(path: Path, header: Header) -> None:
    """Raise ModelFileError for a model that llama.cpp cannot load, or that cannot answer a prompt."""
    require_loadable(path, header)
    if kind := unsupported_kind(header):
        raise ModelFileError(path, f"{kind} (architecture {header.architecture})", GENERATIVE_HINT)


def require_loadable(path: Path, header: Header) -> None:
    """Raise ModelFileError for a file that llama.cpp would crash on or does not support, before a load or download."""
    if header.per_expert_tensors:
        raise ModelFileError(
            path,
            "made before April 2024 with one tensor per expert, which llama.cpp no longer loads",
            "pull a newer conversion of this model; for Cerebrum-1.0-8x7b: cerebrum pull cerebrum-8x7b",
        )
    if problem := _defect(header):
        raise ModelFileError(path, f"damaged: {problem}", "pull it again, or pull another conversion of this model")


def _defect(header: Header) -> str | None:
    """Value of a header that llama.cpp asserts to be otherwise; None if there is none."""
    if not header.tensor_types:
        return "it has no tensors"
    if not 0 < header.n_layers <= MAX_LAYERS:
        return f"it has {header.n_layers:,} layers"
    for key, value in header.metadata.items():
        if key.endswith("epsilon") and isinstance(value, float) and not 0 <= value < math.inf:
            return f"its {key} is {value}"
    return None
