"""OUTPUT.partial: a header, then a line for each finished row, in the order in which they finish.

A line is the row's object as JSON, with its key as the last value. Lines are written as the rows finish, so that
nothing is lost if the process is killed, and synced within a second. An earlier file is replaced when the first row of
a new one is written.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from io import FileIO
from itertools import chain, islice
from pathlib import Path
from time import monotonic

from cerebrum_cli.core.errors import BatchError
from cerebrum_cli.core.files import commit_file, fsync_directory, lock_file, remove, unfinished_file, write_all
from cerebrum_cli.core.json_types import to_json
from cerebrum_cli.rows.keys import Digest, Key, KeyValues, key_values, settings_check
from cerebrum_cli.rows.record import Record, output_errors, parse_record

SYNC_S = 1.0
_HEADER = b'{"version": '  # how a header begins; the last one counts
_WRITTEN_TOGETHER = 64  # lines


class FinishedKeys:
    """The keys of finished rows by line, and which of these belong to rows of the input.

    A later line replaces an earlier one of the same place.
    """

    def __init__(self, keys: Iterable[KeyValues] = ()) -> None:
        self.numbers, self.places, self.flags = array("I"), array("I"), bytearray()
        self._asked, self._sources = array("Q"), array("Q")
        columns = self.numbers, self.places, self.flags, self._asked, self._sources
        add_number, add_place, add_flags, add_asked, add_source = (column.append for column in columns)
        for number, place, flags, asked, source, _ in keys:
            add_number(number)
            add_place(place)
            add_flags(flags)
            add_asked(asked)
            add_source(source)
        self._is_free = bytearray(b"\1") * len(self.flags)  # 1 for a line that belongs to no row of the input so far
        self._by_source = dict(zip(self._sources, range(len(self.flags)), strict=True))
        self._by_asked: dict[Digest, list[int]] | None = None  # once it is needed
        self.has_taken = False  # whether any line belongs to a row of the input
        self._line_of = array("q", [-1]) * (1 + max(self.places, default=-1))  # by place; -1 without one
        for line, place in enumerate(self.places):
            if (replaced := self._line_of[place]) >= 0:
                self._is_free[replaced] = 0
                if self._by_source.get(self._sources[replaced]) == replaced:
                    del self._by_source[self._sources[replaced]]
            self._line_of[place] = line

    def __len__(self) -> int:
        return len(self.flags)

    @property
    def free(self) -> Iterator[int]:
        """The lines that belong to no row of the input."""
        return (line for line, is_free in enumerate(self._is_free) if is_free)

    @property
    def free_count(self) -> int:
        return self._is_free.count(1)

    def has_place(self, place: int) -> bool:
        """Whether a line has this place."""
        return place < len(self._line_of) and self._line_of[place] >= 0

    def append(self, key: Key) -> None:
        """Add the key of the next line, which belongs to a row of the input."""
        self.numbers.append(key.number)
        self.places.append(key.place)
        self.flags.append(key.flags)
        self._asked.append(key.asked)
        self._sources.append(key.source)
        self._is_free.append(0)
        if (more := key.place + 1 - len(self._line_of)) > 0:
            self._line_of.extend([-1] * more)
        self._line_of[key.place] = len(self.flags) - 1

    def __contains__(self, source: Digest) -> bool:
        """Whether a row was read from the same text."""
        return source in self._by_source

    def take(self, source: Digest) -> int | None:
        """The line of the row that was read from the same text, unless it belongs to a row."""
        line = self._by_source.get(source)
        return None if line is None else self._take(line)

    def take_asked(self, asked: Digest) -> int | None:
        """The first line of a row that asks the same, and belongs to none."""
        if self._by_asked is None:
            self._by_asked = {}
            for line in self.free:
                self._by_asked.setdefault(self._asked[line], []).append(line)
        lines = map(self._take, self._by_asked.get(asked, ()))
        return next((line for line in lines if line is not None), None)

    def _take(self, line: int) -> int | None:
        if not self._is_free[line]:
            return None
        self._is_free[line] = 0
        self.has_taken = True
        return line


class RowLines:
    """The lines of a file, which another process may be writing.

    `record` says how its rows were made; None without any rows. `damaged` lines are left out, and so is a last one that
    was not finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: Record | None = None
        self.damaged = 0
        self._starts = array("Q")  # of the lines of rows
        self._end = 0

    def keys(self) -> FinishedKeys:
        """Read the keys of all rows. Raises BatchError for a damaged header, OSError."""
        with self.path.open("rb") as lines:
            return FinishedKeys(self._keys(lines))

    def _keys(self, lines: Iterable[bytes]) -> Iterator[KeyValues]:
        check, end, starts = 0, 0, self._starts
        for line in lines:
            try:
                yield key_values(line, check)
                starts.append(end)
            except ValueError:
                if not line.endswith(b"\n") and (end or _HEADER.startswith(line[: len(_HEADER)])):
                    break  # the process was killed while it wrote
                if not end or line.startswith(_HEADER):
                    self.record = parse_record(line, self.path)
                    check = settings_check(self.record.fingerprint)
                else:
                    self.damaged += 1
            end += len(line)
        self._end = end

    def lines(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """Yield lines of rows by number."""
        with self.path.open("rb") as file:
            end = 0  # of the last line
            for number in numbers:
                start = self._starts[number]
                if start != end:
                    file.seek(start)
                line = file.readline()
                end = start + len(line)
                yield line


class RowFile(RowLines):
    """The open and locked file. Raises BatchError if another process has it open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._is_synced = True
        self._due = 0.0
        with output_errors(path):
            self._file = lock_file(path, busy_error(path))

    def begin(self, record: Record, lines: Iterable[bytes]) -> None:
        """Replace the file by a new one, with a header and its first rows, in one step. Raises BatchError."""
        starts, end = array("Q"), 0

        def counted() -> Iterator[bytes]:
            nonlocal end
            for line in chain([header_line(record)], lines):
                starts.append(end)
                end += len(line)
                yield line

        with ExitStack() as stack, output_errors(self.path):
            with unfinished_file(self.path, 0o666) as part:
                file = stack.enter_context(lock_file(part.path, busy_error(self.path)))
                write_lines(part.file, counted())
                commit_file(part, self.path)
            stack.pop_all()
        self._file.close()
        self._file, self.record = file, record
        self._starts, self._end = starts[1:], end
        self._is_synced, self._due = True, monotonic() + SYNC_S

    def append(self, line: bytes) -> None:
        """Write the line of a row. Raises BatchError, and then nothing of it is written."""
        self._starts.append(self._end)
        try:
            self._write(line)
        except BaseException:
            self._starts.pop()
            raise
        self.sync_if_due()

    def note(self, record: Record) -> None:
        """Write another header, with other notes."""
        self._write(header_line(record))
        self.record = record

    def sync_if_due(self) -> None:
        """Sync what was written, a second after the last time. Raises BatchError."""
        if not self._is_synced and monotonic() >= self._due:
            self.sync()

    def sync(self) -> None:
        with output_errors(self.path):
            os.fsync(self._file.fileno())
        self._is_synced = True
        self._due = monotonic() + SYNC_S

    def close(self) -> None:
        """Release the lock; a file without content is removed."""
        with closing(self._file):
            status = os.fstat(self._file.fileno())
            if status.st_size == 0 and status.st_nlink:
                self.remove()

    def remove(self) -> None:
        remove(self.path)
        fsync_directory(self.path.parent)

    def _write(self, data: bytes) -> None:
        descriptor = self._file.fileno()
        with output_errors(self.path):
            try:
                os.lseek(descriptor, self._end, os.SEEK_SET)
                write_all(descriptor, data)
            except BaseException:
                os.ftruncate(descriptor, self._end)
                raise
        self._end += len(data)
        self._is_synced = False


def write_lines(file: FileIO, lines: Iterable[bytes]) -> None:
    lines = iter(lines)
    for chunk in iter(lambda: b"".join(islice(lines, _WRITTEN_TOGETHER)), b""):
        write_all(file.fileno(), chunk)


def header_line(record: Record) -> bytes:
    return f"{to_json(record.object)}\n".encode()


def busy_error(path: Path) -> BatchError:
    name = path.name.removesuffix(".partial")
    return BatchError(f"another process is writing {name}", "wait for it, or choose another -o")


def read_row_file(path: Path) -> tuple[Record, list[bytes]] | None:
    """The record and the lines of the rows in a file; None without any. Raises BatchError, OSError."""
    if not path.is_file():
        return None
    file = RowLines(path)
    lines = [*file.lines(file.keys().free)]
    return (file.record, lines) if file.record and lines else None
