"""What more than one room asks of the file system."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def locked(descriptor: int) -> bool:
    """Return whether this process alone has the lock on an open file now; where there is none to be had, go on without.

    Closing the file gives it back.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that knows no locks
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make new names durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
