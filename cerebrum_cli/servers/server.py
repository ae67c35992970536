"""A server: its state, and the replies to the requests that it has been given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from cerebrum_cli.core.errors import DAMAGE, CerebrumError, UnknownToken
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, Origin, PromptEvent, RefusedEvent, TokenEvent
from cerebrum_cli.engine.engine import OnSampleEvent
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.chat_completions import chat_turns
from cerebrum_cli.servers.client import Client
from cerebrum_cli.servers.description import ExpectedModel, describe
from cerebrum_cli.servers.endpoint import Endpoint
from cerebrum_cli.servers.faults import BusyServerError, ExchangeError, UnreadableReplyError
from cerebrum_cli.servers.kind import ReplyChunk, ServerKind
from cerebrum_cli.servers.replies import RemoteSample

RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # before a server that has failed so often is asked what it is
MAX_CHARACTERS = 8  # of a prompt for each of its tokens; texts have 1 to 5
DROPPED_HINT = (
    "it may have dropped the rest: give it a larger context, as with OLLAMA_CONTEXT_LENGTH=16384 ollama serve"
)

State = Literal["connecting", "up", "busy", "failed", "unfit"]
Note = Callable[[NoticeEvent], None]


@dataclass(eq=False, slots=True)
class Job:
    """Samples of one request that a server generates together, and who gets their events."""

    request: Request
    samples: tuple[RemoteSample, ...]  # that have not ended
    emit: OnSampleEvent
    attempts: int = 0  # that have failed
    is_shown: bool = False  # part of the reply is
    refused_by: tuple[Server, ...] = ()
    task: asyncio.Task[None] | None = None

    def report(self, event: Event) -> None:
        """Pass on an event; a sample whose last it is has ended."""
        if isinstance(event, (FinishEvent, RefusedEvent)):
            self.samples = tuple(sample for sample in self.samples if sample.id != event.sequence)
        elif isinstance(event, TokenEvent) and self.request.ask.stream:
            self.is_shown = True
        self.emit(event)

    def refuse(self, error: CerebrumError) -> None:
        for sample in self.samples:
            self.report(RefusedEvent(sample.id, error, sample.origin))

    def fail(self, error: BaseException) -> None:
        """End all that its caller has asked for."""
        self.samples = ()
        self.emit(error)
        if self.task:
            self.task.cancel()

    def cancel(self) -> None:
        for sample in self.samples:
            self.report(sample.finish("cancelled"))
        if self.task:
            self.task.cancel()


class Server:
    def __init__(self, endpoint: Endpoint, alias: str, window: int | None, expected: ExpectedModel, note: Note) -> None:
        self.name, self.alias = endpoint.name, alias  # in results, the alias stands for the address
        self.client = Client(endpoint)
        self.info: ServerKind | None = None  # what it was when it last answered that
        self.running: list[Job] = []
        self.state: State = "connecting"
        self.problem: Exception | None = None  # the latest since its last reply
        self.rest_s = 0.0  # before it is asked what it is
        self.failures = 0  # since its last reply
        self.has_replied = False
        self.refusals = self.unreadable = 0  # before its first reply
        self.busy_since = 0.0  # if it runs any job
        self.connecting: asyncio.Task[None] | None = None
        self._window, self._expected, self._note = window, expected, note

    async def identify(self) -> None:
        """Find out what it serves. Raises ExchangeError, or EndpointError if it does not fit."""
        info = await describe(self.client, self._expected.messages)
        await self._expected.check(self.client, info)
        self.info = info
        self.state = "up"

    def fail(self, error: ExchangeError) -> None:
        self.problem = error
        if isinstance(error, BusyServerError):
            self.state = "busy"
            self.rest_s = error.retry_after
        else:
            self.state = "failed"
            self.rest_s = RETRY_S[min(self.failures, len(RETRY_S) - 1)]
            self.failures += 1

    def succeed(self) -> None:
        self.has_replied = True
        self.failures = 0
        if self.state == "up":
            self.problem = None

    @property
    def window(self) -> int:
        """Samples that it is given at a time."""
        return min(self._window or self.info.slots, self.info.max_window) if self.info else 0

    @property
    def outstanding(self) -> int:
        return sum(len(job.samples) for job in self.running)

    @property
    def has_room(self) -> bool:
        """Whether it can be given a job now; after a failure, one at a time until it has replied."""
        return self.state == "up" and self.outstanding < (1 if self.failures else self.window)

    @property
    def silent_since(self) -> float:
        """When its last byte arrived, or when it was given the first of the jobs that it runs."""
        return max(self.busy_since, self.client.heard_at)

    # Replies.

    async def answer(self, job: Job, info: ServerKind) -> None:
        """Generate the samples of a job. Raises ExchangeError, GrammarError; EndpointError if it affects all."""
        request = job.request
        origin = Origin(self.alias, info.weights)
        size = 0 if info.takes_messages else info.context_size
        samples = job.samples = tuple(replace(sample, context_size=size, origin=origin) for sample in job.samples)
        total = len(request.prompt_tokens)
        for sample in samples:
            job.report(PromptEvent(sample.id, 0 if request.ask.stream else total, total))
        await self._ask(job, info, samples)
        try:
            async with asyncio.TaskGroup() as group:  # one that fails ends the others
                for sample in samples:
                    group.create_task(self._continue(job, info, sample))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _continue(self, job: Job, info: ServerKind, sample: RemoteSample) -> None:
        while sample.needs_turn:
            await self._ask(job, info, [sample])

    async def _ask(self, job: Job, info: ServerKind, samples: Sequence[RemoteSample]) -> None:
        """Ask for the next turn of some samples, which share it; closing the stream stops the server."""
        turns = [sample.take_turn() for sample in samples]
        body = info.body(turns[0], samples[0].seed, len(samples))
        reading = dict(enumerate(samples))
        async with aclosing(self.client.stream(info.completion_path, body)) as answer:
            try:
                async for chunk in info.read(answer):
                    if not (sample := reading.get(chunk.index)):
                        continue  # its turn has ended
                    self._note_end(job.request, chunk)
                    for event in sample.add(chunk):
                        job.report(event)
                    if sample.needs_turn or sample not in job.samples:
                        del reading[chunk.index]
                    if not reading:
                        return
            except (*DAMAGE, UnknownToken) as error:
                raise UnreadableReplyError("damaged reply") from error
        raise UnreadableReplyError("the reply is incomplete")

    def _note_end(self, request: Request, chunk: ReplyChunk) -> None:
        if not (chunk.end and request.as_messages):
            return
        # Ollama drops messages that exceed its context, without an error.
        characters = sum(len(turn.content) for turn in chat_turns(request.ask.conversation))
        if characters > MAX_CHARACTERS * (chunk.prompt_tokens or inf):
            problem = f"{self.name} read {chunk.prompt_tokens} tokens of a prompt with {characters} characters"
            self._note(NoticeEvent(problem, DROPPED_HINT))
