"""The files a result is made in, and how they are written so that a process may end at any moment."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.batches.meta import Identity
from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import fsync_directory

RESUME_HINT = "the same command, without --restart, goes on where this one ended"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """Where a result is, and what belongs to it: the rows that are done, the record, and both on their way."""

    output: Path

    @property
    def partial(self) -> Path:
        """The rows that are done, as they came."""
        return self._beside(".partial")

    @property
    def meta(self) -> Path:
        """The record of what made the result."""
        return self._beside(".meta.json")

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that may be written."""
        named = (self.output, self.partial, self.meta)
        return (*named, temporary_path(self.output), temporary_path(self.meta))

    def _beside(self, suffix: str) -> Path:
        return self.output.with_name(self.output.name + suffix)


def temporary_path(path: Path) -> Path:
    """Return the name a file has until it is whole."""
    return path.with_name(f"{path.name}.unfinished")


def output_paths(output: Path, source: Path | None = None) -> OutputPaths:
    """Return where a result goes; UsageError where it cannot go, or where `source`, the input, would be lost.

    A symbolic link stays, and what it leads to is replaced.
    """
    try:
        mode = output.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror}", "choose another -o") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{output} is a directory", "name a file in it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{output} is no file that could be replaced", "`-o -` streams to standard output")
    paths = OutputPaths(output.resolve() if output.is_symlink() else output)
    folder = paths.output.parent
    if not folder.is_dir():
        raise UsageError(f"{folder} is no directory", "make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} cannot be written to", "choose another -o")
    for path in paths.all:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"the input {source} is a file the result would be written to", "choose another -o")
    return paths


def open_locked(path: Path) -> int:
    """Open a file, made where there is none, for this process alone, and return its descriptor.

    The lock dies with the process. BatchError where another one holds it; where a file system knows no locks, there
    is none.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
            opened = os.fstat(descriptor)
            if not stat.S_ISREG(opened.st_mode):
                raise BatchError(f"{path} is no regular file", "move it away, or choose another -o")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(opened, path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who had the lock has removed the file meanwhile


def write_temporary(path: Path, chunks: Iterable[bytes]) -> Identity:
    """Write a file under its unfinished name, wait for the disk, and return what it is; `put_in_place` is next."""
    temporary = temporary_path(path)
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    digest, size = hashlib.sha256(), 0
    try:
        with translate_os_errors(path):
            for chunk in chunks:
                write_all(descriptor, chunk)
                digest.update(chunk)
                size += len(chunk)
            os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(descriptor)
    return Identity(size, digest.hexdigest())


def rename_into_place(path: Path) -> None:
    """Give a file that is whole its name, in one step, and wait for the disk."""
    temporary_path(path).replace(path)
    fsync_directory(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, in one call where the system takes it whole."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def identify(path: Path) -> Identity | None:
    """Return what a file is, having read it; None if there is none."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return Identity(size, hashlib.file_digest(file, "sha256").hexdigest())
    except FileNotFoundError:
        return None


def file_stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does, without reading it; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn what the system refuses into a BatchError that says what to do."""
    try:
        yield
    except OSError as error:
        do = "free some space" if error.errno in _DISK_FULL else "see to it that it can be written to"
        name = error.filename if isinstance(error.filename, (str, Path)) else path
        raise BatchError(f"{name}: {error.strerror or error}", f"{do}: {RESUME_HINT}") from error


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        what = f"another process is writing {path.name.removesuffix('.partial')}"
        raise BatchError(what, "wait for it, or choose another -o") from error
    except OSError:  # a file system that knows no locks
        return
