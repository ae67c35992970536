"""What a pool deals with: the jobs, and the servers that answer them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, Origin, RefusedEvent
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.sequence import Failure, Request

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
class PooledRequest:
    """A request that has unfinished samples, or may get more; all its jobs go to the server that evaluates the prompt.

    `seed` is that of the first sample.
    """

    request: Request
    seed: int
    server: Server | None = None
    samples: int = 0
    unfinished: int = 0
    is_aborted: bool = False

    @property
    def is_over(self) -> bool:
        return not self.unfinished and (self.is_aborted or self.samples >= max(self.request.n, self.request.max_n))


@dataclass(eq=False, slots=True)
class PoolJob:
    """Samples of one request that one server generates together, or fewer where it takes fewer in one request."""

    samples: tuple[RemoteSample, ...]
    emit: Callable[[Event | Failure], None]
    pooled: PooledRequest
    losses: int = 0
    has_output: bool = False
    is_cancelled: bool = False

    @property
    def is_suspect(self) -> bool:
        """Whether the next server lost with it is the last: it gets one of its own, to be the only possible cause."""
        return self.losses == MAX_LOSSES - 1

    @property
    def bound_to(self) -> Server | None:
        """The server that has evaluated the prompt, unless it is lost."""
        server = self.pooled.server
        return server if server and server.state != "lost" else None

    def take(self, count: int) -> PoolJob:
        """A job of the first samples, up to `count`; the others stay in this one."""
        taken, self.samples = self.samples[:count], self.samples[count:]
        return PoolJob(taken, self.emit, self.pooled, self.losses)

    def report(self, events: Iterable[Event]) -> None:
        """Emit events of the samples; count the tokens of those that finish, and remember which these are."""
        for event in events:
            if isinstance(event, FinishEvent | RefusedEvent):
                if server := self.pooled.server:
                    server.generated += event.completion_tokens if isinstance(event, FinishEvent) else 0
                    event = replace(event, origin=server.origin)
                for sample in self.samples:
                    sample.is_finished = sample.is_finished or sample.id == event.sequence
            self.emit(event)

    def cancel(self) -> None:
        self.report([sample.cancelled() for sample in self.samples if not sample.is_finished])

    def refuse(self, error: CerebrumError) -> None:
        """End the samples, which no server will answer."""
        self.report([RefusedEvent(sample.id, error) for sample in self.samples if not sample.is_finished])


class Server(ABC):
    """What answers requests, and how much it is doing.

    `window` is the number of samples it is given at a time, up to `limit`. `state` is "busy" while it takes no more
    requests, as before it was opened; `reason` is why it is not ready. Results call it by its `alias`, which is no
    address.
    """

    noun: ClassVar[str] = "server"
    remedy: ClassVar[str] = "start one or correct the URL"  # where none answers

    def __init__(self, name: str, alias: str) -> None:
        self.name = name
        self.alias = alias
        self.limit = self.window = 0
        self.outstanding = 0
        self.state: Literal["ready", "busy", "lost"] = "busy"
        self.reason = "no answer yet"
        self.busy_since: float | None = None  # on the event loop's clock; None after an answer
        self.busy_until = 0.0
        self.generated = 0  # tokens
        # What `open` finds out: tokens of a sequence, samples of a request, advice to a user whose context is full,
        # what answers depend on besides the request, what users should know, and what is recorded with replies.
        self.context_size = self.max_samples = 0
        self.larger_context = self.variant = ""
        self.remarks: Sequence[NoticeEvent] = ()
        self.recorded: dict[str, str] = {}
        self.served_model = ""

    @abstractmethod
    async def answer(self, job: PoolJob) -> None:
        """Generate the samples of a job and emit their events.

        Raises LostServerError, BusyServerError or RefusedRequestError; any other error ends everything.
        """

    @abstractmethod
    async def open(self) -> None:
        """Find out whether it can be used, for the first time or after it was lost; raises the same."""

    @abstractmethod
    async def close(self) -> None:
        """Free what it holds."""

    @property
    def origin(self) -> Origin:
        return Origin(self.alias, self.recorded.get("model"))

    @property
    def is_known(self) -> bool:
        """Whether it was ever opened, and so has a context and a record."""
        return self.limit > 0

    def has_room(self, job: PoolJob) -> bool:
        """Whether it can be given a job now."""
        if self.state != "ready" or job.bound_to not in (None, self):
            return False
        fits = self.outstanding + min(len(job.samples), self.max_samples) <= self.window and not job.is_suspect
        return fits or self.outstanding == 0
