"""How a failing server is retried, and what becomes of its requests: time limits, circuit breaker, notices.

- No connection, a reset, 5xx, 404, a damaged reply, silence: the server is lost. It is asked what it is after 1, 2, 4
  up to 60 s, then given one request, whose reply makes it usable again. Its requests are asked again, of any server.
  One that was lost with `MAX_LOSSES` servers, or of which a part was shown, ends with an error.
- It serves another model, or refuses every request (401, 403, 422): the same, without blame for requests. If no other
  server fits, everything ends.
- 408, 429, 503: it rests for `Retry-After`, or a second, and is then given half as many samples at a time.
- A reply takes too long, though others arrive: it is asked for again, and may then take twice as long.
- 400, 413, or a message about the prompt: an error of the request.
- No server can be used for `patience`: everything ends.

`client.py` translates responses into LostServerError, BusyServerError and RequestError; `Pool._end` acts on them.
Values and decisions; the clock is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import PATIENCE_S
from cerebrum_cli.engine.remote.client import BusyServerError, ExchangeError

MAX_LOSSES = 3  # servers lost with one request, after which it is refused
SLOW = 10  # times the slowest reply so far
NOT_ASKED = BusyServerError("no answer yet")


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

    def retry_delay(self, failures: int) -> float:
        """Delay before a lost server is tried again; several are within the patience, unless that is short."""
        delay = self.retries[min(failures, len(self.retries) - 1)]
        return min(delay, max(self.patience / 10, 1.0))

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


@dataclass(slots=True)
class ServerHealth:
    """The circuit breaker of a server, and the number of samples that it is given at a time: its `window`.

    If closed, it is given as many as it takes; if half-open, one request; if open, none: it is asked what it is from
    `retry_at`.
    """

    problem: ExchangeError | EndpointError | None = NOT_ASKED  # why it is not usable, as far as is known
    is_reached: bool = False  # since it was lost, it has answered what it is, and fits
    failures: int = 0  # in a row, that of being asked what it is included
    has_answered: bool = False  # a request, since it was last reached
    retry_at: float = 0.0
    busy_since: float = 0.0
    busy_until: float = 0.0
    window: int = 0
    limit: int = 0  # of the window, after no refusal

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if not self.is_reached:
            return "open"
        return "half-open" if self.failures else "closed"

    def takes_requests(self, now: float) -> bool:
        return self.is_reached and now >= self.busy_until

    def reach(self, window: int) -> None:
        """Note that it has answered what it is, and fits."""
        self.is_reached = True
        self.has_answered = False
        self.window = self.limit = window

    def recover(self, now: float) -> bool:
        """Whether it is usable from now on, and was not before."""
        if self.problem is None or self.state != "closed" or not self.takes_requests(now):
            return False
        self.problem = None
        return True

    def is_evidence(self, was_sent: bool, is_only: bool, timeouts: ServerTimeouts) -> bool:
        """Whether the loss of a request counts against the request.

        A server that has answered nothing since it was reached proves nothing, unless this is the only request, and the
        server has failed for long.
        """
        has_failed_for_long = self.failures >= len(timeouts.retries)
        return was_sent and (self.has_answered or (is_only and has_failed_for_long))

    def finish(self, now: float) -> None:
        """Note a reply; one to an older request does not close it early."""
        self.busy_since = now
        self.window = min(self.limit, self.window + 1)
        if self.is_reached:
            self.failures = 0
            self.has_answered = True

    def fail(self, problem: ExchangeError | EndpointError, now: float, timeouts: ServerTimeouts) -> None:
        """Open: a request was lost, or it did not answer what it is, or does not fit, or is loading its model."""
        self.problem = problem
        self.is_reached = False
        if isinstance(problem, BusyServerError):
            self.retry_at = now + min(problem.retry_after or timeouts.busy, timeouts.retries[-1])
        else:
            self.retry_at = now + timeouts.retry_delay(self.failures)
            self.failures += 1

    def rest(self, busy: BusyServerError, now: float, seconds: float) -> float:
        """Take no requests for a while, then fewer at a time; return how long it will have been busy then."""
        if now >= self.busy_until:  # else it has refused several at the same time
            self.window = max(1, self.window // 2)
        if not isinstance(self.problem, BusyServerError):
            self.busy_since = now
        self.problem = busy
        self.busy_until = max(self.busy_until, now + seconds)
        return self.busy_until - self.busy_since


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
        due = []
        for subject, notice in list(self._waiting.items()):
            last, at = self._last.get(subject, (None, -inf))
            if now - at >= self.interval:
                del self._waiting[subject]
                if notice != last:
                    self._last[subject] = notice, now
                    due.append(notice)
        return due
