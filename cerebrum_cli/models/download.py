"""Download files from the Hub into the Hugging Face cache; downloads are atomic, verified and resumable.

huggingface_hub cannot resume a download in a new process. Here the partial file is named after its digest, resumed with
a Range request, hashed while it is written, and moved into place if the digest matches.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import existing_parent, exists, require_space, translate_os_errors, wait_for_lock
from cerebrum_cli.models.cache import Cache
from cerebrum_cli.models.hub import HubFile, Listing, open_file
from cerebrum_cli.models.hub_retries import HubError, Progress, RetryPolicy
from cerebrum_cli.models.registry import Digest, hash_file

DISK_MARGIN = 64_000_000  # bytes of free disk space to leave
ELSEWHERE = "set HF_HUB_CACHE to a directory on another disk"  # hint for a full disk, or one without locks
RANGE_BYTES = 4_000_000_000  # of one request
_REPORT_S = 0.5  # between two looks at the download of another process
_PROGRESS_BYTES = 1 << 20  # chunks are 64 KiB: reporting each would cost more than writing it


OnDownload = Callable[[int], None]  # receives the bytes of a file that are done


def git_hash(data: bytes) -> str:
    """Hash by which git names a file, and the Hub a small one: SHA-1 over a header and the bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class Download:
    listing: Listing
    cache: Cache
    progress: Progress
    digest_of: Callable[[Path, Callable[[int, int], None]], Digest] = hash_file

    def require_space(self, files: tuple[HubFile, ...]) -> None:
        """Raise PullError if the disk has no room for the missing bytes."""
        if missing := sum(file.size - self._present_bytes(file) for file in files):
            require_space(existing_parent(self.cache.directory), missing + DISK_MARGIN, PullError, ELSEWHERE)

    def fetch(self, files: tuple[HubFile, ...]) -> tuple[Path, ...]:
        """Download and verify the files that are not in the cache, and return the paths of all."""
        paths: list[Path] = []
        total = sum(file.size for file in files)

        def report(done: int) -> None:
            before = sum(file.size for file in files[: len(paths)])
            self.progress.update("download", before + done, total)

        with translate_os_errors(PullError, Path(files[0].name), ", then try again to resume", ELSEWHERE):
            for file in files:
                paths.append(self._fetch(file, report))
            self.cache.write_ref(self.listing.repo_id, self.listing.revision, self.listing.commit)
        return tuple(paths)

    def _fetch(self, file: HubFile, on_download: OnDownload) -> Path:
        cache, repo_id, commit = self.cache, self.listing.repo_id, self.listing.commit
        pointer, blob = cache.pointer(repo_id, commit, file.name), cache.blob(repo_id, file.digest)
        if exists(pointer) and pointer.samefile(blob) and self._is_valid(blob, file):
            return pointer
        cache.make_directories(repo_id, commit, file.name, file.digest)
        report = self._report_other_process(file, on_download)
        with wait_for_lock(cache.lock(repo_id, file.digest), lambda: next(report), interval_s=_REPORT_S):
            if exists(blob) and not self._is_valid(blob, file):
                self.progress.notice(NoticeEvent(f"{file.name} in the cache is damaged", "downloading it again"))
                blob.unlink()
            if not exists(blob):
                partial_file = cache.partial(repo_id, file.digest)
                self._complete(partial_file, file, on_download)
                partial_file.replace(blob)
            return cache.link(repo_id, commit, file.name, file.digest)

    def _present_bytes(self, file: HubFile) -> int:
        for path_of in (self.cache.blob, self.cache.partial):
            with contextlib.suppress(OSError):
                return min(file.size, path_of(self.listing.repo_id, file.digest).stat().st_size)
        return 0

    def _report_other_process(self, file: HubFile, on_download: OnDownload) -> Iterator[None]:
        self.progress.notice(NoticeEvent(f"another process is downloading {file.name}", "waiting for it"))
        while True:
            yield
            on_download(self._present_bytes(file))

    def _is_valid(self, blob: Path, file: HubFile) -> bool:
        if blob.stat().st_size != file.size:
            return False
        digest = (
            self.digest_of(blob, partial(self.progress.update, "verify")).sha256
            if file.sha256
            else git_hash(blob.read_bytes())
        )
        return digest == file.digest

    def _complete(self, partial_file: Path, file: HubFile, on_download: OnDownload) -> None:
        """Download the rest of a partial file and verify it; delete it if its digest is wrong."""
        retry_policy = RetryPolicy(self.progress)
        with partial_file.open("ab+") as out:
            writer = _Writer(out, file, on_download, _new_hash(file))
            writer.hash_existing(partial(self.progress.update, "verify"))
            on_download(writer.done)
            while writer.done < file.size:
                before = writer.done
                try:
                    self._receive(writer, file)
                except HubError as error:
                    if writer.done > before:
                        retry_policy.failures = 0
                    retry_policy.wait(error)
            out.flush()
            os.fsync(out.fileno())
        digest = writer.digest.hexdigest()
        if digest != file.digest:
            partial_file.unlink()
            name = "SHA-256" if file.sha256 else "git hash"
            problem = f"{file.name} was not downloaded correctly: its {name} is {digest}, not {file.digest}"
            raise PullError(problem, "the download was deleted; try again, or report it to the repository's owner")

    def _receive(self, writer: _Writer, file: HubFile) -> None:
        """Write the bytes of one request, a range of limited length: the Hub's CDN serves none over 50 GB."""
        end = min(writer.done + RANGE_BYTES, file.size)
        last = None if file.size <= RANGE_BYTES else end
        with open_file(self.listing, file.name, writer.done, last) as (start, chunks):
            if start != writer.done:
                writer.restart()
                end = file.size  # the server ignores ranges
            for chunk in chunks:
                writer.write(chunk)
        if writer.done < end:
            raise HubError(f"the connection ended at byte {writer.done:,}", "check the network", retries=5)


@dataclass(slots=True)
class _Writer:
    out: BinaryIO
    file: HubFile
    on_download: OnDownload
    digest: hashlib._Hash
    done: int = 0
    next_report: int = 0

    def hash_existing(self, on_progress: Callable[[int, int], None]) -> None:
        existing = self.out.seek(0, os.SEEK_END)
        if existing > self.file.size:
            self.restart()
            return
        self.out.seek(0)
        while chunk := self.out.read(1 << 20):
            self.digest.update(chunk)
            self.done += len(chunk)
            on_progress(self.done, existing)

    def restart(self) -> None:
        self.out.truncate(0)
        self.digest, self.done = _new_hash(self.file), 0

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises PullError beyond the file's size."""
        size = self.file.size
        if self.done + len(chunk) > size:
            self.restart()
            raise PullError(f"the server sent more than the listed {size:,} bytes", "try again later")
        self.out.write(chunk)
        self.digest.update(chunk)
        self.done += len(chunk)
        if self.done >= self.next_report or self.done == size:
            self.on_download(self.done)
            self.next_report = self.done + _PROGRESS_BYTES


def _new_hash(file: HubFile) -> hashlib._Hash:
    git_header = b"blob %d\0" % file.size
    return hashlib.sha256() if file.sha256 else hashlib.sha1(git_header, usedforsecurity=False)
