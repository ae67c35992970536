"""A partial download: the bytes of a file that have arrived, and the record from which another process resumes.

A file is divided into pieces, which arrive in any order, each from its start to its end. The record is a line of JSON,
then for each piece the number of its bytes that are written. It is updated after each write, so a killed process loses
nothing. After a crash of the system it may be ahead of the file, which the digest of the complete file shows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from struct import Struct

from cerebrum_cli.core.files import atomic_write, exists, open_own, read_small
from cerebrum_cli.library.cache import CachePath
from cerebrum_cli.library.hub import HubFile

PIECE_BYTES = 1 << 24
MAX_PIECES = 256  # each is a request, and the Hub limits them to some thousands in 5 minutes
_VERSION = 1
_COUNT = Struct("<Q")


@dataclass(slots=True, eq=False)
class FilePiece:
    """Bytes `start` to `stop` of a file; those before `position` are written."""

    index: int
    start: int
    stop: int
    position: int

    @property
    def missing(self) -> int:
        return self.stop - self.position


@dataclass(slots=True)
class PartialFile:
    """A file that is being downloaded. From a server without ranges it is one piece, and nothing is recorded."""

    file: HubFile
    place: CachePath
    pieces: list[FilePiece]
    has_ranges: bool = True

    @classmethod
    def opened(cls, file: HubFile, place: CachePath) -> PartialFile:
        """What an earlier process has left, or an empty file."""
        pieces = recorded_pieces(place, file.size)
        if not pieces:
            pieces = _empty_pieces(file.size)
            place.discard_partial()
            open_own(place.partial, os.O_CREAT | os.O_EXCL).close()
            atomic_write(place.record, _header(file.size) + bytes(_COUNT.size * len(pieces)), mode=0o666)
        return cls(file, place, pieces)

    @classmethod
    def without_ranges(cls, file: HubFile, place: CachePath) -> PartialFile:
        """An empty file in place of an earlier one, whose threads keep their open files."""
        place.discard_partial()
        open_own(place.partial, os.O_CREAT | os.O_EXCL).close()
        return cls(file, place, [FilePiece(0, 0, file.size, 0)], has_ranges=False)

    @property
    def done(self) -> int:
        """Bytes that are written."""
        return self.file.size - sum(piece.missing for piece in self.pieces)

    @contextmanager
    def writer(self, piece: FilePiece) -> Iterator[Callable[[bytes], None]]:
        """Function that writes the next bytes of a piece. Its files are its own: no other thread can close them."""
        with ExitStack() as files:
            out = files.enter_context(open_own(self.place.partial))
            if self.has_ranges:
                record = files.enter_context(open_own(self.place.record))
            else:
                piece.position = piece.start
            entry = len(_header(self.file.size)) + piece.index * _COUNT.size

            def write(chunk: bytes) -> None:
                unwritten = memoryview(chunk)
                while unwritten:
                    written = os.pwrite(out.fileno(), unwritten, piece.position)
                    piece.position += written
                    unwritten = unwritten[written:]
                if self.has_ranges:
                    os.pwrite(record.fileno(), _COUNT.pack(piece.position - piece.start), entry)

            yield write

    def complete(self) -> None:
        """Move the file, which has the right digest, to where the cache has it."""
        with open_own(self.place.partial) as file:
            os.fsync(file.fileno())
        self.place.partial.replace(self.place.blob)
        self.place.discard_partial()
        self.place.link()


def recorded_pieces(place: CachePath, size: int) -> list[FilePiece]:
    """The pieces of a file in its record; none if it is damaged, has another format, or has no file."""
    pieces = _empty_pieces(size)
    try:
        for path in (place.partial, place.record):
            open_own(path).close()
        record = read_small(place.record)
    except OSError:
        return []
    header = _header(size)
    counts = record[len(header) :]
    if not record.startswith(header) or len(counts) != len(pieces) * _COUNT.size:
        return []
    for piece, (count,) in zip(pieces, _COUNT.iter_unpack(counts), strict=True):
        if count > piece.missing:
            return []
        piece.position += count
    return pieces


def bytes_present(place: CachePath, size: int) -> int:
    """Bytes of a file that are stored or downloaded, perhaps by another process."""
    if exists(place.stored):
        return min(size, place.stored.stat().st_size)
    return sum(piece.position - piece.start for piece in recorded_pieces(place, size))


def _empty_pieces(size: int) -> list[FilePiece]:
    length = _piece_length(size)
    starts = range(0, size, length)
    return [FilePiece(index, start, min(start + length, size), start) for index, start in enumerate(starts)]


def _piece_length(size: int) -> int:
    return max(PIECE_BYTES, -(-size // MAX_PIECES))


def _header(size: int) -> bytes:
    return json.dumps({"version": _VERSION, "size": size, "piece_bytes": _piece_length(size)}).encode() + b"\n"
