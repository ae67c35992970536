"""Write several files atomically together, hashing them on the way."""

from __future__ import annotations

import contextlib
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
from cerebrum_cli.core.files import fsync_directory, translate_os_errors, write_all
from cerebrum_cli.core.locks import PART, lock_file

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
        write_all(self.file.fileno(), data)
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
        part = path.with_name(path.name + PART)
        busy = MergeError(f"another cerebrum merge is writing {path}", "wait until it has finished")
        with write_errors(path):
            file = self._resources.enter_context(lock_file(part, busy))  # locked until all files are complete
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
                with write_errors(each.path):
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


def write_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    """Raise MergeError for an OSError."""
    return translate_os_errors(MergeError, path, ", or write elsewhere", "write to another disk")
