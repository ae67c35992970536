"""A server: the jobs that it has, whether it shows signs of life, and the events of its replies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from math import inf

from cerebrum_cli.core.errors import CerebrumError, EndpointError, GrammarError, PromptTooLong
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, Origin, PromptEvent
from cerebrum_cli.engine.remote.client import (
    DAMAGE,
    Client,
    Endpoint,
    ExchangeError,
    LostServerError,
    RefusedRequestError,
    RequestError,
)
from cerebrum_cli.engine.remote.description import ExpectedModel, describe
from cerebrum_cli.engine.remote.job import PoolJob
from cerebrum_cli.engine.remote.kind import Load, ReplyChunk, ServerInfo
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.remote.server_health import ServerHealth, ServerTimeouts
from cerebrum_cli.engine.sequence import MessagesRequest, Request

OF_ONE_REQUEST = (400, 413)  # others concern every request
TOO_LONG = ("exceeds the available context size", "context length", "context window", "max_tokens must be at least 1")
MAX_CHARACTERS = 8  # of a prompt for each of its tokens; texts have 1 to 5
DROPPED_HINT = (
    "it may have dropped the rest: give it a larger context, as with OLLAMA_CONTEXT_LENGTH=16384 ollama serve"
)
CANCELLED = asyncio.CancelledError()


class LateReplyError(LostServerError):
    """One reply takes too long, from a server that works."""


class Server:
    """A server, which is given up to `window` samples at a time, or `most` if it shows that it can do more.

    Results call it by its `alias`, which is no address.
    """

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
        self.name, self.alias = endpoint.name, alias
        self.client, self.health, self.was_lost = Client(endpoint), ServerHealth(), asyncio.Event()
        self.running: dict[PoolJob, asyncio.Task[None]] = {}
        self.outstanding = self.generated = 0  # samples that it has been given, and tokens of replies
        self.alive_at = 0.0  # on the event loop's clock
        self.is_known = self._drops_messages = False
        self._window, self._most = window, most
        self._expected, self._timeouts = expected, timeouts
        self._load = Load()

    async def open(self) -> None:
        """Find out whether it can be used, for the first time or after it was lost: it may serve another model.

        Raises LostServerError, BusyServerError, or EndpointError if it does not fit.
        """
        info = await describe(self.client)
        await self._expected.check(self.client, info)
        self.info = replace(info, end_tokens=self._expected.end_tokens) if info.kind.takes_end_tokens else info
        self.health.reach(min(self._window or info.slots, info.max_window, self._most))
        self.is_known = True

    # Its jobs.

    def idle_window(self, now: float) -> int:
        """Number of samples it can be given now, if it has nothing to do and has answered before; else 0."""
        if self.running or not self.generated or not self.health.takes_requests(now):
            return 0
        return self.health.window if self.health.state == "closed" else 1

    def has_room(self, job: PoolJob, now: float) -> bool:
        """Whether it can be given a job now; if it is half-open, or for a suspect, only if it has no other."""
        if not self.health.takes_requests(now):
            return False
        if self.outstanding == 0:
            return True
        fits = self.outstanding + min(len(job.samples), self.info.max_samples) <= self.health.window
        return fits and self.health.state == "closed" and not job.is_suspect

    def add(self, job: PoolJob, task: asyncio.Task[None], now: float) -> None:
        if not self.running:
            self.alive_at = now
        job.start = job.alive_at = now
        job.origin = Origin(self.alias, self.info.weights)
        job.load = max(len(job.samples), self.health.window) if job.is_suspect else len(job.samples)
        self.running[job] = task
        self.outstanding += job.load

    def remove(self, job: PoolJob) -> None:
        del self.running[job]
        self.outstanding -= job.load

    def stop(self, error: BaseException, jobs: Iterable[PoolJob]) -> None:
        """Remove some of its jobs, which end with an error."""
        for job in list(jobs):
            if job.stopped_by is not CANCELLED and self.running[job].cancel():
                job.stopped_by = error

    # Whether it works.

    async def watch(self, slowest: float) -> None:
        """Remove jobs that take too long, given the slowest reply so far; all, if it shows no sign of life."""
        now, timeouts = asyncio.get_running_loop().time(), self._timeouts
        self.alive_at = max(self.alive_at, self.client.heard_at)
        # late replies
        for job in list(self.running):
            limit = timeouts.row_limit(slowest, job.losses)
            if now - job.alive_at > limit:
                error = LateReplyError if self.alive_at > job.start else LostServerError
                self.stop(error(f"no reply within {limit:g} s"), [job])
        if not self.running or (now - self.alive_at < timeouts.silence and not self._follows_load):
            return
        # load
        load, health = await self._read_load(), self.health
        if self._follows_load and (load.waiting or health.window == health.limit):  # else it was busy not long ago
            most = min(self.info.max_window, self._most)
            health.window = health.limit = load.next_window(health.window, self.outstanding, most)
        # silence
        silent_s = asyncio.get_running_loop().time() - self.alive_at
        limits = [timeouts.silence_limit(slowest, job.losses, job.request.stream) for job in self.running]
        if silent_s > max(limits, default=inf):
            self.stop(LostServerError(f"no sign of life for {silent_s:.0f} s"), self.running)

    async def _read_load(self) -> Load:
        """Ask it what it is doing: if it says something else than before, it is alive."""
        kind, load = self.info.kind, Load()
        with contextlib.suppress(ExchangeError, EndpointError, *DAMAGE):  # it is hanging, or has no such page
            load = kind.read_load(await self.client.get(kind.load_path, self._timeouts.load, bytes.decode))
        if load not in (self._load, Load()):
            self._load = load
            self.alive_at = asyncio.get_running_loop().time()
        return load

    @property
    def _follows_load(self) -> bool:
        """Whether its window depends on its load: it does not state its slots, and the user no number."""
        info = self.info
        return self._window is None and info.max_window > info.slots and not info.kind.takes_messages

    # Its replies.

    async def answer(self, job: PoolJob) -> None:
        """Generate the samples of a job and emit their events.

        Raises LostServerError, BusyServerError or RefusedRequestError, or EndpointError if it concerns all requests.
        """
        request, info = job.request, self.info
        total = len(request.prompt_tokens)
        job.samples = tuple(sample.restarted(info.context_size, job.origin) for sample in job.samples)
        for sample in job.samples:
            evaluated = 0 if request.stream else total  # whole replies show no progress
            job.report([PromptEvent(sample.id, evaluated, total)])
        try:
            if request.stream:
                await self._receive_stream(job, info)
            else:
                await self._receive_replies(job, info)
        except RequestError as error:
            if error.status == 404:  # as from a gateway while the server restarts
                raise LostServerError(error.reason) from error
            if error.status in OF_ONE_REQUEST:
                raise RefusedRequestError(_refusal(error, request, self.alias)) from error
            raise _refusal(error, request, self.name) from error
        except DAMAGE as error:
            raise LostServerError("damaged reply") from error

    async def _receive_replies(self, job: PoolJob, info: ServerInfo) -> None:
        """Wait for whole replies.

        Nothing is emitted before the last turn: until then, another server may be asked for all of them.
        """
        events = await self._ask(job.samples, info)
        while waiting := [sample for sample in job.samples if sample.needs_turn]:
            try:
                async with asyncio.TaskGroup() as group:  # one that fails ends the others
                    turns = [group.create_task(self._ask([sample], info)) for sample in waiting]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors
            for turn in turns:
                events += turn.result()
        self._report(job, events)

    async def _ask(self, samples: Sequence[RemoteSample], info: ServerInfo) -> list[Event]:
        """The events of the next turn of some samples, which share it if there are several.

        Raises LostServerError if any is missing.
        """
        turns = [sample.take_turn() for sample in samples]
        body = info.kind.completion_body(turns[0], info, samples[0].seed, len(samples))
        answer = await self.client.post(info.kind.completion_path, body, samples=len(samples))
        replies = info.kind.read_replies(answer)
        if len(replies) != len(samples) or not all(reply.end for reply in replies):
            raise LostServerError(f"{len(replies)} replies instead of {len(samples)}")
        return [event for sample, reply in zip(samples, replies, strict=True) for event in sample.add(reply)]

    async def _receive_stream(self, job: PoolJob, info: ServerInfo) -> None:
        """Pass on the parts of a reply as they arrive; closing the stream of a turn stops the server."""
        [sample] = job.samples
        while not sample.is_finished:
            body = info.kind.completion_body(sample.take_turn(), info, sample.seed, 1)
            async with contextlib.aclosing(self.client.stream(info.kind.completion_path, body)) as answers:
                await self._receive_turn(job, sample, info.kind.read_stream(answers))

    async def _receive_turn(self, job: PoolJob, sample: RemoteSample, chunks: AsyncIterator[ReplyChunk]) -> None:
        async for chunk in chunks:
            job.alive_at = asyncio.get_running_loop().time()
            for event in sample.add(chunk):
                job.has_output = job.has_output or not isinstance(event, PromptEvent)
                self._report(job, [event])
            if sample.is_finished or sample.needs_turn:
                return
        raise LostServerError("the reply is incomplete")

    def _report(self, job: PoolJob, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, FinishEvent):
                self.generated += event.completion_tokens
                self._check_prompt(job, event)
            job.report([event])

    def _check_prompt(self, job: PoolJob, finish: FinishEvent) -> None:
        """Report once if a server of messages seems to have dropped some: Ollama does, without an error."""
        if self._drops_messages or not isinstance(job.request, MessagesRequest):
            return
        characters = sum(len(message["content"]) for message in job.request.conversation.openai_messages)
        if characters <= MAX_CHARACTERS * (finish.prompt_tokens or inf):
            return
        self._drops_messages = True
        problem = f"{self.name} read {finish.prompt_tokens} tokens of a prompt with {characters} characters"
        job.report([NoticeEvent(problem, DROPPED_HINT)])


def _refusal(error: RequestError, request: Request, name: str) -> CerebrumError:
    if any(sign in error.reason for sign in TOO_LONG):
        return PromptTooLong(f"{name}: {error}", "shorten the prompt, or give the server a larger context")
    if request.grammar and "grammar" in error.reason.lower():
        return GrammarError(error.reason, "it must be GBNF with a rule named root")
    return EndpointError(f"{name}: {error}", "check the settings of the request, and the server's log")
