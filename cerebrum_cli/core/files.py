"""What more than one room asks of the file system."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def try_lock(descriptor: int) -> bool:
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


def atomic_write(path: Path, data: bytes) -> None:
    """Put bytes in place of a file, so that it holds all of them or what it held before, whoever reads or dies."""
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile(prefix=f".{path.stem}-", dir=path.parent, delete=False) as file:
        unnamed = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            unnamed.replace(path)
        except BaseException:
            unnamed.unlink(missing_ok=True)
            raise


def fsync_directory(folder: Path) -> None:
    """Make new names durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
