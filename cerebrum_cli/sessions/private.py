"""Folders and files that only their owner can read, whatever the umask is: conversations are private."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

DATABASE_SUFFIXES = ("", "-wal", "-shm")  # what SQLite makes beside a database gets the mode that has, when it is made


def make_private_directory(path: Path) -> None:
    """Make a folder, unless it is there."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_private_database(path: Path) -> None:
    """Make an empty database file, or take its rights from others where it is there and that is allowed.

    A file that is there is not opened: closing it would end the locks SQLite holds on it in this process.
    """
    with contextlib.suppress(OSError):  # whoever opens it will be told
        path.touch(mode=0o600, exist_ok=False)
        return
    for suffix in DATABASE_SUFFIXES:
        with contextlib.suppress(OSError):
            file = path.with_name(path.name + suffix)
            mode = file.stat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                file.chmod(0o600)
