"""A partial download: the pieces of a file that are on the disk, and the record of them that another process resumes.

A small file is written from its start to its end, so its size is its record. Of a large one the pieces arrive in any
order. Its record is a line of JSON, then the CRC-32 of each complete piece, or zero, written after the piece itself:
what a killed process had not recorded is fetched again. If the system crashed, a recorded piece may be lost, and an
entry may be torn; therefore a piece counts only if its bytes have that checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from itertools import groupby
from pathlib import Path
from struct import Struct
from zlib import crc32

from cerebrum_cli.core.files import atomic_write, exists, read_small, remove
from cerebrum_cli.core.transfers import Progress
from cerebrum_cli.library.cache import CachePath

PIECE_BYTES = 1 << 20
LARGE_BYTES = 1 << 25  # smaller files are as fast over one connection
LEAST_PIECES, MOST_PIECES = 16, 128  # of one request
_REQUESTS = 64  # for a file, unless they would be shorter or longer: the Hub limits them to some thousands in 5 minutes
_BLOCK_BYTES = 1 << 16  # of a piece, read at once
_VERSION = 1
_ENTRY = Struct("<I")
_MISSING, _RECORDED, _WRITTEN = range(3)  # states of a piece: recorded by an earlier process, written by this one


@dataclass(slots=True, eq=False)
class ByteRange:
    """What one request is for: the bytes of a file from `position`, those before it are written, to `stop`."""

    position: int
    stop: int
    checksum: int = 0  # of the bytes before `position` in its piece

    @property
    def bytes_of_piece(self) -> int:
        """Bytes written of a piece that is not complete."""
        return self.position % PIECE_BYTES if self.position < self.stop else 0


def missing_ranges(states: Sequence[int], size: int) -> deque[ByteRange]:
    """Ranges of the missing pieces of a file, in order."""
    most = min(MOST_PIECES, max(LEAST_PIECES, len(states) // _REQUESTS))
    ranges = deque[ByteRange]()
    for is_missing, group in groupby(range(len(states)), lambda piece: states[piece] == _MISSING):
        if not is_missing:
            continue
        pieces = list(group)
        for first in range(pieces[0], pieces[-1] + 1, most):
            stop = min(first + most, pieces[-1] + 1)
            ranges.append(ByteRange(first * PIECE_BYTES, min(stop * PIECE_BYTES, size)))
    return ranges


@dataclass(slots=True)
class PartialFile:
    """A download of `size` bytes, and the states of its pieces; it has a record if it `is_large`.

    An earlier process has recorded `checksums`.
    """

    place: CachePath
    size: int
    is_large: bool = False
    checksums: Sequence[int] = ()
    states: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.states = bytearray(_count(self.size))
        for piece, checksum in enumerate(self.checksums):
            self.states[piece] = _RECORDED if checksum else _MISSING

    @classmethod
    def opened(cls, place: CachePath, size: int, progress: Progress) -> PartialFile:
        """What earlier processes have left of a file, or an empty one."""
        if size >= LARGE_BYTES:
            if exists(place.partial) and not exists(place.pieces):
                _adopt(place, size, progress)
            return cls(place, size, True, _read_record(place, size))
        partial = cls(place, size)
        written = partial.bytes_in_order
        if written > size:
            remove(place.partial)
            written = 0
        complete = len(partial.states) if written == size else written // PIECE_BYTES
        partial.states[:complete] = bytes([_WRITTEN]) * complete
        return partial

    @property
    def path(self) -> Path:
        return self.place.pieces if self.is_large else self.place.partial

    @property
    def bytes_in_order(self) -> int:
        """Size of a file that is written from its start to its end."""
        return self.path.stat().st_size if exists(self.path) else 0

    @property
    def done(self) -> int:
        """Bytes of complete pieces, of which the last may be shorter."""
        return min(self.size, (len(self.states) - self.states.count(_MISSING)) * PIECE_BYTES)

    def missing(self) -> deque[ByteRange]:
        """The ranges that are not written yet."""
        if self.is_large:
            return missing_ranges(self.states, self.size)
        start = self.bytes_in_order
        return deque([ByteRange(start, self.size)] if start < self.size else ())

    def begin(self) -> None:
        """Create the files that are not there, before the first byte is written."""
        if self.is_large and not self.checksums:
            remove(self.path)
            _write_record(self.place, self.size, [0] * len(self.states))
        self.path.touch()

    @contextmanager
    def writer(self) -> Iterator[PieceWriter]:
        """Files of a thread's own: no other thread can close them while it writes."""
        with ExitStack() as files:
            out = files.enter_context(FileIO(self.path, "r+"))
            record = files.enter_context(FileIO(self.place.record, "r+")) if self.is_large else None
            yield PieceWriter(self, out, record, len(_header(self.size)))

    def hashed(self, digest: hashlib._Hash, piece: int) -> hashlib._Hash | None:
        """A digest continued with a piece; None if the piece is missing, which for a recorded one turns out here."""
        if self.states[piece] == _MISSING:
            return None
        is_recorded = self.states[piece] == _RECORDED
        digest = digest.copy()
        checksum = 0
        with FileIO(self.path) as file:
            for position in range(piece * PIECE_BYTES, (piece + 1) * PIECE_BYTES, _BLOCK_BYTES):
                block = os.pread(file.fileno(), _BLOCK_BYTES, position)
                digest.update(block)
                checksum = crc32(block, checksum) if is_recorded else 0
        if is_recorded and checksum != self.checksums[piece]:
            self.states[piece] = _MISSING
            return None
        return digest

    def lost_ranges(self, first: int) -> deque[ByteRange]:
        """Ranges of a lost piece and of the recorded ones after it, up to the first that is not lost."""
        stop = first + 1
        while stop < len(self.states) and self.states[stop] == _RECORDED and not self.hashed(hashlib.sha256(), stop):
            stop += 1
        states = bytearray([_WRITTEN]) * len(self.states)
        states[first:stop] = bytes([_MISSING]) * (stop - first)
        return missing_ranges(states, self.size)

    def complete(self) -> None:
        """Move the file, all of which is written, to where the cache has it."""
        with FileIO(self.path, "r+") as file:
            os.fsync(file.fileno())
        self.path.replace(self.place.blob)
        self.place.discard_partial()


