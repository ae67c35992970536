"""An input, which is read by offset and must not change meanwhile; what cannot be read so is copied."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from io import BufferedRandom, BufferedReader
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.text import format_size

if TYPE_CHECKING:
    from _typeshed import SupportsRead

MAX_LINE_BYTES = 64_000_000
BOM = b"\xef\xbb\xbf"
_HEAD = 1 << 16  # bytes that decide what the input is
_CHUNK = 1 << 20


class InputFile:
    """An open input.

    `head` is its beginning, and `start` where its text begins, after a byte order mark.
    """

    def __init__(self, file: BufferedReader | BufferedRandom, name: str) -> None:
        self._file = file
        self._name = name
        self._stamp = self._current_stamp()
        file.seek(0)
        self.head = file.read(_HEAD)
        self.start = len(BOM) if self.head.startswith(BOM) else 0

    def close(self) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()

    def lines(self, offset: int) -> Iterator[bytes]:
        """Yield the lines from an offset on without their line feeds. Raises UsageError for a line that is too long."""
        self._file.seek(offset)
        while line := self._file.readline(MAX_LINE_BYTES + 1):
            text = line.removesuffix(b"\n")
            _require_length(len(text), self._name)
            yield text

    def require_unchanged(self) -> None:
        """Raise BatchError if the file has changed since it was opened; what was read before is good."""
        if self._current_stamp() != self._stamp:
            raise BatchError(
                f"{self._name} was changed while the batch ran",
                "run it again without --restart to resume: unchanged rows keep their answers",
            )

    def _current_stamp(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def _require_length(size: int, name: str) -> None:
    if size > MAX_LINE_BYTES:
        raise UsageError(f"{name} has a line that is larger than {format_size(MAX_LINE_BYTES)}", "shorten it")


def chunks(stream: SupportsRead[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.read(_CHUNK), b"")


def spool_input(parts: Iterable[bytes], name: str) -> InputFile:
    """Copy the parts of a stream to a temporary file without a name.

    Raises BatchError, and UsageError for a line that is too long: a device may have no end.
    """
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            size = 0  # of the line that is read
            for part in parts:
                file.write(part)
                _, line_end, rest = part.rpartition(b"\n")
                size = len(rest) if line_end else size + len(rest)
                _require_length(size, name)
            file.flush()
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise BatchError(
            f"{name} cannot be copied to {tempfile.tempdir or 'TMPDIR'}: {error.strerror or error}",
            "set TMPDIR to a directory with more space, or save the input as a file and name it",
        ) from error
    return InputFile(file, name)
