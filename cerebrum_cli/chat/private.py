"""Directories and files that only their owner can read, whatever the umask: conversations are private."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

DATABASE_SUFFIXES = ("", "-wal", "-shm")  # SQLite creates the last two with the mode of the database


def make_private_directory(path: Path) -> None:
    """Create a directory, unless it exists."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_private_database(path: Path) -> None:
    """Create an empty database file, or withdraw other users' permissions on an existing one where possible.

    An existing file is not opened: closing it would release the locks SQLite holds on it in this process.
    """
    with contextlib.suppress(OSError):  # opening the database reports it
        path.touch(mode=0o600, exist_ok=False)
        return
    for suffix in DATABASE_SUFFIXES:
        with contextlib.suppress(OSError):
            file = path.with_name(path.name + suffix)
            mode = file.stat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                file.chmod(0o600)
