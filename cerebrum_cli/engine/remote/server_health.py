"""How a failing server is retried, and what becomes of its rows: states, counters, time limits, notices.

A server is open, half-open or closed:

    open       it is given no rows, and asked what it is, ever less often; an answer that fits leads to closed, or to
               half-open after a failure
    half-open  it is given one row: an answer closes it, a loss opens it again
    closed     it is given as many rows as it takes, until it is lost

A row that was lost may be what kills servers, or one of many that an outage took along. Those lost once are asked again
beside other rows, eight at a time; those lost twice alone, on a server that has just answered another. The last one
sent is the likeliest cause, and goes first. The more are answered, the more go together. A row lost alone, at its third
loss or later, is refused, and the others that were lost count as new.

"If a server fails" in docs/how-to/several-machines.md lists all events. `client.py` translates responses into errors,
on which `Pool._end` acts. The clock is the caller's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import PATIENCE_S
from cerebrum_cli.engine.remote.client import BusyServerError, ExchangeError

MAX_LOSSES = 3  # of a row, the last of them alone, or failures of it while its server works
TOGETHER = 8  # rows lost once that a server is given at a time
MAX_REFUSALS = 5  # rows that a server refuses in turn before it is not used
OF_THE_ROW = (400, 413)  # statuses that are never the server's fault
OF_THE_KEY = (401, 403)  # those that are, unless it has answered a row
SLOW = 10  # times a slow reply
RECENT = 200  # replies, the slowest twentieth of which are slow
NOT_ASKED = BusyServerError("no answer yet")


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """Times in seconds, and whether servers that do not answer at the start are waited for."""

    patience: float = PATIENCE_S
    row_timeout: float | None = None  # of one request; None: by slow replies
    retries: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)  # before a lost server is tried again
    silence: float = 30.0  # of a server that has rows, before it is asked for its health
    health: float = 25.0  # for that question
    busy: float = 1.0  # before a busy one is, unless it states how long to wait
    busy_notice: float = 5.0  # of a busy server, or without any, before users are notified
    notices: float = 300.0  # from one about a server to the next
    join: float = 1.0  # for the other servers at the start, once one is ready
    waits_at_start: bool = False

    @property
    def tick(self) -> float:
        return min(5.0, self.silence / 4, max(self.patience / 20, 0.01), self.row_timeout or inf)

    def retry_delay(self, failures: int) -> float:
        """Delay before a lost server is tried again; several are within the patience, unless that is short."""
        return min(self.retries[: failures + 1][-1], max(self.patience / 10, 1.0))

    def row_limit(self, slow: float, failures: int) -> float:
        """Longest time of one row, given that of a slow reply; longer than where it failed before."""
        return self.row_timeout or max(PATIENCE_S, SLOW * slow) * (1 << failures)


@dataclass(slots=True)
class ServerHealth:
    """The state of a server, and the number of samples that it is given at a time: its `window`."""

    problem: ExchangeError | EndpointError | None = NOT_ASKED  # why it is not usable, as far as is known
    is_reached: bool = False  # since it was lost, it has answered what it is, and fits
    failures: int = 0  # in turn, that of being asked what it is included
    is_proven: bool = False  # it has answered a row since it was last reached
    first_reply_at: float = inf
    refusals: int = 0  # in turn
    recovered: Counter[int] = field(default_factory=Counter)  # lost rows it has since answered, by number of losses
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

    def takes_rows(self, now: float) -> bool:
        return self.is_reached and now >= self.busy_until

    def reach(self, window: int) -> None:
        self.is_reached = True
        self.is_proven = False
        self.window = self.limit = window

    def recover(self, now: float) -> bool:
        """Whether it is usable from now on, and was not before."""
        if self.problem is None or self.state != "closed" or not self.takes_rows(now):
            return False
        self.problem = None
        return True

    def lost_rows(self, losses: int) -> int:
        """Number of lost rows that it may have together with one that was lost so often; 1 is alone."""
        return max(TOGETHER if losses == 1 else 1, self.recovered[losses])

    def answer(self, now: float, losses: int = 0, is_reply: bool = True) -> None:
        """Note a reply to a row that was lost so often, or its refusal; one to an older row does not close it early."""
        self.busy_since = now
        self.window = min(self.limit, self.window + 1)
        if is_reply:
            self.first_reply_at = min(self.first_reply_at, now)
            self.refusals = 0
        if self.is_reached:
            self.failures = 0
            self.is_proven = True
            self.recovered[losses] += 1

    def refuse(self, status: int, sent_at: float) -> Literal["row", "server", "unknown"]:
        """Note that it refuses a row, which was sent at this time; return whose fault that is."""
        if status in OF_THE_ROW:
            return "row"
        self.refusals += 1
        has_answered = sent_at >= self.first_reply_at
        if self.refusals >= MAX_REFUSALS or (status in OF_THE_KEY and not has_answered):
            return "server"
        return "row" if has_answered else "unknown"

    def is_evidence(self, losses: int, is_last: bool, timeouts: ServerTimeouts) -> bool:
        """Whether the loss of a row counts against the row.

        A server that has answered nothing since it was reached proves nothing, unless no others than rows that were
        lost before are left to try it with, or it fails for long.
        """
        return self.is_proven or (is_last and (losses > 0 or self.failures >= len(timeouts.retries)))

    def fail(self, problem: ExchangeError | EndpointError, now: float, timeouts: ServerTimeouts) -> None:
        """Open: a row was lost, or it did not answer what it is, or does not fit, or is loading its model."""
        self.problem = problem
        self.is_reached = False
        self.recovered.clear()
        if isinstance(problem, BusyServerError):
            self.retry_at = now + min(problem.retry_after or timeouts.busy, timeouts.retries[-1])
        else:
            self.retry_at = now + timeouts.retry_delay(self.failures)
            self.failures += 1

    def rest(self, busy: BusyServerError, now: float, timeouts: ServerTimeouts) -> None:
        if now >= self.busy_until:  # else it has refused several at the same time
            self.window = max(1, self.window // 2)
        if not isinstance(self.problem, BusyServerError):
            self.busy_since = now
        self.problem = busy
        seconds = max(timeouts.busy, min(busy.retry_after or 0.0, timeouts.patience))
        self.busy_until = max(self.busy_until, now + seconds)


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
