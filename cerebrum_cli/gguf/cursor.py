"""Reads GGUF's primitive values in sequence from an untrusted buffer."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NamedTuple, NoReturn

from cerebrum_cli.core.errors import ModelFileError

Scalar = str | int | float | bool

_STRING, _ARRAY = 8, 9
# GGUF's value types other than string and array: name and layout.
_SCALARS = {
    0: ("u8", struct.Struct("<B")),
    1: ("i8", struct.Struct("<b")),
    2: ("u16", struct.Struct("<H")),
    3: ("i16", struct.Struct("<h")),
    4: ("u32", struct.Struct("<I")),
    5: ("i32", struct.Struct("<i")),
    6: ("f32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<?")),
    10: ("u64", struct.Struct("<Q")),
    11: ("i64", struct.Struct("<q")),
    12: ("f64", struct.Struct("<d")),
}
_UINT32, _UINT64 = _SCALARS[4][1], _SCALARS[10][1]
_MAX_STRING_BYTES = 16 << 20  # chat templates take kilobytes, an embedded tokenizer.json a few megabytes
_MAX_STORED_ITEMS = 512  # arrays with an item per layer are stored, those with an item per token are not


class Array(NamedTuple):
    """Type and length of a metadata array, with the values of a short array of numbers."""

    item_type: str
    length: int
    values: tuple[int | float | bool, ...] = ()


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
        value: int = _UINT32.unpack_from(self._data, self._advance(4))[0]
        return value

    def uint64(self) -> int:
        value: int = _UINT64.unpack_from(self._data, self._advance(8))[0]
        return value

    def dimensions(self, count: int) -> tuple[int, ...]:
        """Read `count` unsigned 64-bit integers."""
        return struct.unpack_from(f"<{count}Q", self._data, self._advance(8 * count))

    def string(self, label: str, max_length: int = _MAX_STRING_BYTES) -> str:
        """Read a string; bytes that are not UTF-8 are replaced."""
        length = self.uint64()
        if length > max_length:
            self.fail(f"damaged: a {label} of {length:,} bytes at byte {self.position:,}")
        start = self._advance(length)
        return self._data[start : start + length].decode("utf-8", "replace")

    def value(self) -> Scalar | Array:
        """Read a metadata value: its type, then its data."""
        value_type = self.uint32()
        if value_type == _STRING:
            return self.string("metadata string")
        if value_type == _ARRAY:
            return self._array()
        layout = self._scalar_type(value_type)[1]
        value: int | float | bool = layout.unpack_from(self._data, self._advance(layout.size))[0]
        return value

    def _array(self) -> Array:
        item_type, length = self.uint32(), self.uint64()
        if item_type == _STRING:
            self._skip_strings(length)
            return Array("string", length)
        name, layout = self._scalar_type(item_type)
        start = self._advance(layout.size * length)
        if length > _MAX_STORED_ITEMS:
            return Array(name, length)
        return Array(name, length, struct.unpack_from(f"<{length}{layout.format[-1]}", self._data, start))

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
        if value_type not in _SCALARS:
            self.fail(f"damaged: metadata value of unknown type {value_type} at byte {self.position:,}")
        return _SCALARS[value_type]

    def _advance(self, size: int) -> int:
        """Advance by `size` bytes and return where they begin."""
        start = self.position
        if size > self._end - start:
            self._fail_truncated()
        self.position = start + size
        return start

    def _fail_truncated(self) -> NoReturn:
        problem = f"truncated or damaged: its header does not end before byte {self._end:,}"
        raise HeaderTruncated(self._path, problem)
