"""Download files from the Hub into the Hugging Face cache; downloads are atomic, verified and resumable.

huggingface_hub cannot resume a download in a new process. Here the partial file is named after its digest, resumed with
a Range request, hashed while it is written, and moved into place if the digest matches.
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
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import existing_parent, exists, translate_os_errors
from cerebrum_cli.core.locks import wait_for_lock
from cerebrum_cli.core.text import format_size
from cerebrum_cli.models.cache import Cache
from cerebrum_cli.models.hub import HubFile, Listing, open_file
from cerebrum_cli.models.hub_errors import HubError, Progress, RetryPolicy
from cerebrum_cli.models.registry import Digest, hash_file

if TYPE_CHECKING:
    from hashlib import _Hash

DISK_MARGIN = 64_000_000  # bytes of free disk space to leave
RANGE_BYTES = 4_000_000_000  # of one request
_REPORT_S = 0.5  # between two looks at the download of another process
_PROGRESS_BYTES = 1 << 20  # chunks are 64 KiB: reporting each would cost more than writing it


def free_space(directory: Path) -> float:
    """Free bytes on the disk of a directory; infinity if the file system reports no size."""
    usage = shutil.disk_usage(directory)
    return usage.free if usage.total else math.inf


def git_hash(data: bytes) -> str:
    """Hash by which git names a file, and the Hub a small one: SHA-1 over a header and the bytes."""
    return hashlib.sha1(_git_header(len(data)) + data, usedforsecurity=False).hexdigest()


def _new_hash(file: HubFile) -> _Hash:
    """Hash of no bytes yet, of the kind that the Hub lists for a file."""
    return hashlib.sha256() if file.sha256 else hashlib.sha1(_git_header(file.size), usedforsecurity=False)


def _git_header(size: int) -> bytes:
    return b"blob %d\0" % size


@dataclass(slots=True)
class Download:
    """Downloads files of a listing; an interrupted download is resumed."""

    listing: Listing
    cache: Cache
    progress: Progress
    digest_of: Callable[[Path, Callable[[int, int], None]], Digest] = hash_file
    free_bytes: Callable[[Path], float] = free_space
    sleep: Callable[[float], None] = time.sleep

    def missing_bytes(self, files: tuple[HubFile, ...]) -> int:
        """Bytes of these files that are not downloaded yet."""
        return sum(file.size - self._present_bytes(file) for file in files)

    def require_space(self, files: tuple[HubFile, ...]) -> None:
        """Raise PullError if the disk has no room for the missing bytes."""
        missing = self.missing_bytes(files)
        directory = existing_parent(self.cache.directory)
        free = self.free_bytes(directory)
        need = missing + DISK_MARGIN
        if missing and free < need:
            available, lacking = format_size(int(free)), format_size(int(need - free))
            raise PullError(
                f"{directory}: not enough disk space: {available} free, {format_size(need)} needed",
                f"free {lacking}, or set HF_HUB_CACHE to a directory on another disk",
            )

    def fetch(self, files: tuple[HubFile, ...]) -> tuple[Path, ...]:
        """Download and verify the files that are not in the cache, and return the paths of all."""
        total, before, paths = sum(file.size for file in files), 0, []
        elsewhere = "set HF_HUB_CACHE to a directory on another disk"
        with translate_os_errors(PullError, Path(files[0].name), ", then try again to resume", elsewhere):
            for file in files:
                paths.append(self._fetch(file, _FileProgress(self.progress, before, total)))
                before += file.size
            self._write_ref()
        return tuple(paths)

    def _fetch(self, file: HubFile, progress: _FileProgress) -> Path:
        cache, repo_id, commit = self.cache, self.listing.repo_id, self.listing.commit
        pointer, stored = cache.pointer(repo_id, commit, file.name), self._stored_path(file)
        if exists(pointer) and pointer.samefile(stored) and self._is_valid(stored, file, progress):
            return pointer
        cache.make_directories(repo_id, commit, file.name, file.digest)
        report = self._report_other_process(file, progress)
        with wait_for_lock(cache.lock(repo_id, file.digest), lambda: next(report), interval_s=_REPORT_S):
            if not self._has_valid_blob(file, progress):
                partial = cache.partial(repo_id, file.digest)
                self._complete(partial, file, progress)
                partial.replace(cache.blob(repo_id, file.digest))
            return cache.link(repo_id, commit, file.name, file.digest)

    def _write_ref(self) -> None:
        try:
            self.cache.write_ref(self.listing.repo_id, self.listing.revision, self.listing.commit)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):  # a read-only cache is left as it is
                raise

    def _stored_path(self, file: HubFile) -> Path:
        return self.cache.stored_path(self.listing.repo_id, self.listing.commit, file.name, file.digest)

    def _present_bytes(self, file: HubFile) -> int:
        """Bytes of a file that are on disk."""
        for path in (self._stored_path(file), self.cache.partial(self.listing.repo_id, file.digest)):
            with contextlib.suppress(OSError):
                return min(file.size, path.stat().st_size)
        return 0

    def _report_other_process(self, file: HubFile, progress: _FileProgress) -> Iterator[None]:
        """Report the progress of the process that holds the lock, at every step."""
        self.progress.notice(NoticeEvent(f"another process is downloading {file.name}", "waiting for it"))
        while True:
            yield
            progress.download(self._present_bytes(file), file.size)

    def _is_valid(self, blob: Path, file: HubFile, progress: _FileProgress) -> bool:
        return blob.stat().st_size == file.size and self._digest(blob, file, progress) == file.digest

    def _digest(self, path: Path, file: HubFile, progress: _FileProgress) -> str:
        """Digest of a file's bytes on disk, of the kind that the Hub lists for it."""
        return self.digest_of(path, progress.verify).sha256 if file.sha256 else git_hash(path.read_bytes())

    def _has_valid_blob(self, file: HubFile, progress: _FileProgress) -> bool:
        """Whether a file is stored with the right digest; a damaged one is deleted."""
        blob = self._stored_path(file)
        if not blob.exists():
            return False
        if self._is_valid(blob, file, progress):
            return True
        self.progress.notice(NoticeEvent(f"{file.name} in the cache is damaged", "downloading it again"))
        blob.unlink()
        return False

    def _complete(self, partial: Path, file: HubFile, progress: _FileProgress) -> None:
        """Download the rest of a partial file and verify it; delete it if its digest is wrong."""
        retry_policy = RetryPolicy(self.progress, self.sleep)
        with partial.open("ab+") as out:
            writer = _Writer(out, file, progress.download)
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
            name = "SHA-256" if file.sha256 else "git hash"
            raise PullError(
                f"{file.name} was not downloaded correctly: its {name} is {digest}, not {file.digest}",
                "the download was deleted; try again, or report it to the repository's owner",
            )

    def _receive(self, writer: _Writer, file: HubFile) -> None:
        """Write the bytes of one request, a range of limited length: the Hub's CDN serves none over 50 GB."""
        end = min(writer.done + RANGE_BYTES, file.size)
        with open_file(self.listing, file.name, writer.done, None if file.size <= RANGE_BYTES else end) as body:
            if body.start != writer.done:
                writer.restart()
                end = file.size  # the server ignores ranges
            for chunk in body.chunks:
                writer.write(chunk)
        if writer.done < end:
            raise HubError(f"the connection ended at byte {writer.done:,}", "check the network", retries=5)


