"""Read the values of a GGUF header one after the other, whatever the file is for.

The file is untrusted: counts and lengths are checked against the available bytes before anything is allocated, and
every failure is a ModelFileError of one line.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.contents import (
    ARRAY,
    ITEM_TYPES,
    LAYOUTS,
    STRING,
    VALUE_TYPES,
    VOCABULARY,
    Array,
    HeaderTruncated,
    Tensor,
    Value,
    Values,
    quoted,
)

# Limits far above known models.
_MAX_STRING_BYTES = 16 << 20  # chat templates take kilobytes, an embedded tokenizer.json a few megabytes
_MAX_STORED_ITEMS = 512  # arrays with an item per layer are stored, those with an item per token are not
_TENSOR_DIMENSIONS = 4  # GGML_MAX_DIMS


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
