"""A server: its state, by which the pool decides what it is given, and what its answers mean for a job's samples."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace

from cerebrum_cli.core.errors import CerebrumError, EndpointError, GrammarError, PromptTooLong
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, Origin, PromptEvent
from cerebrum_cli.engine.remote.client import (
    DAMAGE,
    BusyServerError,
    Client,
    Endpoint,
    LostServerError,
    RefusedRequestError,
    RequestError,
)
from cerebrum_cli.engine.remote.description import ExpectedModel, describe
from cerebrum_cli.engine.remote.job import Breaker, PoolJob, ServerTimeouts
from cerebrum_cli.engine.remote.kind import Load, ReplyChunk, ServerInfo, origin
from cerebrum_cli.engine.remote.replies import RemoteSample, read_replies
from cerebrum_cli.engine.sequence import Request

OF_ONE_REQUEST = (400, 413)  # others concern every request
TOO_LONG = ("exceeds the available context size", "context length", "max_tokens must be at least 1")
CANCELLED = asyncio.CancelledError()


class MissingServerError(LostServerError):
    """The address answers, but not as a server: it may be that of a gateway to one that restarts."""


class LateReplyError(LostServerError):
    """One reply takes too long, from a server that works."""


class Server:
    """A server, which is given up to `window` samples at a time, or `most` if it shows that it can do more.

    Results call it by its `alias`, which is no address.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        number: int,
        window: int | None,
        most: int,
        expected: ExpectedModel,
        timeouts: ServerTimeouts,
    ) -> None:
        self.name, self.alias = endpoint.name, f"server {number}" if endpoint.name == endpoint.url else endpoint.name
        self.breaker, self.was_lost = Breaker(), asyncio.Event()
        self.problem: Exception | None = None  # why it is not usable
        self.reason = "no answer yet"  # in words; that of its last problem
        self.running: dict[PoolJob, asyncio.Task[None]] = {}
        self.window = self.limit = self.outstanding = 0  # samples: now at most, after no refusal, and given
        self.generated = 0  # tokens
        self.openings = self.sent = 0  # how often it was reached, and the running jobs that it was given since
        self.alive_at = self.busy_until = 0.0  # on the event loop's clock
        self.busy_since: float | None = None  # None after an answer
        self.info: ServerInfo | None = None
        self._load, self.client = Load(), Client(endpoint)
        self._endpoint, self._window, self._most = endpoint, window, most
        self._expected, self._timeouts = expected, timeouts
        self._noted: set[tuple[str, str]] = set()  # differences that were reported

    # What it is.

    @property
    def known_info(self) -> ServerInfo:
        """What it was when it was last opened."""
        assert self.info
        return self.info

    async def open(self) -> None:
        """Find out whether it can be used, for the first time or after it was lost: it may serve another model.

        Raises LostServerError, BusyServerError, or EndpointError if it does not fit.
        """
        try:
            info = await describe(self.client, self._endpoint)
            await self._expected.check(self.client, self._endpoint, info)
        except EndpointError as error:
            cause = error.__cause__
            if isinstance(cause, RequestError) and cause.status == 404:
                raise MissingServerError(error.message.removeprefix(f"{self.name}: ")) from error
            raise
        now = origin(info.recorded)
        if self.info and now != (before := origin(self.info.recorded)):
            problem = f"{self.name} now serves {now} instead of {before}"
            raise EndpointError(problem, "restart it with the previous model, then run the same command again")
        self.info = replace(info, end_tokens=self._expected.end_tokens) if info.kind.takes_end_tokens else info
        self.limit = self.window = min(self._window or info.slots, info.max_window, self._most)
        self.breaker, self.problem = self.breaker.reached(), None
        self.openings, self.sent = self.openings + 1, 0

    # What it is doing.

    def set_problem(self, error: BusyServerError | LostServerError | EndpointError) -> None:
        self.problem = error
        self.reason = error.message if isinstance(error, EndpointError) else error.reason

    @property
    def is_usable(self) -> bool:
        """Whether it takes requests and answers them, as far as is known."""
        return self.breaker.state == "closed" and self.busy_since is None

    def is_idle(self, now: float) -> bool:
        """Whether it has nothing to do, and would answer."""
        return self.breaker.state == "closed" and now >= self.busy_until and not self.running

    def has_room(self, job: PoolJob, now: float) -> bool:
        """Whether it can be given a job now; a suspect only if it has no other."""
        if self.breaker.state == "open" or now < self.busy_until or (self.breaker.state == "half-open" and self.sent):
            return False
        fits = self.outstanding + min(len(job.samples), self.known_info.max_samples) <= self.window
        return (fits and not job.is_suspect) or self.outstanding == 0

    def add(self, job: PoolJob, task: asyncio.Task[None], now: float) -> None:
        if not self.running:
            self.alive_at = now
        job.start = job.alive_at = now
        job.origin = Origin(self.alias, self.known_info.weights)
        job.opening, job.load = self.openings, max(len(job.samples), self.window if job.is_suspect else 0)
        self.running[job] = task
        self.outstanding += job.load
        self.sent += 1

    def remove(self, job: PoolJob) -> None:
        del self.running[job]
        self.outstanding -= job.load
        self.sent -= job.opening == self.openings

    def stop(self, error: BaseException, jobs: Iterable[PoolJob]) -> None:
        """Take some of its jobs from it, which end with an error."""
        for job in list(jobs):
            if job.stopped_by is not CANCELLED and self.running[job].cancel():
                job.stopped_by = error

    def rest(self, busy: BusyServerError, now: float, seconds: float) -> float:
        """Take no requests for a while; return how long it will have been busy then."""
        if now >= self.busy_until:  # else it has refused several at the same time
            self.window = max(1, self.window // 2)
        self.set_problem(busy)
        self.busy_until = max(self.busy_until, now + seconds)
        self.busy_since = now if self.busy_since is None else self.busy_since
        return self.busy_until - self.busy_since

    async def watch(self, slowest: float) -> None:
        """Take jobs from it that take too long after the slowest reply so far; all, if it shows no sign of life."""
        now, timeouts = asyncio.get_running_loop().time(), self._timeouts
        for job in list(self.running):
            if now - job.alive_at > (limit := timeouts.row_limit(slowest, job.losses)):
                kind = LateReplyError if self.alive_at > job.start else LostServerError
                self.stop(kind(f"no reply within {limit:g} s"), [job])
        follows_load = self._window is None and self.known_info.max_window > self.known_info.slots
        is_silent = now - self.alive_at >= timeouts.silence
        if not (self.running and (follows_load or is_silent)):
            return
        try:
            load = await self._update_load()
        except LostServerError as lost:
            if is_silent:
                self.stop(LostServerError(f"it stopped answering: {lost.reason}"), self.running)
            return
        if follows_load and (load.waiting or self.window == self.limit):  # else it was busy not long ago
            most = min(self.known_info.max_window, self._most)
            self.window = self.limit = load.next_window(self.window, self.outstanding, most)
        silent_s = asyncio.get_running_loop().time() - self.alive_at
        losses = max((job.losses for job in self.running), default=0)
        if silent_s > timeouts.silence_limit(slowest, losses):
            self.stop(LostServerError(f"no sign of life for {silent_s:.0f} s"), self.running)

    async def _update_load(self) -> Load:
        """Ask it what it is doing: if that has changed, it is alive. Raises LostServerError."""
        kind, load = self.known_info.kind, Load()
        with contextlib.suppress(RequestError, BusyServerError, EndpointError, *DAMAGE):  # it has no such page
            load = kind.read_load(await self.client.text(kind.load_path, self._timeouts.load))
        if load != self._load:
            self._load, self.alive_at = load, asyncio.get_running_loop().time()
        return load

    # Its answers.

    async def answer(self, job: PoolJob) -> None:
        """Generate the samples of a job and emit their events.

        Raises LostServerError, BusyServerError or RefusedRequestError, or EndpointError if it concerns all requests.
        """
        request, info = job.samples[0].request, self.known_info
        job.samples = tuple(sample.started(info.context_size, job.origin) for sample in job.samples)
        for sample in job.samples:
            job.emit(PromptEvent(sample.id, 0, len(request.prompt_tokens)))
        for difference in info.kind.differences(request, info):
            self._note(job, *difference)
        try:
            await (self._receive_stream(job, info) if request.stream else self._receive_replies(job, info))
        except RequestError as error:
            if error.status == 404:  # as from a gateway while the server restarts
                raise LostServerError(error.message) from error
            if error.status in OF_ONE_REQUEST:
                raise RefusedRequestError(_refusal(error, request, self.alias)) from error
            raise _refusal(error, request, self.name) from error
        except DAMAGE as error:
            raise LostServerError("damaged reply") from error

    def _note(self, job: PoolJob, problem: str, hint: str) -> None:
        if (problem, hint) not in self._noted:
            self._noted.add((problem, hint))
            job.emit(NoticeEvent(problem, hint))

    async def _receive_replies(self, job: PoolJob, info: ServerInfo) -> None:
        """Wait for whole replies.

        Nothing is emitted before the last turn: until then, another server may be asked for all of them.
        """
        events = read_replies(job.samples, await self._ask(job.samples, info))
        while waiting := [sample for sample in job.samples if sample.needs_turn]:
            answers = await asyncio.gather(*(self._ask([sample], info) for sample in waiting), return_exceptions=True)
            for sample, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                events += read_replies([sample], answer)
        self._report(job, events)

    def _report(self, job: PoolJob, events: Iterable[Event]) -> None:
        for event in events:
            self.generated += event.completion_tokens if isinstance(event, FinishEvent) else 0
            job.report([event])

    async def _ask(self, samples: Sequence[RemoteSample], info: ServerInfo) -> Sequence[ReplyChunk]:
        """Ask for the next turn of some samples, which share it if there are several."""
        turns = [sample.take_turn() for sample in samples]
        body = info.kind.completion_body(turns[0], info, samples[0].seed, len(samples))
        return info.kind.read_replies(await self.client.post(info.kind.completion_path, body, samples=len(samples)))

    async def _receive_stream(self, job: PoolJob, info: ServerInfo) -> None:
        """Pass on the parts of a reply as they arrive; closing the stream of a turn stops the server."""
        [sample] = job.samples
        while not sample.is_finished:
            body = info.kind.completion_body(sample.take_turn(), info, sample.seed, 1)
            async with contextlib.aclosing(self.client.stream(info.kind.completion_path, body)) as answers:
                await self._receive_turn(job, sample, info.kind.read_stream(answers))

    async def _receive_turn(self, job: PoolJob, sample: RemoteSample, chunks: AsyncIterator[ReplyChunk]) -> None:
        """Pass on the parts of a turn, up to its end or to an intervention."""
        try:
            while not (sample.is_finished or sample.needs_turn):
                chunk = await anext(chunks)
                self.alive_at = job.alive_at = asyncio.get_running_loop().time()
                for event in sample.add(chunk):
                    job.has_output = job.has_output or not isinstance(event, PromptEvent)
                    self._report(job, [event])
        except StopAsyncIteration as error:
            raise LostServerError("the reply is incomplete") from error


def _refusal(error: RequestError, request: Request, name: str) -> CerebrumError:
    if any(sign in error.message for sign in TOO_LONG):
        return PromptTooLong(f"{name}: {error.message}", "shorten the prompt, or give the server a larger context")
    if request.grammar and "grammar" in error.message.lower():
        return GrammarError(error.message, "it must be GBNF with a rule named root")
    return EndpointError(f"{name}: {error.message}", "check the settings of the request, and the server's log")
