"""Fetch files over up to eight connections, which they share.

A thread for each request writes a range of a file, and reports when it ends. One thread, the caller's, starts them,
retries, and hashes the pieces of each file in order, so it alone changes a transfer.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import TracebackType
from typing import NamedTuple

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.transfers import Progress
from cerebrum_cli.library.cache import CachePath
from cerebrum_cli.library.hub import FileResponse, HubFile, Listing, open_file
from cerebrum_cli.library.hub_requests import HubError
from cerebrum_cli.library.partial_file import PIECE_BYTES, ByteRange, PartialFile
from cerebrum_cli.library.retries import RetryPolicy

MAX_CONNECTIONS = 8
_WAIT_S = 0.1  # for a report, while nothing is there to hash


def git_hash(size: int, data: bytes = b"") -> hashlib._Hash:
    """Hash by which git names a file, and the Hub a small one: SHA-1 over a header and the bytes."""
    return hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False)


def is_git_hash(digest: str) -> bool:
    return len(digest) == 40


@dataclass(slots=True, eq=False)
class Transfer:
    """A file on its way into the cache, locked; `waiting` are its ranges without a connection.

    It `has_no_ranges` if the server has ignored one. `hashed` counts pieces.
    """

    file: HubFile
    place: CachePath
    lock: FileIO
    partial: PartialFile
    has_no_ranges: bool = False
    is_resumed: bool = False
    waiting: deque[ByteRange] = field(init=False)
    digest: hashlib._Hash = field(init=False)
    hashed: int = field(init=False)

    def __post_init__(self) -> None:
        self._begin(self.partial)
        self.is_resumed = self.partial.done > 0

    def _begin(self, partial_file: PartialFile) -> None:
        self.partial = partial_file
        self.waiting = partial_file.missing()
        self.digest = git_hash(self.file.size) if is_git_hash(self.file.digest) else hashlib.sha256()
        self.hashed = 0

    def restart(self) -> None:
        """Begin again from the first byte, without ranges."""
        self.place.discard_partial()
        self.has_no_ranges = True
        self._begin(PartialFile(self.place, self.file.size))

    @property
    def is_hashed(self) -> bool:
        return self.hashed == len(self.partial.states)

    def hash_piece(self) -> bool:
        """Hash the next piece; if it is lost, request it and others again. False if it has not come yet."""
        if self.is_hashed:
            return False
        was_there = bool(self.partial.states[self.hashed])
        if digest := self.partial.hashed(self.digest, self.hashed):
            self.digest = digest
            self.hashed += 1
        elif was_there:
            self.waiting.extendleft(reversed(self.partial.lost_ranges(self.hashed)))
        return was_there

    def complete(self) -> None:
        """Move the file into the cache. Raises PullError, and deletes it, if its digest is wrong."""
        digest = self.digest.hexdigest()
        if digest != self.file.digest:
            self.place.discard_partial()
            raise PullError(
                f"{self.file.name} was not downloaded correctly: its digest is {digest}, not {self.file.digest}",
                "the download was deleted; try again, or report it to the repository's owner",
            )
        self.partial.complete()
        self.place.link()
        self.lock.close()


class _RangeIgnored(HubError):
    """The server has sent other bytes than requested."""

    def __init__(self) -> None:
        super().__init__("the server sent other bytes than requested", "try again later", retries=5)


class _Opened(NamedTuple):
    response: FileResponse
    closing: ExitStack


class _Report(NamedTuple):
    """The end of a request: what is left of its range, whether it has brought any of it, and the error if it failed."""

    transfer: Transfer
    rest: ByteRange
    has_progressed: bool
    attempt: int
    error: BaseException | None


@dataclass(slots=True)
class Connections:
    """The connections of a download of `total` bytes; after a server has asked for fewer requests, only one.

    A network failure ends all of them: those that began before the last retry count as one failure.
    """

    listing: Listing
    progress: Progress
    total: int
    limit: int = MAX_CONNECTIONS
    active: list[ByteRange] = field(default_factory=list)
    attempt: int = 0
    completed: int = 0  # bytes of complete files
    running: list[Transfer] = field(default_factory=list)
    reports: SimpleQueue[_Report] = field(default_factory=SimpleQueue)
    locks: ExitStack = field(default_factory=ExitStack)
    stopped: Event = field(default_factory=Event)
    retry_policy: RetryPolicy = field(init=False)

    def __post_init__(self) -> None:
        self.retry_policy = RetryPolicy(self.progress)

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop without waiting for threads, which may be in a system call; each may write the rest of its chunk."""
        self.stopped.set()
        self.locks.close()

    @property
    def is_idle(self) -> bool:
        """Whether one more file would be given a connection now."""
        return len(self.active) < self.limit and not any(transfer.waiting for transfer in self.running)

    def begin(self, file: HubFile, place: CachePath, lock: FileIO) -> None:
        """Resume or begin a file."""
        transfer = Transfer(file, place, lock, PartialFile.opened(place, file.size, self.progress))
        self.running.append(transfer)
        self.show()
        if transfer.waiting:
            self._connect(transfer)
        else:
            transfer.partial.begin()

    def _connect(self, transfer: Transfer) -> None:
        """Request the first range alone, since the response shows whether the server has ranges."""
        opened = self._retried(transfer)
        if transfer.partial.is_large and transfer.partial.done and not opened.response.is_exact:
            opened.closing.close()
            self._back_off(_RangeIgnored(), self.attempt)  # before it discards what is recorded
            opened = self._retried(transfer)
        if not opened.response.is_exact:
            transfer.restart()
        if not (opened.response.is_exact or opened.response.is_whole):
            opened.closing.close()
            opened = self._retried(transfer)
            if not opened.response.is_exact:
                raise _RangeIgnored
        self.retry_policy.failures = 0
        transfer.partial.begin()
        self._start(transfer, transfer.waiting.popleft(), lambda: opened)

    def _retried(self, transfer: Transfer) -> _Opened:
        while True:
            try:
                return self._open(transfer, transfer.waiting[0])
            except HubError as error:
                self._back_off(error, self.attempt)

    def _open(self, transfer: Transfer, wanted: ByteRange) -> _Opened:
        end = None if wanted.stop == transfer.file.size else wanted.stop
        closing = ExitStack()
        response = closing.enter_context(open_file(self.listing, transfer.file.name, wanted.position, end))
        return _Opened(response, closing)

    def _start(self, transfer: Transfer, wanted: ByteRange, connect: Callable[[], _Opened]) -> None:
        self.active.append(wanted)
        Thread(target=self._run, args=(transfer, wanted, self.attempt, connect), daemon=True).start()

    def _run(self, transfer: Transfer, wanted: ByteRange, attempt: int, connect: Callable[[], _Opened]) -> None:
        """Write a range in a thread, and report how that ended."""
        begun = wanted.position
        found = None
        try:
            self._receive(transfer.partial, wanted, connect())
        except BaseException as error:
            found = error
        self.reports.put(_Report(transfer, wanted, wanted.position > begun, attempt, found))

    def _receive(self, partial_file: PartialFile, wanted: ByteRange, opened: _Opened) -> None:
        with opened.closing, partial_file.writer() as writer:
            is_whole_file = opened.response.is_whole and (wanted.position, wanted.stop) == (0, partial_file.size)
            if not (opened.response.is_exact or is_whole_file):
                raise _RangeIgnored
            for chunk in opened.response.chunks:
                if self.stopped.is_set():
                    return
                if len(chunk) > wanted.stop - wanted.position:
                    raise _RangeIgnored
                writer.write(wanted, chunk)
        if wanted.position < wanted.stop:
            raise HubError(f"the connection ended at byte {wanted.position:,}", "check the network", retries=5)

    def advance(self, elsewhere: int = 0) -> None:
        """Start requests, hash a piece of each file, and wait for the end of a request if there is none to hash.

        `elsewhere` counts bytes that another process has downloaded of the next file.
        """
        for transfer in self.running:
            while transfer.waiting and len(self.active) < self.limit:
                wanted = transfer.waiting.popleft()
                self._start(transfer, wanted, partial(self._open, transfer, wanted))
        has_hashed = [transfer.hash_piece() for transfer in self.running]
        self.show(elsewhere)
        with suppress(Empty):
            self._handle(self.reports.get(not any(has_hashed), _WAIT_S))
        for transfer in [transfer for transfer in self.running if transfer.is_hashed]:
            transfer.complete()
            self.running.remove(transfer)
            self.completed += transfer.file.size

    def _handle(self, report: _Report) -> None:
        transfer = report.transfer
        rest = report.rest
        error = report.error
        self.active.remove(rest)
        if error is None or (isinstance(error, HubError) and rest.position == rest.stop):  # it has all bytes
            self.retry_policy.failures = 0
            return
        if not isinstance(error, HubError):
            raise error
        transfer.waiting.appendleft(rest)
        if report.has_progressed and not transfer.has_no_ranges:
            self.retry_policy.failures = 0
        if isinstance(error, _RangeIgnored) and not transfer.partial.is_large:
            transfer.restart()
            transfer.partial.begin()
        self._back_off(error, report.attempt)

    def _back_off(self, error: HubError, attempt: int) -> None:
        """Wait before the next attempt, unless the request belongs to an earlier one."""
        if error.is_overload:
            self.limit = 1
        if attempt == self.attempt:
            self.retry_policy.wait(error)
            self.attempt += 1

    def show(self, elsewhere: int = 0) -> None:
        """Report the bytes that are written, or at the end those of a resumed file that are hashed."""
        done = sum(transfer.partial.done for transfer in self.running)
        done += sum(wanted.bytes_of_piece for wanted in self.active)
        for transfer in self.running:
            if transfer.is_resumed and transfer.partial.done == transfer.file.size and not self.active:
                size = transfer.file.size
                self.progress.update("verify", min(transfer.hashed * PIECE_BYTES, size), size)
                return
        self.progress.update("download", self.completed + done + elsewhere, self.total)
