"""Download files from the Hub into the Hugging Face cache: complete and verified, or resumed by the next process.

huggingface_hub 2.4 and hf_xet 1.8 cannot resume a download in a new process: the first deletes its partial file, the
second truncates it, and by default caches no chunks. Here, partial files are named after the digest in the Hub's
listing, and a file is moved into place if it has that digest.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic
from typing import NamedTuple

from cerebrum_cli.core.environment import is_set
from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import NoticeEvent, OnProgress, Progress
from cerebrum_cli.core.files import exists, lock_file, require_space, translate_os_errors
from cerebrum_cli.library.cache import Cache, CachePath
from cerebrum_cli.library.hub import HubFile, Listing, OtherBytes, open_file
from cerebrum_cli.library.hub_requests import CHECK_NETWORK, HubError, RetryPolicy
from cerebrum_cli.library.partial_file import FilePiece, PartialFile, bytes_present
from cerebrum_cli.library.registry import SHA256, RegistryEntry, hash_file

MAX_CONNECTIONS = 8
ELSEWHERE = "set HF_HUB_CACHE to a directory on another disk"  # hint for a full disk
POLL_S = 0.1  # between reports of progress
STOP_S = 0.5  # for threads to end


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
        return sum(file.size - bytes_present(self._place(file), file.size) for file in files)

    def fetch(self, files: tuple[HubFile, ...]) -> None:
        """Download the files that the cache lacks, and wait for those that another process downloads."""
        if is_set("HF_HUB_DISABLE_SYMLINKS"):
            hint = "unset it; on a file system without links, files are moved"
            raise PullError("HF_HUB_DISABLE_SYMLINKS is not supported", hint)
        distinct = tuple({file.digest: file for file in files}.values())
        self._fetch_distinct(distinct)
        if repeated := tuple(file for file in files if file not in distinct):  # equal bytes have one blob and one lock
            self.fetch(repeated)

    def _fetch_distinct(self, files: tuple[HubFile, ...]) -> None:
        self.require_space(files)
        total = sum(file.size for file in files)
        with (
            translate_os_errors(PullError, Path(files[0].name), ", then try again to resume"),
            ExitStack() as locks,
        ):
            missing = list(self._missing(files, total, locks))
            before = total - sum(partial_file.file.size for partial_file in missing)
            for partial_file in missing:
                on_progress = stage(self.progress, "download", before, total)
                self._receive(partial_file, on_progress)
                before += partial_file.file.size
            self._complete(missing)
            self.cache.write_ref(self.listing.repo_id, self.listing.revision, self.listing.commit)

    def _place(self, file: HubFile) -> CachePath:
        return self.listing.place(self.cache, file)

    def _missing(self, files: tuple[HubFile, ...], total: int, locks: ExitStack) -> Iterator[PartialFile]:
        """Lock and yield the files that are not in the cache; link those that it has of another commit."""

        def show_bytes_present() -> None:
            self.progress.update("download", total - self.missing_bytes(files), total)

        for file in files:
            place = self._place(file)
            blob = place.stored
            if exists(place.pointer) and place.pointer.samefile(blob) and self._is_valid(blob, file):
                continue
            place.make_directories()
            locks.enter_context(lock_file(place.lock, show_bytes_present, interval_s=POLL_S))
            if exists(blob) and not self._is_valid(blob, file):
                self.progress.notice(NoticeEvent(f"{file.name} in the cache is damaged", "downloading it again"))
                blob.unlink()
            if exists(blob):
                place.link()
            else:
                yield PartialFile.opened(file, place)

    def _is_valid(self, blob: Path, file: HubFile) -> bool:
        return blob.stat().st_size == file.size and digest_like(file.digest, blob, self.digest_of) == file.digest

    def _receive(self, partial_file: PartialFile, on_progress: OnProgress) -> None:
        try:
            Transfer(self.listing, partial_file, RetryPolicy(self.progress)).run(on_progress)
        except OtherBytes:
            whole = PartialFile.without_ranges(partial_file.file, partial_file.place)
            Transfer(self.listing, whole, RetryPolicy(self.progress)).run(on_progress)

    def _complete(self, partial_files: list[PartialFile]) -> None:
        """Move files into the cache. Raises PullError, and deletes a file, if its digest is wrong."""
        total = sum(partial_file.file.size for partial_file in partial_files)
        before = 0
        for partial_file in partial_files:
            file = partial_file.file
            verify = partial(hash_file, on_progress=stage(self.progress, "verify", before, total))
            digest = digest_like(file.digest, partial_file.place.partial, verify)
            if digest != file.digest:
                partial_file.place.discard_partial()
                raise PullError(
                    f"{file.name} was not downloaded correctly: its digest is {digest}, not {file.digest}",
                    "the download was deleted; try again, or report it to the repository's owner",
                )
            partial_file.complete()
            before += file.size


class PieceResult(NamedTuple):
    """The end of a request, and its error if bytes are missing; `attempt` counts the retries before it."""

    piece: FilePiece
    attempt: int
    error: BaseException | None


@dataclass(slots=True)
class Transfer:
    """Requests for the missing pieces of a file. Each runs in a thread; the caller's starts them, and retries."""

    listing: Listing
    partial_file: PartialFile
    retry_policy: RetryPolicy
    results: SimpleQueue[PieceResult] = field(default_factory=SimpleQueue)
    stopped: Event = field(default_factory=Event)
    attempt: int = 0
    most_done: int = 0  # bytes at a failure
    retry_at: float = 0.0

    def run(self, on_progress: OnProgress) -> None:
        """Write all missing pieces. Raises HubError, and OSError for the disk."""
        size = self.partial_file.file.size
        waiting = deque(piece for piece in self.partial_file.pieces if piece.missing)
        running = 0
        try:
            while waiting or running:
                while waiting and running < MAX_CONNECTIONS and monotonic() >= self.retry_at:
                    Thread(target=self._request, args=(waiting.popleft(), self.attempt), daemon=True).start()
                    running += 1
                on_progress(self.partial_file.done, size)
                with suppress(Empty):
                    result = self.results.get(timeout=POLL_S)
                    running -= 1
                    if result.error:
                        waiting.appendleft(result.piece)
                        self._back_off(result.error, result.attempt)
        finally:
            self.stopped.set()
            with suppress(Empty):  # not for long, for a thread may be in a system call
                for _ in range(running):
                    self.results.get(timeout=STOP_S)
        on_progress(size, size)

    def _request(self, piece: FilePiece, attempt: int) -> None:
        error = None
        try:
            self._write(piece)
        except BaseException as caught:
            error = caught
        self.results.put(PieceResult(piece, attempt, error if piece.missing else None))

    def _write(self, piece: FilePiece) -> None:
        """Request and write the missing bytes of a piece."""
        partial_file = self.partial_file
        with partial_file.writer(piece) as write:
            end = None if piece.stop == partial_file.file.size else piece.stop
            with open_file(self.listing, partial_file.file.name, piece.position, end) as response:
                if response.is_whole and (piece.position or end is not None):
                    raise OtherBytes
                for chunk in response.chunks:
                    if self.stopped.is_set() or not piece.missing:
                        return
                    write(chunk[: piece.missing])  # a server may send more; the digest of the file is verified
        if piece.missing:
            raise HubError(f"the connection ended at byte {piece.position:,}", CHECK_NETWORK, retries=5)

    def _back_off(self, error: BaseException, attempt: int) -> None:
        """Delay the next requests, unless this one began before the last retry; raise the error after the last."""
        done = self.partial_file.done
        if not isinstance(error, HubError) or (isinstance(error, OtherBytes) and not done):
            raise error
        if done > self.most_done:
            self.most_done = done
            self.retry_policy.failures = 0
        if attempt == self.attempt:
            self.attempt += 1
            self.retry_at = monotonic() + self.retry_policy.delay(error)


def stage(progress: Progress, name: str, before: int, total: int) -> OnProgress:
    """Report the bytes of one of several files, as part of their total."""
    return lambda done, _: progress.update(name, before + done, total)


def digest_like(known: str, path: Path, sha256_of: Callable[[Path], RegistryEntry] = hash_file) -> str:
    """The digest of a file of the same kind as a known one: its SHA-256, or git's hash, by which small files are named.

    That is SHA-1 over a header and the bytes.
    """
    if SHA256.fullmatch(known):
        return sha256_of(path).sha256
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