class _FileProgress(NamedTuple):
    """Progress of one file of several; the files before it have `offset` bytes of `total`."""

    progress: Progress
    offset: int
    total: int

    def download(self, done: int, _: int) -> None:
        """Report the bytes downloaded, of all files."""
        self.progress.update("download", self.offset + done, self.total)

    def verify(self, done: int, total: int) -> None:
        """Report the bytes hashed."""
        self.progress.update("verify", done, total)


@dataclass(slots=True)
class _Writer:
    """A partial file with the number and the digest of its bytes."""

    out: BinaryIO
    file: HubFile
    on_progress: Callable[[int, int], None]
    digest: _Hash = field(init=False)
    done: int = 0
    next_report: int = 0

    def __post_init__(self) -> None:
        self.digest = _new_hash(self.file)

    @property
    def size(self) -> int:
        return self.file.size

    def hash_existing(self, on_progress: Callable[[int, int], None]) -> None:
        """Hash the bytes of an earlier process."""
        existing = self.out.seek(0, os.SEEK_END)
        if existing > self.size:
            self.restart()
        self.out.seek(0)
        while self.done < existing <= self.size and (chunk := self.out.read(1 << 20)):
            self.digest.update(chunk)
            self.done += len(chunk)
            on_progress(self.done, existing)

    def restart(self) -> None:
        self.out.truncate(0)
        self.digest, self.done = _new_hash(self.file), 0

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises PullError beyond the file's size."""
        if self.done + len(chunk) > self.size:
            self.restart()
            raise PullError(f"the server sent more than the listed {self.size:,} bytes", "try again later")
        self.out.write(chunk)
        self.digest.update(chunk)
        self.done += len(chunk)
        if self.done >= self.next_report or self.done == self.size:
            self.on_progress(self.done, self.size)
            self.next_report = self.done + _PROGRESS_BYTES
