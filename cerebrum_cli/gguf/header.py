"""Read the header of a model in milliseconds, and refuse what llama.cpp cannot load, or what generates no text."""

from __future__ import annotations

import math
import mmap
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.files import reading_model
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.gguf.contents import ALIGNMENT, FILE_TYPES, MAX_TENSORS, Metadata, Tables, aligned
from cerebrum_cli.gguf.cursor import Cursor
from cerebrum_cli.gguf.kinds import USE_DECODER, Kind, kind_of
from cerebrum_cli.gguf.layers import Hyperparameters, checked_integer, model_sizes
from cerebrum_cli.gguf.sizes import ModelSizes

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
