"""Data and rules of the pool: requests that wait, the circuit breaker of a server, and how long is too long.

Values and pure decisions; the clock is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, Origin, RefusedEvent
from cerebrum_cli.core.settings import PATIENCE_S
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.sequence import Failure, Request

MAX_LOSSES = 3  # servers lost with one request, after which it is refused
SLOW = 10  # times the slowest reply so far

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """Times in seconds, and whether servers that do not answer at the start are waited for."""

    patience: float = PATIENCE_S
    row_timeout: float | None = None  # of one request; None: by the slowest replies
    silence: float = 30.0  # of a server before it is asked for its load
    load: float = 25.0  # for that question
    retries: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)  # before a lost server is tried again
    busy: float = 1.0  # before a busy one is, unless it states how long to wait
    busy_notice: float = 5.0  # of a busy server, or without any, before users are notified
    notices: float = 300.0  # from one about a server to the next
    join: float = 1.0  # for the other servers at the start, once one is ready
    waits_at_start: bool = False

    @property
    def tick(self) -> float:
        """Time between two checks of a server."""
        return min(5.0, self.silence / 4, self.row_timeout or inf)

    @property
    def delays(self) -> tuple[float, ...]:
        """Delays before a lost server is tried again, several of them within the patience, unless that is short."""
        return tuple(min(delay, max(self.patience / 10, 1.0)) for delay in self.retries)

    def silence_limit(self, slowest: float, losses: int, is_streamed: bool) -> float:
        """Longest silence of a server; longer for requests that were lost before."""
        if is_streamed:  # to someone who waits; llama-server gives a sign every 15 s
            return 1.5 * self.silence
        return max(self.silence, SLOW * slowest or self.patience) * (1 << losses)

    def row_limit(self, slowest: float, losses: int) -> float:
        """Longest time of one request, given the slowest reply so far; longer than where it was lost before."""
        if self.row_timeout is not None:
            return self.row_timeout
        return max(self.patience, SLOW * slowest) * (1 << losses) if slowest else inf

    def recall_limit(self, slowest: float, recalls: int) -> float:
        """Longest time of one request on a server that has answered none, while another has nothing to do.

        It doubles with each recall, so that a slow request is not moved back and forth forever.
        """
        return max(self.silence / 3, 3 * slowest) * (1 << recalls)


@dataclass(frozen=True, slots=True)
class Breaker:
    """Whether a server is given requests: if closed, as many as it takes; if half-open, one; if open, none.

    An open one is asked what it is from `retry_at`.
    """

    state: State = "open"
    retry_at: float = 0.0
    failures: int = 0  # in a row, that of being asked what it is included
    has_answered: bool = False  # a request, since it was last reached

    def reached(self) -> Breaker:
        """The state after it has answered what it is, and fits."""
        return replace(self, state="half-open" if self.failures else "closed", has_answered=False)

    def finished(self) -> Breaker:
        """The state after a reply; one to an older request does not close it early."""
        return self if self.state == "open" else Breaker("closed", has_answered=True)

    def failed(self, now: float, delays: tuple[float, ...]) -> Breaker:
        """The state after a request was lost, or after it did not answer what it is."""
        retry_at = now + delays[min(self.failures, len(delays) - 1)]
        return Breaker("open", retry_at, self.failures + 1, self.has_answered)


@dataclass(slots=True)
class ServerNotices:
    """Notices about subjects such as servers: of each the latest, one per `interval` seconds, none twice."""

    interval: float
    _waiting: dict[str, NoticeEvent] = field(default_factory=dict)
    _last: dict[str, tuple[NoticeEvent, float]] = field(default_factory=dict)

    def add(self, subject: str, notice: NoticeEvent) -> None:
        self._waiting[subject] = notice

    def recover(self, server: str) -> None:
        """Add the notice that a server is available again, due now, if users know that it was not."""
        self._waiting.pop(server, None)
        available = NoticeEvent(f"{server} is available again", "")
        last, _ = self._last.get(server, (available, 0.0))
        if last != available:
            self._last[server] = last, -inf
            self.add(server, available)

    def take(self, now: float) -> list[NoticeEvent]:
        """The notices that are due."""
        due = []
        for subject, notice in list(self._waiting.items()):
            last, at = self._last.get(subject, (None, -inf))
            if now - at >= self.interval:
                del self._waiting[subject]
                if notice != last:
                    self._last[subject] = notice, now
                    due.append(notice)
        return due


@dataclass(eq=False, slots=True)
class PooledRequest:
    """A request that has unfinished samples, or may get more; all its jobs go to the server that evaluates the prompt.

    `seed` is that of the first sample.
    """

    request: Request
    seed: int
    server: object = None
    samples: int = 0
    unfinished: int = 0
    is_aborted: bool = False

    @property
    def is_over(self) -> bool:
        return not self.unfinished and (self.is_aborted or self.samples >= max(self.request.n, self.request.max_n))


@dataclass(eq=False, slots=True)
class PoolJob:
    """Samples of one request that one server generates together, or fewer where it takes fewer in one request.

    A running one began at `start`, and something last arrived of it at `alive_at`. `stopped_by` is why it was taken
    from its server; it was recalled from those in `left`.
    """

    samples: tuple[RemoteSample, ...]
    emit: Callable[[Event | Failure], None]
    pooled: PooledRequest
    losses: int = 0
    left: tuple[object, ...] = ()
    has_output: bool = False
    start: float = 0.0
    alive_at: float = 0.0
    load: int = 0
    origin: Origin | None = None
    stopped_by: BaseException | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether one more lost server ends it: it then gets a server of its own, to be the only possible cause."""
        return self.losses == MAX_LOSSES - 1

    @property
    def is_streamed(self) -> bool:
        return self.samples[0].request.stream

    @property
    def unfinished(self) -> list[RemoteSample]:
        return [sample for sample in self.samples if not sample.is_finished]

    def take(self, count: int) -> PoolJob:
        """A job of the first samples, up to `count`; the others stay in this one."""
        taken, self.samples = self.samples[:count], self.samples[count:]
        return PoolJob(taken, self.emit, self.pooled, self.losses, self.left)

    def report(self, events: Iterable[Event]) -> None:
        """Emit events of the samples, and remember which of these are finished."""
        for event in events:
            if isinstance(event, FinishEvent | RefusedEvent):
                for sample in self.samples:
                    sample.is_finished = sample.is_finished or sample.id == event.sequence
            self.emit(event)

    def cancel(self) -> None:
        self.report([sample.cancelled() for sample in self.unfinished])

    def refuse(self, error: CerebrumError) -> None:
        """End the samples, which no server will answer."""
        self.report([RefusedEvent(sample.id, error, self.origin) for sample in self.unfinished])
