"""Files that get their names when all of them are whole, hashed while they are written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.core.files import fsync_directory, locked

PART_SUFFIX = ".part"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OPEN_ATTEMPTS = 10  # to open a file that others finish just then
MAX_UNHASHED = 4  # pieces that may be written and not hashed yet


class WrittenFile(NamedTuple):
    """A file that is whole, its bytes and their SHA-256."""

    path: Path
    size: int
    sha256: str


@dataclass(slots=True)
class HashedFile:
    """A file on its way, whose digest a thread works out while the next bytes are fetched."""

    file: FileIO
    pool: ThreadPoolExecutor
    size: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    _hashing: deque[Future[None]] = field(default_factory=deque)

    def write(self, data: bytes) -> None:
        """Put bytes at the end."""
        if len(self._hashing) >= MAX_UNHASHED:
            self._hashing.popleft().result()
        self._hashing.append(self.pool.submit(self._digest.update, data))
        left = memoryview(data)
        while left:
            left = left[self.file.write(left) :]
        self.size += len(data)

    def sync(self) -> str:
        """Have all of it on disk, and return the SHA-256 in hexadecimal."""
        while self._hashing:
            self._hashing.popleft().result()
        os.fsync(self.file.fileno())
        return self._digest.hexdigest()


@dataclass(slots=True)
class OutputFiles:
    """Files that come to be all together or not at all: until then each has `.part` behind its name."""

    written: list[WrittenFile] = field(default_factory=list)
    _parts: list[Path] = field(default_factory=list)
    _resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _pool: ThreadPoolExecutor = field(init=False)

    def __enter__(self) -> OutputFiles:
        self._pool = self._resources.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:  # before their locks are given back
            part.unlink(missing_ok=True)
        self._resources.close()

    @contextlib.contextmanager
    def file(self, path: Path) -> Iterator[HashedFile]:
        """Write one file. MergeError where another merge writes it, or it cannot be written."""
        part = path.with_name(path.name + PART_SUFFIX)
        with translate_os_errors(path):
            file = self._resources.enter_context(open_locked(part, path))  # it stays locked until all are whole
            self._parts.append(part)
            file.truncate(0)
            hashed = HashedFile(file, self._pool)
            yield hashed
            self.written.append(WrittenFile(path, hashed.size, hashed.sync()))

    def commit(self) -> tuple[WrittenFile, ...]:
        """Give the files their names, the first one's last: without it the others are no model."""
        named: list[Path] = []
        try:
            for each in reversed(self.written):
                with translate_os_errors(each.path):
                    self._parts[-1].replace(each.path)
                self._parts.pop()
                named.append(each.path)
        except BaseException:
            for path in named:
                path.unlink(missing_ok=True)
            raise
        for folder in {each.path.parent for each in self.written}:
            fsync_directory(folder)
        return tuple(self.written)


def open_locked(part: Path, path: Path) -> FileIO:
    """Return the file on its way to a path, opened and locked. MergeError where another merge writes it."""
    for _ in range(OPEN_ATTEMPTS):
        file = FileIO(part, "ab")
        if not locked(file.fileno()):
            file.close()
            break
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        file.close()  # another merge has named it, or removed it, since it was opened
    raise MergeError(f"another cerebrum merge is writing {path}", "wait until it has ended")


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Tell what the system says of a file that cannot be written."""
    try:
        yield
    except OSError as error:
        do = "free some space, or write elsewhere" if error.errno in DISK_FULL else "write elsewhere"
        raise MergeError(f"{path}: {error.strerror}", do) from error
