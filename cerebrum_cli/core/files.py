"""Atomic and durable writes of files, and the errors of a full or read-only disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.locks import NoLocks, UnfinishedFile, unfinished_file


def read_at_most(path: Path, limit: int) -> bytes | None:
    """Content of a file; None if it has more than `limit` bytes: a device or a pipe may have no end."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            return None
        data = file.read(limit + 1)
    return None if len(data) > limit else data


def exists(path: Path) -> bool:
    """Whether a path leads to something, as far as this user can see: other users' directories may be closed."""
    try:
        return path.exists()
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """Whether a path leads to a directory, as far as this user can see."""
    try:
        return path.is_dir()
    except OSError:
        return False


def existing_parent(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next(each for each in (path, *path.parents) if exists(each))


def is_disk_full(error: OSError) -> bool:
    """Whether a file cannot grow: no space is left, or a quota or the limit of a file's size is reached."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def translate_os_errors(
    error_type: type[CerebrumError], path: Path, then: str = "", elsewhere: str = "use another directory"
) -> Iterator[None]:
    """Raise a CerebrumError for an OSError about a file, by default the one at `path`.

    `then` follows the hint to free space or check permissions, `elsewhere` is the hint for a file system without locks.
    """
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, (str, Path)) else path
        fix = "free some disk space" if is_disk_full(error) else "check its permissions"
        hint = elsewhere if isinstance(error, NoLocks) else f"{fix}{then}"
        raise error_type(f"{name}: {error.strerror or error}", hint) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, in one call if possible."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def atomic_write(path: Path, data: bytes, size: int | None = None, mode: int | None = None) -> None:
    """Replace the content of a file atomically: readers and crashes see the old or the new content.

    A `size` beyond the data is filled with zeros, which take no space if the file system supports sparse files. Without
    a `mode`, the file is readable only by its owner.
    """
    with unfinished_file(path) as part:
        descriptor = part.file.fileno()
        write_all(descriptor, data)
        if size is not None:
            part.file.truncate(size)
        if mode is not None:
            part.path.chmod(mode)
        os.fsync(descriptor)
        commit_file(part, path)


def commit_file(part: UnfinishedFile, path: Path) -> None:
    """Give a complete and synced file its final name, durably."""
    part.path.replace(path)
    fsync_directory(path.parent)


def replace_user_file(path: Path, data: bytes) -> None:
    """Replace the content of a file that users edit too: atomically, with its permissions, and through a symlink."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data, mode=stat.S_IMODE(path.stat().st_mode) if path.exists() else None)


def fsync_directory(directory: Path) -> None:
    """Make new or renamed files in a directory durable, where the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
