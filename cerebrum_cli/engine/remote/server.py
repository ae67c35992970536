"""A server: the jobs that it has, and the events of its replies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf

from cerebrum_cli.core.errors import CerebrumError, EndpointError, GrammarError, PromptTooLong
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, Origin, PromptEvent, RefusedEvent
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
from cerebrum_cli.engine.remote.kind import ServerInfo
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.remote.server_health import ServerHealth, ServerTimeouts
from cerebrum_cli.engine.sequence import MessagesRequest, Request

TOO_LONG = ("exceeds the available context size", "context length", "context window", "max_tokens must be at least 1")
MAX_CHARACTERS = 8  # of a prompt for each of its tokens; texts have 1 to 5
UNSTATED_HINT = "its replies may be truncated; check its log, or update it"
DROPPED_HINT = (
    "it may have dropped the rest: give it a larger context, as with OLLAMA_CONTEXT_LENGTH=16384 ollama serve"
)
REFUSED_HINT = "check the settings of the request, and the server's log"
CANCELLED = asyncio.CancelledError()


@dataclass(eq=False, slots=True)
class PooledRequest:
    """A request with unfinished samples, or that may get more; one server gets all its jobs, as it has the prompt."""

    request: Request
    seed: int  # of the first sample
    emit: Callable[[Event | BaseException], None]
    server: object = None
    samples: int = 0
    unfinished: int = 0


@dataclass(eq=False, slots=True)
class PoolJob:
    """Unfinished samples of one request that one server generates together, or fewer where it takes fewer at a time."""

    pooled: PooledRequest
    samples: tuple[RemoteSample, ...]
    losses: int = 0  # with its server
    sent_at: float = 0.0  # before its first loss
    failures: int = 0  # while its server worked
    is_alone: bool = False  # on its server, so that nothing else can cause its next loss
    has_output: bool = False
    start: float = 0.0  # when it was last sent
    alive_at: float = 0.0  # when something last arrived of it
    load: int = 0  # samples that its server has no room for meanwhile
    stopped_by: BaseException | None = None  # why it was taken from its server

    @property
    def request(self) -> Request:
        return self.pooled.request

    def take(self, count: int) -> PoolJob:
        taken, self.samples = self.samples[:count], self.samples[count:]
        return replace(self, samples=taken)

    def report(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, FinishEvent | RefusedEvent):
                self.samples = tuple(sample for sample in self.samples if sample.id != event.sequence)
            self.pooled.emit(event)

    def cancel(self) -> None:
        self.report([sample.finish("cancelled") for sample in self.samples])

    def refuse(self, error: CerebrumError) -> None:
        self.report([RefusedEvent(sample.id, error, sample.origin) for sample in self.samples])


class Server:
    """A server; it is given up to `window` samples at a time, or as many as it states, and at most `most`."""

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
        self.name, self.alias = endpoint.name, alias  # which results have: it is no address
        self.client, self.health, self.was_lost = Client(endpoint), ServerHealth(), asyncio.Event()
        self.running: dict[PoolJob, asyncio.Task[None]] = {}
        self.outstanding = self.generated = 0  # samples that it has been given, and tokens of replies
        self.alive_at = 0.0  # on the event loop's clock
        self.heard_at = 0.0  # when a part of a reply last arrived
        self.is_known = False
        self._noticed = set[str]()  # hints of its notices
        self._window, self._most = window, most
        self._expected, self._timeouts = expected, timeouts

    async def open(self) -> None:
        """Find out what it serves. Raises LostServerError, BusyServerError, or EndpointError if it does not fit."""
        info = await describe(self.client)
        await self._expected.check(self.client, info)
        self.info = replace(info, end_tokens=self._expected.end_tokens) if info.kind.takes_end_tokens else info
        self.health.reach(min(self._window or info.slots, info.max_window, self._most))
        self.is_known = True

    # Its jobs.

    def has_room(self, job: PoolJob, now: float) -> bool:
        """Whether it can be given a job now: if it is half-open, or the job is to be alone, only if it is empty."""
        if not self.health.takes_rows(now):
            return False
        if self.outstanding == 0:
            return True
        fits = self.outstanding + min(len(job.samples), self.info.max_samples) <= self.health.window
        if not fits or self.health.state != "closed":
            return False
        if job.losses == 0:
            return True
        together, lost = self.health.lost_rows(job.losses), [other for other in self.running if other.losses]
        return together > max(1, len(lost))

    def add(self, job: PoolJob, task: asyncio.Task[None], now: float) -> None:
        if not self.running:
            self.alive_at = now
        job.start = job.alive_at = now
        size, origin = self.info.context_size, Origin(self.alias, self.info.weights)
        job.samples = tuple(replace(sample, context_size=size, origin=origin) for sample in job.samples)
        job.is_alone = job.losses > 1 and self.health.lost_rows(job.losses) == 1
        job.load = self.health.window if job.is_alone else len(job.samples)
        self.running[job] = task
        self.outstanding += job.load

    def remove(self, job: PoolJob) -> None:
        del self.running[job]
        self.outstanding -= job.load

    def stop(self, error: BaseException, jobs: Iterable[PoolJob]) -> None:
        for job in list(jobs):
            if job.stopped_by is not CANCELLED and self.running[job].cancel():
                job.stopped_by = error

    def stop_late(self, slow: float, now: float) -> None:
        """Remove jobs that take too long, given the seconds of a slow reply."""
        for job in list(self.running):
            limit = self._timeouts.row_limit(slow, job.failures)
            if now - job.alive_at > limit:
                works = self.alive_at > job.start  # has answered others meanwhile
                self.stop(LostServerError(f"no reply within {limit:g} s", server_works=works), [job])

    async def require_life(self) -> None:
        """Remove all jobs if it has been silent for long, and does not answer whether it is healthy: it is frozen."""
        clock, timeouts, kind = asyncio.get_running_loop().time, self._timeouts, self.info.kind
        if not self.running or clock() - self.alive_at < timeouts.silence:
            return
        if kind.takes_messages and not any(job.request.stream for job in self.running):
            return  # while it generates whole replies, it may answer nothing else
        path = kind.description_path if kind.takes_messages else "/health"
        try:
            with contextlib.suppress(BusyServerError, RequestError, EndpointError):  # an answer, too
                await self.client.get(path, timeouts.health, bytes)
            self.alive_at = clock()
        except LostServerError:
            self.stop(LostServerError(f"no sign of life for {clock() - self.alive_at:.0f} s"), self.running)

    # Its replies.

    async def answer(self, job: PoolJob) -> None:
        """Generate a job's samples. Raises ExchangeError, RefusedRequestError, or EndpointError if it affects all."""
        request, info = job.request, self.info
        total = len(request.prompt_tokens)
        evaluated = 0 if request.stream else total  # whole replies show no progress
        job.report(PromptEvent(sample.id, evaluated, total) for sample in job.samples)
        try:
            if request.stream:
                await self._receive_stream(job, info)
            else:
                await self._receive_replies(job, info)
        except RequestError as error:
            if error.status == 404:  # as from a gateway while the server restarts
                raise LostServerError(error.reason) from error
            fault = self.health.refuse(error.status, job.start)
            if fault == "server":
                raise self.client.fault(error, REFUSED_HINT) from error
            if fault == "unknown":
                raise LostServerError(error.reason, server_works=True) from error
            raise RefusedRequestError(_refusal(error, request, self.alias)) from error
        except DAMAGE as error:
            raise LostServerError("damaged reply") from error

    async def _receive_replies(self, job: PoolJob, info: ServerInfo) -> None:
        """Wait for whole replies; nothing is emitted before the last turn, as another server may be asked for all."""
        events = await self._ask(job, job.samples, info)
        while waiting := [sample for sample in job.samples if sample.needs_turn]:
            try:
                async with asyncio.TaskGroup() as group:  # one that fails ends the others
                    turns = [group.create_task(self._ask(job, [sample], info)) for sample in waiting]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors
            for turn in turns:
                events += turn.result()
        self._report(job, events)

    async def _ask(self, job: PoolJob, samples: Sequence[RemoteSample], info: ServerInfo) -> list[Event]:
        """The events of the next turn of some samples, which share it. Raises LostServerError if any is missing."""
        turns = [sample.take_turn() for sample in samples]
        body = info.kind.completion_body(turns[0], info, samples[0].seed, len(samples))
        answer = await self.client.post(info.kind.completion_path, body)
        replies = info.kind.read_replies(answer)
        if len(replies) != len(samples) or not all(reply.end for reply in replies):
            raise LostServerError(f"{len(replies)} replies instead of {len(samples)}")
        if any(reply.end == "unstated" for reply in replies):
            self._notice(job, "does not state why a reply ended", UNSTATED_HINT)
        return [event for sample, reply in zip(samples, replies, strict=True) for event in sample.add(reply)]

    async def _receive_stream(self, job: PoolJob, info: ServerInfo) -> None:
        """Pass on the parts of a reply as they arrive; closing the stream of a turn stops the server."""
        [sample] = job.samples
        while job.samples:
            body = info.kind.completion_body(sample.take_turn(), info, sample.seed, 1)
            async with contextlib.aclosing(self.client.stream(info.kind.completion_path, body)) as answers:
                async for chunk in info.kind.read_stream(answers):
                    job.alive_at = self.alive_at = self.heard_at = asyncio.get_running_loop().time()
                    for event in sample.add(chunk):
                        job.has_output = job.has_output or not isinstance(event, PromptEvent)
                        self._report(job, [event])
                    if sample.needs_turn or not job.samples:
                        break
                else:
                    raise LostServerError("the reply is incomplete")

    def _report(self, job: PoolJob, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, FinishEvent):
                self.generated += event.completion_tokens
                self._check_prompt(job, event)
            job.report([event])

    def _check_prompt(self, job: PoolJob, finish: FinishEvent) -> None:
        """Report once if a server of messages seems to have dropped some: Ollama does, without an error."""
        if not isinstance(job.request, MessagesRequest):
            return
        characters = sum(len(message["content"]) for message in job.request.conversation.openai_messages)
        if characters > MAX_CHARACTERS * (finish.prompt_tokens or inf):
            problem = f"read {finish.prompt_tokens} tokens of a prompt with {characters} characters"
            self._notice(job, problem, DROPPED_HINT)

    def _notice(self, job: PoolJob, problem: str, hint: str) -> None:
        """Report a problem of this server, once with each hint."""
        if hint not in self._noticed:
            self._noticed.add(hint)
            job.report([NoticeEvent(f"{self.name} {problem}", hint)])


def _refusal(error: RequestError, request: Request, name: str) -> CerebrumError:
    if any(sign in error.reason for sign in TOO_LONG):
        return PromptTooLong(f"{name}: {error}", "shorten the prompt, or give the server a larger context")
    if request.grammar and "grammar" in error.reason.lower():
        return GrammarError(error.reason, "it must be GBNF with a rule named root")
    return EndpointError(f"{name}: {error}", REFUSED_HINT)
