"""The keys of finished rows, by which a later run recognizes them, and the lines and cells that carry a key.

The checksum in a key covers the rest of the line, and starts from that of the settings: a line that was damaged, or
made with settings other than those in its record, has no key.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterable
from hashlib import sha256
from struct import Struct, error as StructError
from typing import NamedTuple, TypeAlias
from zlib import crc32

from cerebrum_cli.core.json_types import JsonObject, to_json

_PACKED = Struct(">IIBQQ")
_CHECKED = Struct(">IIBQQI")  # with a checksum
_END = b'"}\n'  # of a line, after its key
_KEY = slice(-len(_END) - 2 * _CHECKED.size, -len(_END))
_BEFORE_CHECKSUM = slice(_KEY.stop - 8)
_LINE_BREAKS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}  # some readers split lines at them

Digest: TypeAlias = int  # 64 bits of a SHA-256


class RowFlag:
    """Bits of a row's flags; an unfinished row has none."""

    FINISHED, FAILED, TRUNCATED, UNDECIDED, EMPTY = 1, 2, 4, 8, 16


class Key(NamedTuple):
    """What identifies a finished row.

    - `number`: the row's number in the input if its object depends on that, else 0
    - `place`: where it stood among the rows when it was first asked; no two rows of a run share one
    - `flags`: the sum of its RowFlags
    - `asked`: the digest of what it asks
    - `source`: the digest of the text that it was read from
    """

    number: int
    place: int
    flags: int
    asked: Digest
    source: Digest


KeyValues: TypeAlias = tuple[int, int, int, Digest, Digest, int]


def digest_of(data: bytes) -> Digest:
    return int.from_bytes(sha256(data).digest()[:8])


def settings_check(settings: JsonObject) -> int:
    """The value from which the checksums of rows start that were made with these settings."""
    return crc32(to_json(settings).encode())


def to_json_line(object: JsonObject) -> str:
    """Encode an object as one line without its end, also for readers that split at Unicode line breaks."""
    text = to_json(object)
    return text if text.isascii() else text.translate(_LINE_BREAKS)


def keyed_line(object: JsonObject, key: Key, check: int) -> bytes:
    """The line of a row, whose object gets the key as its last value; `check` is the `settings_check`."""
    line = f'{to_json_line(object)[:-1]}, "key": "{_PACKED.pack(*key).hex()}'.encode()
    return b'%b%08x"}\n' % (line, crc32(line, check))


def key_of_line(line: bytes, check: int) -> Key:
    """The key of a line. Raises ValueError for a line that was damaged, or made with other settings."""
    *values, _ = key_values(line, check)
    return Key._make(values)


def key_values(line: bytes, check: int) -> KeyValues:
    """Like `key_of_line`, in less time: the values of the key, and the checksum."""
    values = _unpacked(line[_KEY])
    if values[5] != crc32(line[_BEFORE_CHECKSUM], check) or line[_KEY.stop :] != _END:
        raise ValueError("the checksum differs")
    return values


def _unpacked(text: str | bytes) -> KeyValues:
    try:
        return _CHECKED.unpack(unhexlify(text))
    except StructError as error:
        raise ValueError(str(error)) from error


def key_cell(cells: Iterable[str], key: Key, check: int) -> str:
    """The last cell of a row in a table, with its key."""
    packed = _PACKED.pack(*key).hex()
    return f"{packed}{crc32(to_json([*cells, packed]).encode(), check):08x}"


def key_of_cells(cells: Iterable[str], last: str, check: int) -> Key:
    """The key of a row in a table, by its cells. Raises ValueError if one was changed."""
    *values, _ = _unpacked(last)
    key = Key._make(values)
    if key_cell(cells, key, check) != last:
        raise ValueError("the checksum differs")
    return key
