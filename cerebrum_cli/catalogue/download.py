"""Bring a file from the Hub into the Hugging Face cache: whole and checked, or not at all.

huggingface_hub's own download cannot go on in a new process, so the partial file is ours: it is named by its digest,
continued with a Range request, hashed while it is written, and gets its place when the digest is right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from cerebrum_cli.catalogue.cache import Cache
from cerebrum_cli.catalogue.hub import HubFile, Listing, blob_lock, open_file
from cerebrum_cli.catalogue.hub_errors import HubError
from cerebrum_cli.catalogue.registry import sha256_of
from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.text import format_size

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_WAIT_S = 600.0  # what the Hub may ask for; its rate limits last 300
DISK_MARGIN = 64_000_000  # bytes of the disk left to others
_MAX_BACKOFF_S = 16.0
_PROGRESS_BYTES = 1 << 20  # the network brings 64 KiB at a time: telling of each costs more than writing it


class Progress(Protocol):
    """Who is told how a pull goes on."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Take how far a stage is, in bytes."""

    def notice(self, event: NoticeEvent) -> None:
        """Take what a person should know."""


@dataclass(slots=True)
class RetryPolicy:
    """Try again what may yet succeed, as often as its error allows, until something has come of it."""

    progress: Progress
    sleep: Callable[[float], None] = time.sleep
    failures: int = 0

    def reset(self) -> None:
        """Count from nothing again: the last try has brought something."""
        self.failures = 0

    def wait(self, error: HubError) -> None:
        """Wait before the next try; raise the error where there is to be none."""
        self.failures += 1
        if self.failures > error.retries:
            raise error
        seconds = min(_MAX_BACKOFF_S, 2.0 ** (self.failures - 1)) if error.wait_s is None else error.wait_s
        if seconds > MAX_WAIT_S:
            raise HubError(f"{error.message} and says to wait {seconds / 60:.0f} minutes", "pull again then") from error
        self.progress.notice(NoticeEvent(error.message, f"trying again in {seconds:.0f} s"))
        self.sleep(seconds)


def free_space(directory: Path) -> float:
    """Return the bytes that are free on a directory's disk; infinity where that is none, and tells nothing."""
    usage = shutil.disk_usage(directory)
    return usage.free if usage.total else math.inf


