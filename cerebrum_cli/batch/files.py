"""The files of a batch result, written so that a process may be killed at any time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from queue import Empty, SimpleQueue

from cerebrum_cli.core.errors import BatchError, UsageError
from cerebrum_cli.core.files import translate_os_errors, write_all
from cerebrum_cli.core.locks import lock_file

SYNC_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Size in bytes and hexadecimal SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """The paths of a result and of the files beside it."""

    output: Path

    @property
    def partial(self) -> Path:
        """The finished rows, in the order in which they finished."""
        return self._beside(".partial")

    @property
    def meta(self) -> Path:
        """The settings that the result was made with."""
        return self._beside(".meta.json")

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that may be written."""
        return (self.output, self.partial, self.meta)

    def _beside(self, suffix: str) -> Path:
        return self.output.with_name(self.output.name + suffix)


def output_paths(output: Path, source: Path | None = None) -> OutputPaths:
    """The paths for an output. Raises UsageError if it cannot be written, or would overwrite `source`, the input.

    For a symbolic link, its target is replaced.
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
        raise UsageError(f"{output} is not a regular file", "use `-o -` to stream to standard output")
    paths = OutputPaths(output.resolve() if output.is_symlink() else output)
    folder = paths.output.parent
    if not folder.is_dir():
        raise UsageError(f"directory {folder} does not exist", "create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"directory {folder} is not writable", "choose another -o")
    for path in paths.all:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"the output would overwrite the input {source}", "choose another -o")
    return paths


def lock_partial(path: Path) -> FileIO:
    """Open or create a partial file and lock it. Raises OSError, and BatchError if another process writes it."""
    name = path.name.removesuffix(".partial")
    return lock_file(path, BatchError(f"another process is writing {name}", "wait for it, or choose another -o"))


def write_result(file: FileIO, chunks: Iterable[bytes]) -> Identity:
    """Write and sync a file."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        write_all(file.fileno(), chunk)
        digest.update(chunk)
        size += len(chunk)
    os.fsync(file.fileno())
    return Identity(size, digest.hexdigest())


class PeriodicSync:
    """Syncs a file on a thread of its own, once a second while it changes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_changed = False
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None
        self._stop: SimpleQueue[None] = SimpleQueue()

    def file_changed(self) -> None:
        """Have the file synced within a second."""
        self._is_changed = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
            self._thread.start()

    def raise_error(self) -> None:
        """Raise the OSError of a sync that failed, once."""
        error, self._error = self._error, None
        if error:
            raise error

    def discard(self) -> None:
        """Leave the changes so far unsynced."""
        self._is_changed, self._error = False, None

    def close(self) -> None:
        """End the thread, and sync what has changed. Raises OSError."""
        if self._thread is None:
            return
        self._stop.put(None)
        self._thread.join()
        self._thread = None
        self._sync()
        self.raise_error()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(Empty):
                return self._stop.get(timeout=SYNC_INTERVAL_S)
            self._sync()

    def _sync(self) -> None:
        if not self._is_changed:
            return
        self._is_changed = False  # before the call: it may miss what is written meanwhile
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._is_changed, self._error = True, error


def identify(path: Path) -> Identity | None:
    """Size and hash of a file; None if it does not exist."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return Identity(size, hashlib.file_digest(file, "sha256").hexdigest())
    except FileNotFoundError:
        return None


def file_stamp(path: Path) -> tuple[int, ...] | None:
    """A value that changes when a file does, without reading it; None if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def journal_errors(path: Path) -> AbstractContextManager[None]:
    """Raise BatchError with a hint for an OSError."""
    return translate_os_errors(
        BatchError, path, ", then run it again without --restart to resume", "choose an -o on another file system"
    )
