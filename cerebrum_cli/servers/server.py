"""A server: its state, and the jobs that it has; `pool.py` chooses these, `exchanges.py` asks for the replies."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from math import inf
from time import monotonic

from cerebrum_cli.core.errors import CerebrumError, EndpointError, GrammarError, PromptTooLong
from cerebrum_cli.core.events import (
    FinishEvent,
    NoticeEvent,
    Origin,
    RefusedEvent,
    SequenceId,
)
from cerebrum_cli.engine.engine import OnSampleEvent
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.bodies import REPLY_BYTES
from cerebrum_cli.servers.client import Client
from cerebrum_cli.servers.description import ExpectedModel, describe
from cerebrum_cli.servers.endpoint import Endpoint, ServerInfo, ServerTimeouts
from cerebrum_cli.servers.faults import (
    BusyServerError,
    ExchangeError,
    LostServerError,
    RefusedRequestError,
    RequestError,
)
from cerebrum_cli.servers.kind import ServerKind
from cerebrum_cli.servers.replies import RemoteSample, SampleEvent

TOO_LONG = ("exceeds the available context size", "context length", "context window", "max_tokens must be at least 1")
REFUSED_HINT = "check the settings of the request, and the server's log"
MAX_REFUSALS = 5  # rows that a server refuses in turn before it is not used
LATE = 2  # times the longest reply so far, after which a row is asked elsewhere, too
OF_THE_ROW = (400, 413)  # statuses that are never the server's fault
OF_THE_KEY = (401, 403)  # those that are, unless it has answered a row
EXPECTED_TOKENS = 8192  # of a sample without a limit
TOKEN_BYTES = 16  # of a reply, with the token's id
SCORED_TOKEN_BYTES = 200  # with its log probability
NOT_ASKED = BusyServerError("no answer yet")

AsyncioTask = asyncio.Task[None]


@dataclass(eq=False, slots=True)
class PooledRequest:
    """A request with samples that have not finished, or that may get more; one server gets all its jobs if it can."""

    request: Request
    seed: int  # of the first sample
    emit: OnSampleEvent
    server: object = None  # that has evaluated the prompt
    samples: int = 0
    running: set[SequenceId] = field(default_factory=set)  # samples whose last event was not emitted
    jobs: dict[PoolJob, Server] = field(default_factory=dict)  # those that run, and where


@dataclass(eq=False, slots=True)
class PoolJob:
    """Samples of one request that one server generates together, or fewer where it takes fewer at a time."""

    pooled: PooledRequest
    samples: tuple[RemoteSample, ...]
    losses: int = 0  # of its reply
    group: int = 0  # most jobs that its next server may have, 0 for any number
    has_output: bool = False
    start: float = 0.0  # when it was last sent
    task: AsyncioTask | None = None

    @property
    def request(self) -> Request:
        return self.pooled.request

    @property
    def unfinished(self) -> tuple[RemoteSample, ...]:
        return tuple(sample for sample in self.samples if sample.id in self.pooled.running)

    def split(self, count: int) -> PoolJob | None:
        """Limit the job to so many samples; return one for the others."""
        samples = self.unfinished
        self.samples = samples[:count]
        if len(samples) <= count:
            return None
        return replace(self, samples=samples[count:])

    @property
    def racers(self) -> dict[PoolJob, Server]:
        """Other jobs that run for the same samples, with their servers."""
        ids = {sample.id for sample in self.samples}
        return {
            job: server
            for job, server in self.pooled.jobs.items()
            if job is not self and not ids.isdisjoint(sample.id for sample in job.samples)
        }

    def report(self, event: SampleEvent) -> None:
        """Emit an event of a sample that has not finished: another server may have been faster."""
        running = self.pooled.running
        if event.sequence in running:
            if isinstance(event, (FinishEvent, RefusedEvent)):
                running.remove(event.sequence)
            self.pooled.emit(event)

    def cancel(self) -> None:
        for sample in self.unfinished:
            self.report(sample.finish("cancelled"))
        if self.task:
            self.task.cancel()

    def refuse(self, error: CerebrumError) -> None:
        for sample in self.unfinished:
            self.report(RefusedEvent(sample.id, error, sample.origin))


class Server:
    """A server; it is given up to `window` samples at a time, or as many as it states, and at most `most`."""

    kind: ServerKind
    info: ServerInfo  # once it `is_known`: what it was when it was last reached

    def __init__(
        self,
        endpoint: Endpoint,
        alias: str,
        window: int | None,
        most: int,
        expected: ExpectedModel,
        timeouts: ServerTimeouts,
    ) -> None:
        self.name, self.alias = endpoint.name, alias  # in results, instead of the address
        self.client = Client(endpoint)
        self.running: dict[PoolJob, None] = {}
        self.reaching: AsyncioTask | None = None
        self.outstanding = 0  # samples that it has been given
        self.problem: ExchangeError | EndpointError | None = NOT_ASKED  # why it is not usable, as far as is known
        self.failures = 0  # since its last answer
        self.lost_together = 0  # jobs that it had when it was lost
        self.heard_at = monotonic()  # when something last arrived of a reply
        self.reply_s = 0.0  # of its last reply
        self.is_known = False
        self.is_reached = False  # since it was lost, it has answered what it is, and fits
        self.noted = set[str]()  # kinds of problems that users know of
        self.noted_at: dict[str, float] = {}  # when they last learned of one of each kind
        self.window = self._limit = 0
        self._refusals = 0  # in turn
        self._first_reply_at = inf
        self._retry_at = 0.0
        self._asked_at = 0.0  # when it was last asked something
        self._noticed = set[str]()  # hints of its notices
        self._window = window
        self._most = most
        self._expected = expected
        self.timeouts = timeouts

    async def open(self) -> None:
        """Find out what it serves. Raises LostServerError, BusyServerError, or EndpointError if it does not fit."""
        self._asked_at = monotonic()
        limit = self.timeouts.health if self.is_reached else None
        try:
            async with asyncio.timeout(limit):
                kind, info = await describe(self.client, self._expected.messages)
                await self._expected.check(self.client, info)
        except TimeoutError as error:
            raise LostServerError(f"no sign of life for {monotonic() - self.heard_at:.0f} s") from error
        self.kind = kind
        self.info = replace(info, end_tokens=self._expected.end_tokens) if kind.takes_end_tokens else info
        self.window = self._limit = min(self._window or info.slots, info.max_window, self._most)
        self.is_known = self.is_reached = True
        if not self.failures:
            self.problem = None

    @property
    def is_due(self) -> bool:
        """Whether it is time to ask it what it is: after it was lost, or while a reply that streams stands still."""
        if self.reaching:
            return False
        if not self.is_reached:
            return monotonic() >= self._retry_at
        if monotonic() - max(self.heard_at, self._asked_at) < self.timeouts.silence:
            return False
        return any(job.request.ask.stream for job in self.running)

    @property
    def is_noteworthy(self) -> bool:
        """Whether users should know its problem: not that it is busy for a moment."""
        if isinstance(self.problem, BusyServerError):
            return self._retry_at - self.heard_at >= self.timeouts.busy_notice
        return self.problem is not None

    def has_room(self, job: PoolJob) -> bool:
        """Whether it can be given a job now: one after a failure, and suspects in groups."""
        if not self.is_reached or monotonic() < self._retry_at:
            return False
        if not self.running:
            return True
        if job.group or next(iter(self.running)).group:
            return len(self.running) < min(job.group, *(other.group for other in self.running))
        samples = min(len(job.samples), self.max_samples(job.request))
        return not self.failures and self.outstanding + samples <= self.window

    def max_samples(self, request: Request) -> int:
        """Most samples that one request may ask for: the size of all replies to it is limited."""
        token_bytes = SCORED_TOKEN_BYTES if request.ask.logprobs else TOKEN_BYTES
        tokens = min(request.params.max_tokens or EXPECTED_TOKENS, self.info.context_size)
        return max(1, min(self.info.max_samples, REPLY_BYTES // (tokens * token_bytes)))

    def start(self, job: PoolJob) -> None:
        """Note that it is asked for a job from now on."""
        origin = Origin(self.alias, self.info.weights)
        size = 0 if self.info.takes_messages else self.info.context_size
        job.samples = tuple(replace(sample, context_size=size, origin=origin) for sample in job.samples)
        job.start = self._asked_at = monotonic()
        self.running[job] = None
        self.outstanding += len(job.samples)

    def remove(self, job: PoolJob) -> None:
        del self.running[job]
        self.outstanding -= len(job.samples)

    def note_answer(self, job: PoolJob, is_reply: bool) -> None:
        """Note a reply to a row, or its refusal."""
        self.heard_at = monotonic()
        self.reply_s = self.heard_at - job.start
        self.window = min(self._limit, self.window + 1)
        if is_reply:
            self._first_reply_at = min(self._first_reply_at, self.heard_at)
            self._refusals = 0
        if self.is_reached and self.heard_at >= self._retry_at:
            self.failures = 0
            self.problem = None

    def silence(self, job: PoolJob) -> float:
        """Seconds since it was given a job, or last answered one."""
        return monotonic() - max(job.start, self.heard_at)

    def note_loss(self, job: PoolJob, winner: Server) -> None:
        """Note that another server answered a job first: this one is lost if it has sent nothing for much longer."""
        silence_s = self.silence(job)
        if silence_s > LATE * max(self.reply_s, winner.reply_s):
            self.lose(LostServerError(f"no reply for {silence_s:.0f} s"))

    def lose(self, problem: ExchangeError | EndpointError) -> None:
        """Give it no rows until it has answered what it is again."""
        if self.is_reached:
            self.lost_together = len(self.running) + 1
        elif self.reaching is None:  # this row was lost with others
            return
        self.is_reached = False
        self.rest(problem)

    def rest(self, problem: ExchangeError | EndpointError) -> None:
        """Give it no rows for as long as it asks for, or longer after each failure, but not after a row timed out."""
        self.problem = problem
        if isinstance(problem, BusyServerError):
            delay = max(self.timeouts.busy, min(problem.retry_after or 0.0, self.timeouts.patience))
            self.window = max(1, min(self.window, self.outstanding))
        else:
            timed_out = isinstance(problem, LostServerError) and problem.timed_out
            delay = self.timeouts.retry_delay(0 if timed_out else self.failures)
            self.failures += 1
        self._retry_at = monotonic() + delay

    def stop_all(self) -> None:
        """Stop its jobs, which are lost."""
        for job in self.running:
            if job.task:
                job.task.cancel()

    def refusal(self, job: PoolJob, error: RequestError) -> Exception:
        """What it means that a server refuses a row: a fault of the row, of the server, or not known yet."""
        if error.status == 404:  # as from a gateway while the server restarts
            return LostServerError(error.reason)
        if error.status not in OF_THE_ROW:
            self._refusals += 1
            has_replied = job.start >= self._first_reply_at
            is_of_the_server = error.status in OF_THE_KEY and not has_replied
            if is_of_the_server or self._refusals >= MAX_REFUSALS:
                return self.client.fault(error, REFUSED_HINT)
            if not has_replied:
                return LostServerError(error.reason, server_works=True)
        return RefusedRequestError(_explain(error, job.request, self.alias))

    def notice(self, job: PoolJob, problem: str, hint: str) -> None:
        """Report a problem of this server, once with each hint."""
        if hint not in self._noticed:
            self._noticed.add(hint)
            job.pooled.emit(NoticeEvent(f"{self.name} {problem}", hint))


def _explain(error: RequestError, request: Request, name: str) -> CerebrumError:
    if any(sign in error.reason for sign in TOO_LONG):
        return PromptTooLong(f"{name}: {error}", "shorten the prompt, or give the server a larger context")
    if request.ask.grammar and "grammar" in error.reason.lower():
        return GrammarError(error.reason, "simplify the schema or grammar")
    return EndpointError(f"{name}: {error}", REFUSED_HINT)
