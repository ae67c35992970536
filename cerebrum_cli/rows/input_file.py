"""An input as lines of text, whatever its file is: plain or compressed text, or Parquet, whose rows become JSON."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import readable
from cerebrum_cli.core.text import format_size
from cerebrum_cli.rows.output_tables import PARQUET

if TYPE_CHECKING:
    from _typeshed import SupportsRead, WriteableBuffer

STANDARD = Path("-")  # standard input or output
MAX_LINE_BYTES = 64_000_000
BOM = b"\xef\xbb\xbf"
CHECK_FILE = "check the file, or write its values as text"  # hint for Parquet that is damaged
GZIP = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
UTF_16 = "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
# How files begin that hold no lines of text, what they are, and what to do.
UNREADABLE = (
    (b"PK\x03\x04", "a spreadsheet or another zip archive", "save the sheet as CSV in UTF-8, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "save it as CSV in UTF-8"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it: zstd -d FILE"),
    (b"\xfd7zXZ\0", "compressed with xz", "decompress it: xz -d FILE"),
    (b"BZh", "compressed with bzip2", "decompress it: bzip2 -d FILE"),
    (b"%PDF-", "a PDF document", "save its text as .txt, with a prompt on each line"),
    (b"version https://git-lfs.github.com/", "a pointer of Git LFS, not the file", "fetch the file: git lfs pull"),
    (b"\xff\xfe\0\0", "UTF-32, not UTF-8", "convert it: iconv -f UTF-32 -t UTF-8 FILE > NEW"),
    (b"\xff\xfe", "UTF-16, not UTF-8", UTF_16),
    (b"\xfe\xff", "UTF-16, not UTF-8", UTF_16),
)
_BUFFER = 1 << 16


class InputFile:
    """An open input. The lines of a regular file can be read repeatedly, those of a pipe only once.

    `head` is the beginning of its text, which is not consumed; empty for Parquet. `if_damaged` is the hint for damaged
    Parquet.
    Raises UsageError for a file that holds no lines of text.
    """

    def __init__(
        self, source: Path, piped: SupportsRead[bytes] | None = None, name: str = "", if_damaged: str = CHECK_FILE
    ) -> None:
        self._if_damaged = if_damaged
        self.name = name or ("standard input" if source == STANDARD else str(source))
        if source == STANDARD and piped is not None:
            self._raw: RawIOBase = _Piped(piped)
        else:
            with readable(source):
                self._raw = FileIO(source)
        self._file = BufferedReader(cast(FileIO, self._raw), _BUFFER)
        self._stamp = self._current_stamp()
        try:
            self._open(source)
        except BaseException:
            self.close()
            raise

    def _open(self, source: Path) -> None:
        self.head = self._file.peek(_BUFFER)
        if self.head.startswith(GZIP):
            self._file = BufferedReader(cast(FileIO, gzip.GzipFile(fileobj=self._file)), _BUFFER)
            with self._decompressing():
                self.head = self._file.peek(_BUFFER)
        for beginning, what, hint in UNREADABLE:
            if self.head.startswith(beginning):
                raise UsageError(f"{self.name} is {what}", hint)
        self._is_parquet = self.head.startswith(PARQUET_MAGIC) or source.suffix.lower() == f".{PARQUET}"
        if self._is_parquet:
            self.head = b""
        if b"\0" in self.head:
            raise UsageError("the input is not UTF-8: it has NUL bytes", UTF_16)
        self.head = self.head.removeprefix(BOM)
        if b"\r" in self.head.rstrip() and b"\n" not in self.head:
            problem = f"the lines of {self.name} end with carriage returns only"
            raise UsageError(problem, r"convert it: tr '\r' '\n' < FILE > NEW")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._raw.close()  # which a reader of gzip leaves open

    @property
    def is_file(self) -> bool:
        return self._stamp is not None

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, from the first on if it is a file.

        Raises UsageError for a line that is too long, and for a damaged file.
        """
        if self._is_parquet:
            from cerebrum_cli.rows.parquet import json_lines

            yield from json_lines(self._file, self.name, self._if_damaged)
        else:
            with self._decompressing():
                yield from self._lines()

    def _lines(self) -> Iterator[bytes]:
        if self.is_file:
            self._file.seek(0)
        line = self._file.readline(MAX_LINE_BYTES + 1).removeprefix(BOM)
        while line:
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                problem = f"{self.name} has a line that is larger than {format_size(MAX_LINE_BYTES)}"
                raise UsageError(problem, "shorten it")
            yield line
            line = self._file.readline(MAX_LINE_BYTES + 1)

    def require_unchanged(self) -> None:
        """Raise BatchError if the file has changed since it was opened; what was read before is good."""
        if self._current_stamp() != self._stamp:
            raise BatchError(f"{self.name} was changed while the batch ran", "unchanged rows keep their answers")

    def _current_stamp(self) -> tuple[int, int] | None:
        """What changes with the file; None if it is no file."""
        if not isinstance(self._raw, FileIO):
            return None
        status = os.fstat(self._raw.fileno())
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    @contextmanager
    def _decompressing(self) -> Iterator[None]:
        try:
            yield
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UsageError(f"cannot decompress {self.name}: {error}", "compress or download it again") from error


class _Piped(RawIOBase):
    """What is piped in, for a reader with a buffer."""

    def __init__(self, piped: SupportsRead[bytes]) -> None:
        self._piped = piped

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = self._piped.read(len(view))
        view[: len(data)] = data
        return len(data)
