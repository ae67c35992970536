"""Write several files atomically together, hashing them on the way."""

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
from cerebrum_cli.core.files import fsync_directory, is_disk_full, try_lock

PART_SUFFIX = ".part"
OPEN_ATTEMPTS = 10  # another merge may rename the file in between
MAX_UNHASHED = 4  # chunks written but not hashed yet


class WrittenFile(NamedTuple):
    """A complete file: its path, size in bytes, and SHA-256."""

    path: Path
    size: int
    sha256: str


@dataclass(slots=True)
class HashedFile:
    """A file being written; a thread hashes each chunk while the next one is produced."""

    file: FileIO
    pool: ThreadPoolExecutor
    size: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    _hashing: deque[Future[None]] = field(default_factory=deque)

    def write(self, data: bytes) -> None:
        if len(self._hashing) >= MAX_UNHASHED:
            self._hashing.popleft().result()
        self._hashing.append(self.pool.submit(self._digest.update, data))
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[self.file.write(remaining) :]
        self.size += len(data)

    def sync(self) -> str:
        """Flush the file to disk and return its SHA-256 in hexadecimal."""
        while self._hashing:
            self._hashing.popleft().result()
        os.fsync(self.file.fileno())
        return self._digest.hexdigest()


@dataclass(slots=True)
class OutputFiles:
    """Files that appear together or not at all; until then their names end in `.part`."""

    written: list[WrittenFile] = field(default_factory=list)
    _parts: list[Path] = field(default_factory=list)
    _resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _pool: ThreadPoolExecutor = field(init=False)

    def __enter__(self) -> OutputFiles:
        self._pool = self._resources.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:  # while they are still locked
            part.unlink(missing_ok=True)
        self._resources.close()

    @contextlib.contextmanager
    def file(self, path: Path) -> Iterator[HashedFile]:
        """Open one file for writing. Raises MergeError if it cannot be written, or another merge is writing it."""
        part = path.with_name(path.name + PART_SUFFIX)
        with translate_os_errors(path):
            file = self._resources.enter_context(open_locked(part, path))  # locked until all files are complete
            self._parts.append(part)
            file.truncate(0)
            hashed = HashedFile(file, self._pool)
            yield hashed
            self.written.append(WrittenFile(path, hashed.size, hashed.sync()))

    def commit(self) -> tuple[WrittenFile, ...]:
        """Rename all files, the first part last: without it the others do not form a model."""
        renamed: list[Path] = []
        try:
            for each in reversed(self.written):
                with translate_os_errors(each.path):
                    self._parts[-1].replace(each.path)
                self._parts.pop()
                renamed.append(each.path)
        except BaseException:
            for path in renamed:
                path.unlink(missing_ok=True)
            raise
        for folder in {each.path.parent for each in self.written}:
            fsync_directory(folder)
        return tuple(self.written)


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
