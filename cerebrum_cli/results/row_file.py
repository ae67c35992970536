"""OUTPUT.partial: a header, then a line for each finished row, in the order in which they finish.

A line is the row's object as JSON, with the row's key as its last value: the digest of what is asked, the row's number
in the input, and its flags. Lines are written as the rows finish, so that nothing is lost if the process is killed, and
synced within a second.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from time import monotonic
from typing import BinaryIO

from cerebrum_cli.core.errors import DAMAGE, BatchError
from cerebrum_cli.core.files import fsync_directory, lock_file, write_all
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.results.record import VERSION, output_errors
from cerebrum_cli.results.rows import DIGEST, FLAGS, ONLY_FINISHED, Digest, Key, RowFlag, key_of_line

SYNC_S = 1.0
_LINE_FEED = 10
_HEADER = b'{"version": '  # how a header begins
_DAMAGED = "move it elsewhere, choose another -o, or use --restart to start over"


class RowFile:
    """The open and locked file; a line that a killed process has not finished is removed.

    `header` is None until one is written. `rows` are the numbers of lines by digest, and `flags` those of rows that are
    not only finished. Raises BatchError if another process has it open, or if it is damaged, unless its content
    `is_discarded`.
    """

    def __init__(self, path: Path, is_discarded: bool = False) -> None:
        self.path = path
        self.header: JsonDict | None = None
        self.rows: dict[Digest, int] = {}
        self.flags: dict[Digest, int] = {}
        self._digests: list[Digest] = []  # by line
        self._starts = array("Q", [0])  # of the lines of rows, and of what will be written next
        self._is_synced = True
        self._due = 0.0
        with output_errors(path):
            name = path.name.removesuffix(".partial")
            busy = BatchError(f"another process is writing {name}", "wait for it, or choose another -o")
            self._file = lock_file(path, busy)
        try:
            with output_errors(path), path.open("rb") as lines:
                if not is_discarded:
                    self._load(lines)
                self._truncate()
        except BaseException:
            self._file.close()
            raise

    def _load(self, lines: BinaryIO) -> None:
        first = lines.readline()
        if _HEADER.startswith(first) or (first.startswith(_HEADER) and not first.endswith(b"\n")):
            return  # the process was killed while it wrote
        self.header = read_header(first, self.path)
        start = len(first)
        starts, rows, flags, digests = array("Q", [start]), self.rows, self.flags, self._digests
        for number, line in enumerate(lines):
            if line[-1] != _LINE_FEED:  # the process was killed while it wrote
                break
            digest = line[DIGEST]
            if line[FLAGS] != ONLY_FINISHED:
                flags[digest] = self._flags_of(line, start)
            elif flags:
                flags.pop(digest, None)  # of a row that was asked again
            rows[digest] = number
            digests.append(digest)
            start += len(line)
            starts.append(start)
        self._starts = starts

    def _flags_of(self, line: bytes, offset: int) -> int:
        try:
            return key_of_line(line).flags
        except ValueError as error:
            raise BatchError(f"{self.path} is damaged at byte {offset}", _DAMAGED) from error

    def begin(self, fingerprint: JsonObject, replaces_output: bool) -> None:
        """Write the header: what rows are made with, and whether an older result is to be replaced by all new rows."""
        self.header = {"version": VERSION, "fingerprint": dict(fingerprint), "replaces": replaces_output}
        self._write(f"{to_json(self.header)}\n".encode())
        self._starts.pop(0)
        self.sync()
        fsync_directory(self.path.parent)

    def append(self, line: bytes, key: Key) -> None:
        """Write the line of a row. Raises BatchError, and then nothing of it is written."""
        self._write(line)
        self.rows[key.digest] = len(self._starts) - 2
        self._digests.append(key.digest)
        self.flags.pop(key.digest, None)
        if key.flags != RowFlag.FINISHED:
            self.flags[key.digest] = key.flags
        self.sync_if_due()

    def sync_if_due(self) -> None:
        """Sync what was written, a second after the last time. Raises BatchError."""
        if not self._is_synced and monotonic() >= self._due:
            self.sync()

    def sync(self) -> None:
        with output_errors(self.path):
            os.fsync(self._file.fileno())
        self._is_synced = True
        self._due = monotonic() + SYNC_S

    def shared(self, digest: Digest) -> Digest:
        """The digest as it is stored here, if it is: a million others would take 60 MB."""
        number = self.rows.get(digest)
        return digest if number is None else self._digests[number]

    def lines(self, digests: Iterable[Digest]) -> Iterator[bytes]:
        """Yield the lines of rows."""
        if not self.rows:
            return
        rows, starts = self.rows, self._starts
        with self.path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            for digest in digests:
                number = rows[digest]
                yield data[starts[number] : starts[number + 1]]

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        with output_errors(self.path):
            try:
                write_all(self._file.fileno(), data)
            except BaseException:
                self._truncate()
                raise
        self._starts.append(self._starts[-1] + len(data))
        self._is_synced = False

    def _truncate(self) -> None:
        os.ftruncate(self._file.fileno(), self._starts[-1])
        os.lseek(self._file.fileno(), self._starts[-1], os.SEEK_SET)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of rows in a file that another process may be writing; none without the file."""
    if path.is_file():
        with path.open("rb") as lines:
            next(lines, None)
            yield from (line for line in lines if line.endswith(b"\n"))


def header_of(path: Path) -> JsonDict | None:
    """The header of a file that another process may be writing; None without one. Raises BatchError."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        line = file.readline()
    return read_header(line, path) if line.endswith(b"\n") else None


def read_header(line: bytes, path: Path) -> JsonDict:
    """The header of a file. Raises BatchError for another line."""
    try:
        header: JsonDict = json.loads(line)
        if header["version"] != VERSION:
            raise BatchError(f"{path} was written by another version of cerebrum", _DAMAGED)
        header["fingerprint"].keys()
        header["replaces"]
    except DAMAGE as error:
        raise BatchError(f"{path} is damaged: {error!r}", _DAMAGED) from error
    return header
