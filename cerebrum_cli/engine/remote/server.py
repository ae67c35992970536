"""A server: the state by which the pool gives it jobs, and the events of its replies."""

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
    BusyServerError,
    Client,
    Endpoint,
    ExchangeError,
    LostServerError,
    RefusedRequestError,
    RequestError,
)
from cerebrum_cli.engine.remote.description import ExpectedModel, describe
from cerebrum_cli.engine.remote.job import Breaker, PoolJob, ServerTimeouts
from cerebrum_cli.engine.remote.kind import Load, ReplyChunk, ServerInfo
from cerebrum_cli.engine.remote.replies import RemoteSample, read_replies
from cerebrum_cli.engine.sequence import MessagesRequest, Request

OF_ONE_REQUEST = (400, 413)  # others concern every request
TOO_LONG = ("exceeds the available context size", "context length", "context window", "max_tokens must be at least 1")
MAX_CHARACTERS = 8  # of a prompt for each of its tokens; texts have 1 to 5
CANCELLED = asyncio.CancelledError()
NOT_ASKED = BusyServerError("no answer yet")


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
        self.problem: ExchangeError | EndpointError | None = NOT_ASKED  # why it is not usable
        self.running: dict[PoolJob, asyncio.Task[None]] = {}
        self.window = self.limit = self.outstanding = 0  # samples: now at most, after no refusal, and given
        self.generated = 0  # tokens
        self.alive_at = self.busy_since = self.busy_until = 0.0  # on the event loop's clock
        self.is_known = self._drops_messages = False
        self.info: ServerInfo  # once it is known: what it was when it was last reached
        self._load, self.client = Load(), Client(endpoint)
        self._endpoint, self._window, self._most = endpoint, window, most
        self._expected, self._timeouts = expected, timeouts

    # What it is.

    async def open(self) -> None:
        """Find out whether it can be used, for the first time or after it was lost: it may serve another model.

        Raises LostServerError, BusyServerError, or EndpointError if it does not fit.
        """
        info = await describe(self.client, self._endpoint)
        await self._expected.check(self.client, self._endpoint, info)
        self.info = replace(info, end_tokens=self._expected.end_tokens) if info.kind.takes_end_tokens else info
        self.limit = self.window = min(self._window or info.slots, info.max_window, self._most)
        self.breaker, self.is_known = self.breaker.reached(), True

    # What it is doing.

    @property
    def is_usable(self) -> bool:
        """Whether it takes requests and answers them, as far as is known."""
        return self.problem is None

    def idle_window(self, now: float) -> int:
        """Number of samples it can be given now, if it has nothing to do and has answered before; else 0."""
        if self.breaker.state == "open" or now < self.busy_until or self.running or not self.generated:
            return 0
        return self.window if self.breaker.state == "closed" else 1

    def has_room(self, job: PoolJob, now: float) -> bool:
        """Whether it can be given a job now; if it is half-open, or for a suspect, only if it has no other."""
        if self.breaker.state == "open" or now < self.busy_until:
            return False
        fits = self.outstanding + min(len(job.samples), self.info.max_samples) <= self.window
        return (fits and self.breaker.state == "closed" and not job.is_suspect) or self.outstanding == 0

    def add(self, job: PoolJob, task: asyncio.Task[None], now: float) -> None:
        if not self.running:
            self.alive_at = now
        job.start = job.alive_at = now
        job.origin = Origin(self.alias, self.info.weights)
        job.load = max(len(job.samples), self.window if job.is_suspect else 0)
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

    def rest(self, busy: BusyServerError, now: float, seconds: float) -> float:
        """Take no requests for a while; return how long it will have been busy then."""
        if now >= self.busy_until:  # else it has refused several at the same time
            self.window = max(1, self.window // 2)
        self.busy_since = self.busy_since if isinstance(self.problem, BusyServerError) else now
        self.problem, self.busy_until = busy, max(self.busy_until, now + seconds)
        return self.busy_until - self.busy_since

    async def watch(self, slowest: float) -> None:
        """Remove jobs that take too long, given the slowest reply so far; all, if it shows no sign of life."""
        now, timeouts = asyncio.get_running_loop().time(), self._timeouts
        self.alive_at = max(self.alive_at, self.client.heard_at)
        for job in list(self.running):
            if now - job.alive_at > (limit := timeouts.row_limit(slowest, job.losses)):
                kind = LateReplyError if self.alive_at > job.start else LostServerError
                self.stop(kind(f"no reply within {limit:g} s"), [job])
        follows_load = self._window is None and self.info.max_window > self.info.slots
        follows_load = follows_load and not self.info.kind.takes_messages
        if not (self.running and (follows_load or now - self.alive_at >= timeouts.silence)):
            return
        load = await self._update_load()
        if follows_load and (load.waiting or self.window == self.limit):  # else it was busy not long ago
            most = min(self.info.max_window, self._most)
            self.window = self.limit = load.next_window(self.window, self.outstanding, most)
        silent_s = asyncio.get_running_loop().time() - self.alive_at
        limits = (timeouts.silence_limit(slowest, job.losses, job.is_streamed) for job in self.running)
        if silent_s > max(limits, default=inf):
            self.stop(LostServerError(f"no sign of life for {silent_s:.0f} s"), self.running)

    async def _update_load(self) -> Load:
        """Ask it what it is doing: if it says something else than before, it is alive."""
        kind, load = self.info.kind, Load()
        with contextlib.suppress(ExchangeError, EndpointError, *DAMAGE):  # it is hanging, or has no such page
            load = kind.read_load(await self.client.get(kind.load_path, self._timeouts.load, bytes.decode))
        if load not in (self._load, Load()):
            self._load, self.alive_at = load, asyncio.get_running_loop().time()
        return load

    # Its answers.

    async def answer(self, job: PoolJob) -> None:
        """Generate the samples of a job and emit their events.

        Raises LostServerError, BusyServerError or RefusedRequestError, or EndpointError if it concerns all requests.
        """
        request, info = job.samples[0].request, self.info
        job.samples = tuple(sample.started(info.context_size, job.origin) for sample in job.samples)
        total = len(request.prompt_tokens)
        for sample in job.samples:  # whole replies show no progress
            job.emit(PromptEvent(sample.id, 0 if job.is_streamed else total, total))
        try:
            await (self._receive_stream(job, info) if job.is_streamed else self._receive_replies(job, info))
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
        events = read_replies(job.samples, await self._ask(job.samples, info))
        while waiting := [sample for sample in job.samples if sample.needs_turn]:
            try:
                async with asyncio.TaskGroup() as group:  # one that fails ends the others
                    turns = [group.create_task(self._ask([sample], info)) for sample in waiting]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors
            for sample, turn in zip(waiting, turns, strict=True):
                events += read_replies([sample], turn.result())
        self._report(job, events)

    def _report(self, job: PoolJob, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, FinishEvent):
                self.generated += event.completion_tokens
                self._check_prompt(job, event)
            job.report([event])

    def _check_prompt(self, job: PoolJob, finish: FinishEvent) -> None:
        """Report once if a server of messages seems to have dropped some: Ollama does, without an error."""
        request = job.samples[0].request
        if self._drops_messages or not isinstance(request, MessagesRequest):
            return
        characters = sum(len(message["content"]) for message in request.conversation.openai_messages)
        if characters <= MAX_CHARACTERS * (finish.prompt_tokens or inf):
            return
        self._drops_messages = True
        problem = f"{self.name} read {finish.prompt_tokens} tokens of a prompt with {characters} characters"
        hint = (
            "it may have dropped the rest: give it a larger context, as with OLLAMA_CONTEXT_LENGTH=16384 ollama serve"
        )
        job.emit(NoticeEvent(problem, hint))

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
                job.alive_at = asyncio.get_running_loop().time()
                for event in sample.add(chunk):
                    job.has_output = job.has_output or not isinstance(event, PromptEvent)
                    self._report(job, [event])
        except StopAsyncIteration as error:
            raise LostServerError("the reply is incomplete") from error


def _refusal(error: RequestError, request: Request, name: str) -> CerebrumError:
    if any(sign in error.reason for sign in TOO_LONG):
        return PromptTooLong(f"{name}: {error}", "shorten the prompt, or give the server a larger context")
    if request.grammar and "grammar" in error.reason.lower():
        return GrammarError(error.reason, "it must be GBNF with a rule named root")
    return EndpointError(f"{name}: {error}", "check the settings of the request, and the server's log")
