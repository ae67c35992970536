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
from cerebrum_cli.catalogue.hub import HubFile, Listing, locked, opened
from cerebrum_cli.catalogue.hub_errors import HubError
from cerebrum_cli.catalogue.registry import sha256_of
from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.text import format_size

if TYPE_CHECKING:
    from hashlib import _Hash

LONGEST_WAIT_S = 600.0  # what the Hub may ask for; its rate limits last 300
MARGIN = 64_000_000  # bytes of the disk left to others
_SLOWEST_RETRY_S = 16.0
_TOLD_BYTES = 1 << 20  # the network brings 64 KiB at a time: telling of each costs more than writing it


class Progress(Protocol):
    """Who is told how a pull goes on."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Take how far a stage is, in bytes."""

    def notice(self, event: NoticeEvent) -> None:
        """Take what a person should know."""


@dataclass(slots=True)
class RetryPolicy:
    """Try again what may yet succeed, as often as its error allows, until something has come of it."""

    watcher: Progress
    sleep: Callable[[float], None] = time.sleep
    failures: int = 0

    def renew(self) -> None:
        """Count from nothing again: the last try has brought something."""
        self.failures = 0

    def wait(self, error: HubError) -> None:
        """Wait before the next try; raise the error where there is to be none."""
        self.failures += 1
        if self.failures > error.retries:
            raise error
        seconds = min(_SLOWEST_RETRY_S, 2.0 ** (self.failures - 1)) if error.wait is None else error.wait
        if seconds > LONGEST_WAIT_S:
            raise HubError(f"{error.message} and says to wait {seconds / 60:.0f} minutes", "pull again then") from error
        self.watcher.notice(NoticeEvent(error.message, f"trying again in {seconds:.0f} s"))
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
    watcher: Progress
    digest_of: Callable[[Path, Callable[[int, int], None]], str] = sha256_of
    free_bytes: Callable[[Path], float] = free_space
    sleep: Callable[[float], None] = time.sleep

    def missing_bytes(self, files: tuple[HubFile, ...]) -> int:
        """Return how much of these files is still to come."""
        return sum(file.size - self._here(file) for file in files)

    def require_space(self, files: tuple[HubFile, ...]) -> None:
        """Raise PullError where the disk has no room for what is still to come."""
        missing = self.missing_bytes(files)
        directory = next(path for path in (self.cache.directory, *self.cache.directory.parents) if path.exists())
        free = self.free_bytes(directory)
        need = missing + MARGIN
        if missing and free < need:
            there, lacking = format_size(int(free)), format_size(int(need - free))
            raise PullError(
                f"{directory}: the disk is too full: {there} are free, and the pull needs {format_size(need)}",
                f"free {lacking}, or set HF_HUB_CACHE to a directory on another disk",
            )

    def fetch(self, files: tuple[HubFile, ...]) -> tuple[Path, ...]:
        """Return the paths of files in the cache, downloaded and checked unless they are there already."""
        listing = self.listing
        total, before, paths = sum(file.size for file in files), 0, []
        try:
            for file in files:
                paths.append(self._fetch(file, _Told(self.watcher, before, total)))
                before += file.size
            with contextlib.suppress(PermissionError):  # a cache that is only read from
                self.cache.note(listing.repo_id, listing.revision, listing.commit)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            do = "free some disk space" if full else "set HF_HUB_CACHE to a directory that can be written to"
            what = f"{error.filename or files[0].name}: {error.strerror or error}"
            raise PullError(what, f"{do}, then pull again: it goes on") from error
        return tuple(paths)

    def _fetch(self, file: HubFile, told: _Told) -> Path:
        cache, repo_id, commit = self.cache, self.listing.repo_id, self.listing.commit
        pointer, stored = cache.pointer(repo_id, commit, file.name), self._stored(file)
        if pointer.exists() and pointer.samefile(stored) and self._is_sound(stored, file, told):
            return pointer
        cache.prepare(repo_id, commit, file.name, file.digest)
        with locked(cache.lock(repo_id, file.digest), self._others(file, told)):
            if not self._is_whole(file, told):
                partial = cache.partial(repo_id, file.digest)
                self._complete(partial, file, told)
                partial.replace(cache.blob(repo_id, file.digest))
            return cache.link(repo_id, commit, file.name, file.digest)

    def _stored(self, file: HubFile) -> Path:
        return self.cache.stored(self.listing.repo_id, self.listing.commit, file.name, file.digest)

    def _here(self, file: HubFile) -> int:
        """Return how many bytes of a file are here."""
        for path in (self._stored(file), self.cache.partial(self.listing.repo_id, file.digest)):
            with contextlib.suppress(OSError):
                return min(file.size, path.stat().st_size)
        return 0

    def _others(self, file: HubFile, told: _Told) -> Iterator[None]:
        """Tell how far the process is that holds the lock."""
        self.watcher.notice(NoticeEvent(f"another process is downloading {file.name}", "waiting for it"))
        while True:
            yield
            told.download(self._here(file), file.size)

    def _is_sound(self, blob: Path, file: HubFile, told: _Told) -> bool:
        """Return whether a blob is what it should be."""
        return blob.stat().st_size == file.size and self.digest_of(blob, told.verify) == file.digest

    def _is_whole(self, file: HubFile, told: _Told) -> bool:
        """Return whether a file is here and what it should be; one that is not is deleted."""
        blob = self._stored(file)
        if not blob.exists():
            return False
        if self._is_sound(blob, file, told):
            return True
        self.watcher.notice(NoticeEvent(f"{file.name} in the cache is damaged", "it is deleted and downloaded again"))
        blob.unlink()
        return False

    def _complete(self, partial: Path, file: HubFile, told: _Told) -> None:
        """Bring the partial file to its full size and check it; what is wrong is deleted."""
        patience = RetryPolicy(self.watcher, self.sleep)
        with partial.open("ab+") as out:
            writer = _Writer(out, file.size, told.download)
            writer.read_back(told.verify)
            told.download(writer.done, file.size)
            while writer.done < file.size:
                before = writer.done
                try:
                    self._receive(writer, file)
                except HubError as error:
                    if writer.done > before:
                        patience.renew()
                    patience.wait(error)
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
        with opened(self.listing, file.name, writer.done) as body:
            if body.start != writer.done:
                writer.begin_again()
            for chunk in body.chunks:
                writer.write(chunk)
        if writer.done < file.size:
            raise HubError(f"the connection ended at byte {writer.done:,}", "check the network", retries=5)


