"""Write a file atomically, hashing it on the way."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.core.files import fsync_directory, is_disk_full, try_lock

PART_SUFFIX = ".part"
OPEN_ATTEMPTS = 10  # another merge may rename the file in between
MAX_UNHASHED = 4  # chunks written but not hashed yet


class WrittenFile(NamedTuple):
    """A complete file: its path, size in bytes, and SHA-256."""

    path: Path
    size: int
    sha256: str


class HashedFile:
    """A file that appears complete or not at all: until `commit`, its name ends in `.part`.

    A thread hashes each chunk while the next one is produced. Opening raises MergeError, also if another merge is
    writing the file; the methods raise OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._part = path.with_name(path.name + PART_SUFFIX)
        self._digest = hashlib.sha256()
        self._hashing: deque[Future[None]] = deque()
        self._resources = contextlib.ExitStack()
        self._is_committed = False

    def __enter__(self) -> HashedFile:
        with contextlib.ExitStack() as opened, translate_os_errors(self.path):
            self._pool = opened.enter_context(ThreadPoolExecutor(1))
            self._file = opened.enter_context(open_locked(self._part, self.path))  # locked until it is complete
            opened.callback(self._remove)  # while it is still locked
            self._file.truncate(0)
            self._resources = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def write(self, data: bytes) -> None:
        if len(self._hashing) >= MAX_UNHASHED:
            self._hashing.popleft().result()
        self._hashing.append(self._pool.submit(self._digest.update, data))
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[self._file.write(remaining) :]
        self.size += len(data)

    def commit(self) -> WrittenFile:
        """Flush the file to disk and give it its name."""
        while self._hashing:
            self._hashing.popleft().result()
        os.fsync(self._file.fileno())
        self._part.replace(self.path)
        self._is_committed = True
        fsync_directory(self.path.parent)
        return WrittenFile(self.path, self.size, self._digest.hexdigest())

    def _remove(self) -> None:
        if not self._is_committed:
            self._part.unlink(missing_ok=True)


def open_locked(part: Path, path: Path) -> FileIO:
    """Open and lock the partial file of a path. Raises MergeError if another merge is writing it."""
    for _ in range(OPEN_ATTEMPTS):
        file = FileIO(part, "ab")
        if not try_lock(file.fileno()):
            file.close()
            break
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        file.close()  # another merge renamed or removed it after it was opened
    raise MergeError(f"another cerebrum merge is writing {path}", "wait until it has finished")


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Translate operating system errors about a file."""
    try:
        yield
    except OSError as error:
        is_full = is_disk_full(error) and error.errno != errno.EFBIG  # files may be larger elsewhere
        hint = "free some space, or write elsewhere" if is_full else "write elsewhere"
        raise MergeError(f"{path}: {error.strerror}", hint) from error
