"""What a pool deals with: the jobs, and the servers that answer them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, RefusedEvent
from cerebrum_cli.engine.remote.failures import LostServerError
from cerebrum_cli.engine.remote.kind import ReplyChunk
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.sequence import Failure

MAX_LOSSES = 3  # servers lost with one request, after which it is refused


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """Times in seconds.

    They are: silence before a server's health is checked, the limit of that check, the delays before a lost server is
    tried again, and before a busy one is, how long a server is busy before users are notified, how long no server may
    answer, and how long a start waits for the other servers once one is ready.
    """

    silence: float = 30.0
    health: float = 25.0  # SGLang's check may take 20 s while it evaluates a long prompt
    retries: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 15.0)
    busy: float = 1.0  # unless the server states how long to wait
    busy_notice: float = 5.0
    give_up: float = 60.0
    join: float = 1.0


@dataclass(eq=False, slots=True)
class PromptServer:
    """The server that has evaluated a request's prompt; None before one is chosen."""

    server: Server | None = None


@dataclass(eq=False, slots=True)
class PoolJob:
    """Samples of one request that one server generates together, or less where that takes fewer in one request.

    All jobs of a request share its `place`.
    `load` is how much of its server's window it takes while it runs.
    """

    samples: tuple[RemoteSample, ...]
    emit: Callable[[Event | Failure], None]
    place: PromptServer
    losses: int = 0
    has_output: bool = False
    load: int = 0
    has_begun: bool = False
    is_cancelled: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether the next server lost with it is the last: it gets one of its own, to be the only possible cause."""
        return self.losses == MAX_LOSSES - 1

    @property
    def bound_to(self) -> Server | None:
        """The server that has evaluated the prompt, unless it is lost."""
        server = self.place.server
        return server if server and server.problem is None else None

    @property
    def unfinished(self) -> list[RemoteSample]:
        return [sample for sample in self.samples if not sample.is_finished]

    def take(self, count: int) -> PoolJob:
        """A job of the first samples, up to `count`; the others stay in this one."""
        taken, self.samples = self.samples[:count], self.samples[count:]
        return PoolJob(taken, self.emit, self.place, self.losses)

    def finish(self, replies: Sequence[ReplyChunk]) -> int:
        """Emit the whole replies of all samples; return the number of their tokens. Raises LostServerError."""
        self.report(read_replies(self.samples, replies))
        return sum(sample.tokens for sample in self.samples)

    def report(self, events: Iterable[Event]) -> None:
        """Emit events of the samples, and remember which have finished."""
        for event in events:
            self.emit(event)
            if isinstance(event, FinishEvent):
                for sample in self.samples:
                    sample.is_finished = sample.is_finished or sample.id == event.sequence


def read_replies(samples: Sequence[RemoteSample], replies: Sequence[ReplyChunk]) -> list[Event]:
    """The events of whole replies, or of whole turns of them. Raises LostServerError if any is missing."""
    if len(replies) != len(samples) or not all(reply.end for reply in replies):
        raise LostServerError(f"{len(replies)} replies instead of {len(samples)}")
    return [event for sample, reply in zip(samples, replies, strict=True) for event in sample.add(reply)]


class Server(ABC):
    """What answers requests, and how much it is doing.

    `window` is the number of samples it is given at a time, up to `limit`, which `open` sets. `problem` is why it is
    lost, None if it is not; `is_busy` while it takes no more requests, as before it was opened. Results call it by its
    `alias`, which is no address.
    """

    noun: ClassVar[str] = "server"
    remedy: ClassVar[str] = "start one or correct the URL"  # where none answers

    def __init__(self, name: str, alias: str) -> None:
        self.name = name
        self.alias = alias
        self.limit = self.window = 0
        self.outstanding = 0
        self.problem: str | None = None
        self.is_busy = True
        self.busy_reason = "no answer yet"
        self.busy_since: float | None = None  # on the event loop's clock; None after an answer
        self.busy_until = 0.0
        self.is_reported_busy = False
        self.generated = 0  # tokens

    @property
    @abstractmethod
    def variant(self) -> str:
        """What its answers depend on besides the request, in words."""

    @property
    @abstractmethod
    def remarks(self) -> Sequence[NoticeEvent]:
        """What users should know of it."""

    @property
    @abstractmethod
    def larger_context(self) -> str:
        """The advice to a user whose context is full."""

    @property
    @abstractmethod
    def context_size(self) -> int:
        """Maximum length of a sequence, in tokens."""

    @property
    @abstractmethod
    def max_samples(self) -> int:
        """Number of samples it takes in one request."""

    @property
    @abstractmethod
    def recorded(self) -> dict[str, str]:
        """What is recorded with replies: not the address."""

    @abstractmethod
    async def answer(self, job: PoolJob) -> None:
        """Generate the samples of a job and emit their events. Raises one of the errors in `failures`."""

    @abstractmethod
    async def open(self) -> None:
        """Find out whether it can be used, for the first time or after it was lost. Raises one of the errors in
        `failures`, or a CerebrumError if it is something else than expected, which ends everything.
        """

    @abstractmethod
    async def close(self) -> None:
        """Free what it holds."""

    @property
    def is_known(self) -> bool:
        """Whether it was ever opened, and so has a context and a record."""
        return self.limit > 0

    @property
    def is_usable(self) -> bool:
        return self.problem is None and not self.is_busy

    def resize(self, limit: int) -> None:
        """Give it so many samples at a time from now on."""
        self.limit = self.window = limit

    def has_room(self, job: PoolJob) -> bool:
        """Whether it can be given a job now."""
        if not self.is_usable:
            return False
        samples = min(len(job.samples), self.max_samples)
        fits = self.outstanding + samples <= self.window and not job.is_suspect
        return fits or self.outstanding == 0


def choose_server(servers: Iterable[Server], job: PoolJob) -> Server | None:
    """The server that can take a job and has the smallest share of its window in use; None without one."""
    fitting = [each for each in servers if job.bound_to in (None, each) and each.has_room(job)]
    return min(fitting, key=lambda each: each.outstanding / each.window, default=None)


def finish_cancelled(job: PoolJob) -> None:
    """End the samples of a job that was stopped from here."""
    for sample in job.unfinished:
        job.report([sample.cancelled()])


def refuse(job: PoolJob, error: CerebrumError) -> None:
    """End the samples of a job that no server will answer."""
    for sample in job.unfinished:
        sample.is_finished = True
        job.emit(RefusedEvent(sample.id, error))
