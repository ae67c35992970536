"""Small GGUF files: written by the `gguf` package, or byte by byte so that they can be damaged in any way."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Change = Callable[[str, npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def write_model(path: Path, fill: Callable[[gguf.GGUFWriter], None] | None = None, architecture: str = "llama") -> Path:
    """Write a model of two layers and one tensor, with whatever `fill` adds."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(8)
    if fill:
        fill(writer)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), dtype=np.float32))
    write_file(writer)
    return path


def add_values(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    """Add metadata whose types follow from Python's; whole numbers from 0 on are UINT32."""
    for key, value in values.items():
        is_count = type(value) is int and value >= 0
        writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if is_count else gguf.GGUFValueType.get_type(value))


def write_file(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rewritten(
    source: Path,
    target: Path,
    tensors: int = 0,
    alignment: int = 0,
    change: Change | None = None,
    arrays: Mapping[str, list[int]] | None = None,
) -> Path:
    """Rewrite a model with the `gguf` package: split after a number of tensors, aligned differently, or changed.

    `change` gets each tensor's name and values and returns the new values, in F32. `arrays` of INT32 are added to the
    metadata. Returns the first of the files, named like those of gguf-split.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture, split_max_tensors=tensors)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            item_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], item_type)
    for key, values in (arrays or {}).items():
        writer.add_key_value(key, values, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32)
    if alignment:
        writer.add_custom_alignment(alignment)
    for tensor in reader.tensors:
        if change:
            writer.add_tensor(tensor.name, change(tensor.name, np.array(tensor.data, np.float32)))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    write_file(writer)
    return min(target.parent.glob(f"{target.stem}*.gguf"))


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def handmade(*metadata: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, data: bytes = b"") -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + b"".join(metadata) + b"".join(tensors)
    return head + (bytes(-len(head) % 32) + data if tensors else b"")


LLAMA = entry(b"general.architecture", 8, string(b"llama"))
