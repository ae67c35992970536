"""Small GGUF files: written by the `gguf` package, or byte by byte so that they can be damaged in any way."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np


def write_model(path: Path, fill: Callable[[gguf.GGUFWriter], None] | None = None, architecture: str = "llama") -> Path:
    """Write a model of two layers and one tensor, with whatever `fill` adds."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(8)
    if fill:
        fill(writer)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def handmade(*metadata: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, data: bytes = b"") -> bytes:
    """Bytes of a GGUF file, unchecked."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + b"".join(metadata) + b"".join(tensors)
    return head + (bytes(-len(head) % 32) + data if tensors else b"")


LLAMA = entry(b"general.architecture", 8, string(b"llama"))