@dataclass(slots=True)
class Download:
    """Downloads of the files of one listing; whatever ends one, the next goes on where it was."""

    listing: Listing
    cache: Cache
    progress: Progress
    digest_of: Callable[[Path, Callable[[int, int], None]], str] = sha256_of
    free_bytes: Callable[[Path], float] = free_space
    sleep: Callable[[float], None] = time.sleep

    def missing_bytes(self, files: tuple[HubFile, ...]) -> int:
        """Return how much of these files is still to come."""
        return sum(file.size - self._present_bytes(file) for file in files)

    def require_space(self, files: tuple[HubFile, ...]) -> None:
        """Raise PullError where the disk has no room for what is still to come."""
        missing = self.missing_bytes(files)
        directory = next(path for path in (self.cache.directory, *self.cache.directory.parents) if path.exists())
        free = self.free_bytes(directory)
        need = missing + DISK_MARGIN
        if missing and free < need:
            available, lacking = format_size(int(free)), format_size(int(need - free))
            raise PullError(
                f"{directory}: the disk is too full: {available} are free, and the pull needs {format_size(need)}",
                f"free {lacking}, or set HF_HUB_CACHE to a directory on another disk",
            )

    def fetch(self, files: tuple[HubFile, ...]) -> tuple[Path, ...]:
        """Return the paths of files in the cache, downloaded and checked unless they are there already."""
        listing = self.listing
        total, before, paths = sum(file.size for file in files), 0, []
        try:
            for file in files:
                paths.append(self._fetch(file, _FileProgress(self.progress, before, total)))
                before += file.size
            with contextlib.suppress(PermissionError):  # a cache that is only read from
                self.cache.write_ref(listing.repo_id, listing.revision, listing.commit)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "free some disk space" if full else "set HF_HUB_CACHE to a directory that can be written to"
            problem = f"{error.filename or files[0].name}: {error.strerror or error}"
            raise PullError(problem, f"{hint}, then pull again: it goes on") from error
        return tuple(paths)

    def _fetch(self, file: HubFile, progress: _FileProgress) -> Path:
        cache, repo_id, commit = self.cache, self.listing.repo_id, self.listing.commit
        pointer, stored = cache.pointer(repo_id, commit, file.name), self._stored_path(file)
        if pointer.exists() and pointer.samefile(stored) and self._is_valid(stored, file, progress):
            return pointer
        cache.make_directories(repo_id, commit, file.name, file.digest)
        with blob_lock(cache.lock(repo_id, file.digest), self._report_other_process(file, progress)):
            if not self._has_valid_blob(file, progress):
                partial = cache.partial(repo_id, file.digest)
                self._complete(partial, file, progress)
                partial.replace(cache.blob(repo_id, file.digest))
            return cache.link(repo_id, commit, file.name, file.digest)

    def _stored_path(self, file: HubFile) -> Path:
        return self.cache.stored_path(self.listing.repo_id, self.listing.commit, file.name, file.digest)

    def _present_bytes(self, file: HubFile) -> int:
        """Return how many bytes of a file are here."""
        for path in (self._stored_path(file), self.cache.partial(self.listing.repo_id, file.digest)):
            with contextlib.suppress(OSError):
                return min(file.size, path.stat().st_size)
        return 0

    def _report_other_process(self, file: HubFile, progress: _FileProgress) -> Iterator[None]:
        """Tell how far the process is that holds the lock."""
        self.progress.notice(NoticeEvent(f"another process is downloading {file.name}", "waiting for it"))
        while True:
            yield
            progress.download(self._present_bytes(file), file.size)

    def _is_valid(self, blob: Path, file: HubFile, progress: _FileProgress) -> bool:
        """Return whether a blob is what it should be."""
        return blob.stat().st_size == file.size and self.digest_of(blob, progress.verify) == file.digest

    def _has_valid_blob(self, file: HubFile, progress: _FileProgress) -> bool:
        """Return whether a file is here and what it should be; one that is not is deleted."""
        blob = self._stored_path(file)
        if not blob.exists():
            return False
        if self._is_valid(blob, file, progress):
            return True
        self.progress.notice(NoticeEvent(f"{file.name} in the cache is damaged", "it is deleted and downloaded again"))
        blob.unlink()
        return False

    def _complete(self, partial: Path, file: HubFile, progress: _FileProgress) -> None:
        """Bring the partial file to its full size and check it; what is wrong is deleted."""
        retry_policy = RetryPolicy(self.progress, self.sleep)
        with partial.open("ab+") as out:
            writer = _Writer(out, file.size, progress.download)
            writer.hash_existing(progress.verify)
            progress.download(writer.done, file.size)
            while writer.done < file.size:
                before = writer.done
                try:
                    self._receive(writer, file)
                except HubError as error:
                    if writer.done > before:
                        retry_policy.reset()
                    retry_policy.wait(error)
            out.flush()
            os.fsync(out.fileno())
        digest = writer.digest.hexdigest()
        if digest != file.digest:
            partial.unlink()
            raise PullError(
                f"{file.name} came with other bytes: its SHA-256 is {digest}, not {file.digest}",
                "what came is deleted; pull again, and if that does not help, ask the repository's owner",
            )

    def _receive(self, writer: _Writer, file: HubFile) -> None:
        """Write what one request brings."""
        with open_file(self.listing, file.name, writer.done) as body:
            if body.start != writer.done:
                writer.restart()
            for chunk in body.chunks:
                writer.write(chunk)
        if writer.done < file.size:
            raise HubError(f"the connection ended at byte {writer.done:,}", "check the network", retries=5)


class _FileProgress(NamedTuple):
    """Whom to tell of one file of several: `before` bytes of `total` were those of the files before it."""

    progress: Progress
    offset: int
    total: int

    def download(self, done: int, _: int) -> None:
        """Tell how much has come, of all files."""
        self.progress.update("download", self.offset + done, self.total)

    def verify(self, done: int, total: int) -> None:
        """Tell how much of what is here has been hashed."""
        self.progress.update("verify", done, total)


@dataclass(slots=True)
class _Writer:
    """A partial file, the digest of what is in it, and how much that is."""

    out: BinaryIO
    size: int
    on_progress: Callable[[int, int], None]
    digest: _Hash = field(default_factory=hashlib.sha256)
    done: int = 0
    next_report: int = 0

    def hash_existing(self, on_progress: Callable[[int, int], None]) -> None:
        """Hash what an earlier process has left."""
        existing = self.out.seek(0, os.SEEK_END)
        if existing > self.size:
            self.restart()
        self.out.seek(0)
        while self.done < existing <= self.size and (chunk := self.out.read(1 << 20)):
            self.digest.update(chunk)
            self.done += len(chunk)
            on_progress(self.done, existing)

    def restart(self) -> None:
        """Throw away what is there."""
        self.out.truncate(0)
        self.digest, self.done = hashlib.sha256(), 0

    def write(self, chunk: bytes) -> None:
        """Add bytes; never more than the file is to have."""
        if self.done + len(chunk) > self.size:
            self.restart()
            raise PullError(f"the server sends more than the {self.size:,} bytes listed", "pull again later")
        self.out.write(chunk)
        self.digest.update(chunk)
        self.done += len(chunk)
        if self.done >= self.next_report or self.done == self.size:
            self.on_progress(self.done, self.size)
            self.next_report = self.done + _PROGRESS_BYTES
