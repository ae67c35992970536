"""The input of a batch: a file that is read by offset and must not change while the batch runs."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import write_all
from cerebrum_cli.core.text import format_size

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_LINE_BYTES = 16_000_000
BOM = b"\xef\xbb\xbf"
_HEAD = 1 << 16  # bytes that decide what the input is
_FIRST_READ = 1 << 12  # one row is read at a time, except when all rows are indexed
_LARGEST_READ = 1 << 20


class InputFile:
    """An open input.

    `head` is its beginning, and `start` where its text begins, after a byte order mark.
    """

    def __init__(self, file: FileIO, name: str) -> None:
        self._file = file
        self._name = name
        self._stamp = self._current_stamp()
        self.head = self._read(_HEAD, 0)
        self.start = len(BOM) if self.head.startswith(BOM) else 0

    def close(self) -> None:
        self._file.close()

    def lines(self, offset: int, digest: _Hash | None = None) -> Iterator[bytes]:
        """Yield the lines from an offset on without their line feeds, and hash what is read.

        Raises UsageError for a line that is too long, and BatchError if the file has changed since it was opened.
        """
        rest, size, number = b"", _FIRST_READ, 0
        while data := self._read(size, offset):
            offset += len(data)
            if digest:
                digest.update(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                number += 1
                self._require_length(line, number)
                yield line
            self._require_length(rest, number + 1)
            size = max(min(2 * size, _LARGEST_READ), len(rest))  # a long line is copied a few times only
        if rest:
            yield rest

    def _read(self, size: int, offset: int) -> bytes:
        try:
            data = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise UsageError(f"{self._name}: {error.strerror or error}", "check the file") from error
        if self._current_stamp() != self._stamp:  # looked up afterwards: what was read before a change is good
            hint = "undo the change and run it again without --restart to resume, or use --restart to start over"
            raise BatchError(f"{self._name} was changed while the batch ran", hint)
        return data

    def _current_stamp(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _require_length(self, line: bytes, number: int) -> None:
        if len(line) > MAX_LINE_BYTES:
            message = f"{self._name}: line {number} is larger than {format_size(MAX_LINE_BYTES)}"
            raise UsageError(message, "shorten it")


def open_input(source: Path) -> InputFile:
    """Open a file; one that cannot be read by offset, such as a pipe, is copied. Raises UsageError, BatchError."""
    try:
        file = source.open("rb", buffering=0)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror or error}", "check the path") from error
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return InputFile(file, str(source))
    with file:
        return spool_input(file.read, str(source))


def spool_input(read: Callable[[int], bytes], name: str) -> InputFile:
    """Copy a stream, of which `read` returns the next bytes, to a temporary file without a name. Raises BatchError."""
    import tempfile

    try:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        try:
            while data := read(_LARGEST_READ):
                write_all(file.fileno(), data)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        problem = f"{name} cannot be copied to {tempfile.tempdir or 'TMPDIR'}: {error.strerror or error}"
        hint = "set TMPDIR to a directory with more space, or save the input as a file and name it"
        raise BatchError(problem, hint) from error
    return InputFile(file, name)