@dataclass(slots=True)
class PieceWriter:
    partial: PartialFile
    out: FileIO
    record: FileIO | None
    table: int  # position of the checksums in the record

    def write(self, part: ByteRange, chunk: bytes) -> None:
        """Write the next bytes of a range."""
        unwritten = memoryview(chunk)
        while unwritten:
            piece = part.position // PIECE_BYTES
            end = min((piece + 1) * PIECE_BYTES, self.partial.size)
            written = os.pwrite(self.out.fileno(), unwritten[: end - part.position], part.position)
            if self.record:
                part.checksum = crc32(unwritten[:written], part.checksum)
            part.position += written
            unwritten = unwritten[written:]
            if part.position == end:
                self._complete(piece, part)

    def _complete(self, piece: int, part: ByteRange) -> None:
        if self.record:
            os.pwrite(self.record.fileno(), _ENTRY.pack(part.checksum), self.table + piece * _ENTRY.size)
            part.checksum = 0
        self.partial.states[piece] = _WRITTEN


def bytes_present(place: CachePath, size: int) -> int:
    """Bytes of a file that are stored or downloaded, perhaps by another process."""
    if not exists(place.stored) and exists(place.pieces):
        return PartialFile(place, size, True, _read_record(place, size)).done
    for path in (place.stored, place.partial):
        with suppress(OSError):
            return min(size, path.stat().st_size)
    return 0


def _adopt(place: CachePath, size: int, progress: Progress) -> None:
    """Record the pieces of a file that one connection, or another program, has written in order."""
    existing = place.partial.stat().st_size
    if existing > size:
        remove(place.partial)
        return
    checksums = [0] * _count(size)
    with place.partial.open("rb") as file:
        for piece in range(_count(size) if existing == size else existing // PIECE_BYTES):
            checksums[piece] = crc32(file.read(PIECE_BYTES))
            progress.update("verify", file.tell(), existing)
    _write_record(place, size, checksums)
    place.partial.replace(place.pieces)


def _write_record(place: CachePath, size: int, checksums: Sequence[int]) -> None:
    atomic_write(place.record, _header(size) + _table(size).pack(*checksums), mode=0o666)


def _read_record(place: CachePath, size: int) -> Sequence[int]:
    """The recorded checksums; none of a record that is damaged, has another format, or has lost its pieces."""
    try:
        content = read_small(place.record)
    except OSError:
        return ()
    header = _header(size)
    if not content.startswith(header) or not exists(place.pieces):
        return ()
    table = _table(size)
    return table.unpack(content[len(header) :][: table.size].ljust(table.size, b"\0"))


def _header(size: int) -> bytes:
    return json.dumps({"version": _VERSION, "size": size, "piece_bytes": PIECE_BYTES}).encode() + b"\n"


def _table(size: int) -> Struct:
    return Struct(f"<{_count(size)}I")


def _count(size: int) -> int:
    """Pieces of a file, of which the last may be shorter."""
    return -(-size // PIECE_BYTES)