class _Told(NamedTuple):
    """Whom to tell of one file of several: `before` bytes of `total` were those of the files before it."""

    watcher: Progress
    before: int
    total: int

    def download(self, done: int, _: int) -> None:
        """Tell how much has come, of all files."""
        self.watcher.update("download", self.before + done, self.total)

    def verify(self, done: int, total: int) -> None:
        """Tell how much of what is here has been hashed."""
        self.watcher.update("verify", done, total)


@dataclass(slots=True)
class _Writer:
    """A partial file, the digest of what is in it, and how much that is."""

    out: BinaryIO
    size: int
    told: Callable[[int, int], None]
    digest: _Hash = field(default_factory=hashlib.sha256)
    done: int = 0
    next_told: int = 0

    def read_back(self, told: Callable[[int, int], None]) -> None:
        """Hash what an earlier process has left."""
        left = self.out.seek(0, os.SEEK_END)
        if left > self.size:
            self.begin_again()
        self.out.seek(0)
        while self.done < left <= self.size and (chunk := self.out.read(1 << 20)):
            self.digest.update(chunk)
            self.done += len(chunk)
            told(self.done, left)

    def begin_again(self) -> None:
        """Throw away what is there."""
        self.out.truncate(0)
        self.digest, self.done = hashlib.sha256(), 0

    def write(self, chunk: bytes) -> None:
        """Add bytes; never more than the file is to have."""
        if self.done + len(chunk) > self.size:
            self.begin_again()
            raise PullError(f"the server sends more than the {self.size:,} bytes listed", "pull again later")
        self.out.write(chunk)
        self.digest.update(chunk)
        self.done += len(chunk)
        if self.done >= self.next_told or self.done == self.size:
            self.told(self.done, self.size)
            self.next_told = self.done + _TOLD_BYTES
