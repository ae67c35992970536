"""Download files from the Hub into the Hugging Face cache: downloads are atomic, verified and resumable.

huggingface_hub cannot resume a download in a new process. Here the partial file is named after its digest, resumed with
a Range request, hashed while it is written, and moved into place if the digest matches.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import (
    exists,
    lock_file,
    require_space,
    translate_os_errors,
)
from cerebrum_cli.core.transfers import Progress
from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.hub import (
    HubFile,
    Listing,
    open_file,
)
from cerebrum_cli.library.hub_requests import HubError
from cerebrum_cli.library.registry import RegistryEntry, hash_file
from cerebrum_cli.library.retries import RetryPolicy

ELSEWHERE = "set HF_HUB_CACHE to a directory on another disk"  # hint for a full disk, or one without locks
RANGE_BYTES = 4_000_000_000  # of one request: the Hub's CDN serves none over 50 GB
_REPORT_S = 0.5  # between two looks at the download of another process
_PROGRESS_BYTES = 1 << 20  # chunks are 64 KiB: reporting each would cost more than writing it


OnDownload = Callable[[int], None]  # receives the bytes of a file that are done


def git_hash(size: int, data: bytes = b"") -> hashlib._Hash:
    """Hash by which git names a file, and the Hub a small one: SHA-1 over a header and the bytes."""
    return hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False)


@dataclass(slots=True)
class Download:
    listing: Listing
    cache: Cache
    progress: Progress
    digest_of: Callable[[Path], RegistryEntry] = hash_file

    def require_space(self, files: tuple[HubFile, ...]) -> None:
        if missing := self.missing_bytes(files):
            require_space(self.cache.directory, missing, PullError, ELSEWHERE)

    def missing_bytes(self, files: tuple[HubFile, ...]) -> int:
        return sum(file.size - self._present_bytes(file) for file in files)

    def fetch(self, files: tuple[HubFile, ...]) -> None:
        complete = 0  # bytes of the files that are done
        total = sum(file.size for file in files)

        def report(done: int) -> None:
            self.progress.update("download", complete + done, total)

        self.require_space(files)
        with translate_os_errors(PullError, Path(files[0].name), ", then try again to resume", ELSEWHERE):
            for file in files:
                self._fetch(file, report)
                complete += file.size
            self.cache.write_ref(self.listing.repo_id, self.listing.revision, self.listing.commit)

    def _fetch(self, file: HubFile, on_download: OnDownload) -> None:
        place = self.listing.place(self.cache, file)
        blob = place.stored
        if exists(place.pointer) and place.pointer.samefile(blob) and self._is_valid(blob, file):
            return
        place.make_directories()
        with lock_file(place.lock, lambda: on_download(self._present_bytes(file)), interval_s=_REPORT_S):
            if exists(blob) and not self._is_valid(blob, file):
                self.progress.notice(NoticeEvent(f"{file.name} in the cache is damaged", "downloading it again"))
                blob.unlink()
            if not exists(blob):
                self._complete(place.partial, file, on_download)
                place.partial.replace(place.blob)
            place.link()

    def _present_bytes(self, file: HubFile) -> int:
        place = self.listing.place(self.cache, file)
        for path in (place.stored, place.partial):
            with suppress(OSError):
                return min(file.size, path.stat().st_size)
        return 0

    def _is_valid(self, blob: Path, file: HubFile) -> bool:
        if blob.stat().st_size != file.size:
            return False
        if _is_git_hash(file.digest):
            return git_hash(file.size, blob.read_bytes()).hexdigest() == file.digest
        return self.digest_of(blob).sha256 == file.digest

    def _complete(self, partial_file: Path, file: HubFile, on_download: OnDownload) -> None:
        retry_policy = RetryPolicy(self.progress)
        with partial_file.open("ab+") as out:
            written = self._hash_existing(out, file)
            on_download(written.done)
            while written.done < file.size:
                before = written.done
                try:
                    self._receive(out, written, file, on_download)
                except HubError as error:
                    if written.done > before:
                        retry_policy.failures = 0
                    retry_policy.wait(error)
            out.flush()
            os.fsync(out.fileno())
        digest = written.digest.hexdigest()
        if digest != file.digest:
            partial_file.unlink()
            raise PullError(
                f"{file.name} was not downloaded correctly: its digest is {digest}, not {file.digest}",
                "the download was deleted; try again, or report it to the repository's owner",
            )

    def _hash_existing(self, out: BinaryIO, file: HubFile) -> _Written:
        existing = out.seek(0, os.SEEK_END)
        written = _Written(_new_hash(file))
        if existing > file.size:
            out.truncate(0)
        out.seek(0)
        while chunk := out.read(1 << 20):
            written.digest.update(chunk)
            written.done += len(chunk)
            self.progress.update("verify", written.done, existing)
        return written

    def _receive(self, out: BinaryIO, written: _Written, file: HubFile, on_download: OnDownload) -> None:
        """Write the bytes of one request, which is for a range in a large file."""
        end = min(written.done + RANGE_BYTES, file.size)
        last = None if file.size <= RANGE_BYTES else end
        next_report = 0
        with open_file(self.listing, file.name, written.done, last) as (start, chunks):
            if start != written.done:  # the server ignores ranges
                out.truncate(0)
                written.digest = _new_hash(file)
                written.done = 0
                end = file.size
            for chunk in chunks:
                if written.done + len(chunk) > file.size:
                    out.truncate(0)
                    raise PullError(f"the server sent more than the listed {file.size:,} bytes", "try again later")
                out.write(chunk)
                written.digest.update(chunk)
                written.done += len(chunk)
                if written.done >= next_report or written.done == file.size:
                    on_download(written.done)
                    next_report = written.done + _PROGRESS_BYTES
        if written.done < end:
            raise HubError(f"the connection ended at byte {written.done:,}", "check the network", retries=5)


@dataclass(slots=True)
class _Written:
    digest: hashlib._Hash
    done: int = 0  # bytes


def _is_git_hash(digest: str) -> bool:
    return len(digest) == 40


def _new_hash(file: HubFile) -> hashlib._Hash:
    if _is_git_hash(file.digest):
        return git_hash(file.size)
    return hashlib.sha256()
