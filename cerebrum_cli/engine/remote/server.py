"""A server as the pool sees it: what it is asked for a job, and what its answers mean for the job's samples."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import NoticeEvent, PromptEvent
from cerebrum_cli.engine.remote.client import Client, RequestError
from cerebrum_cli.engine.remote.endpoint import Endpoint
from cerebrum_cli.engine.remote.failures import DAMAGE, BusyServerError, LostServerError, RefusedRequestError
from cerebrum_cli.engine.remote.job import Job, Patience, Server, read_replies
from cerebrum_cli.engine.remote.kind import Part, ServerInfo, origin, raise_stream_error, refusal
from cerebrum_cli.engine.remote.replies import RemoteSample

HEALTH = "/health"
GUESSED = "repetition checks and --think use the text, and may be off by a few tokens"
OF_ONE_REQUEST = (400, 413)  # others concern every request

DescribeServer = Callable[[Endpoint, Client], Awaitable[ServerInfo]]
"""Asks a server what it is, and checks that it fits."""


class HttpServer(Server):
    """A server that is reached over HTTP."""

    def __init__(
        self,
        endpoint: Endpoint,
        alias: str,
        window: int | None,
        describe: DescribeServer,
        patience: Patience,
    ) -> None:
        super().__init__(endpoint.name, alias)
        self._most = window
        self.endpoint = endpoint
        self.client = Client(endpoint)
        self._info: ServerInfo | None = None
        self._describe = describe
        self._patience = patience
        self._noted: set[tuple[str, str]] = set()  # differences that were reported

    @property
    def info(self) -> ServerInfo:
        """What it is, as it was last opened."""
        assert self._info
        return self._info

    @property
    def variant(self) -> str:
        return origin(self.recorded)

    @property
    def remarks(self) -> Sequence[NoticeEvent]:
        if not self.info.has_other_weights:
            return ()
        problem = f"{self.info.kind.name} serves the model's original weights, not those of the local file"
        return [NoticeEvent(problem, "answers differ from those of llama.cpp")]

    @property
    def larger_context(self) -> str:
        return f"restart the server with a larger {self.info.kind.context_option}"

    @property
    def context_size(self) -> int:
        return self.info.context_size

    @property
    def max_samples(self) -> int:
        return self.info.max_samples

    @property
    def recorded(self) -> dict[str, str]:
        return self.info.recorded

    async def open(self) -> None:
        before, info = self._info, await self._describe(self.endpoint, self.client)
        if before and origin(before.recorded) != origin(info.recorded):
            problem = f"{self.name} now serves {origin(info.recorded)} instead of {origin(before.recorded)}"
            raise EndpointError(problem, "restart it with the previous model, then run the same command again")
        self._info = info
        self.resize(min(self._most or info.slots, info.slots))

    async def close(self) -> None:
        await self.client.close()

    async def answer(self, job: Job) -> None:
        request = job.samples[0].request
        for difference in self.info.kind.differences(request, self.info):
            self._note(job, *difference)
        for sample in job.samples:
            sample.begin_turns()
        try:
            await (self._receive_stream(job) if request.stream else self._receive_replies(job))
        except RequestError as error:
            if error.status in OF_ONE_REQUEST:
                raise RefusedRequestError(refusal(error, request, self.alias)) from error
            raise refusal(error, request, self.name) from error
        except DAMAGE as error:
            raise LostServerError("damaged reply") from error
        self.generated += sum(sample.tokens for sample in job.samples)

    def _note_guesses(self, job: Job) -> None:
        """Report that controls act on text, before the last event of a sample."""
        if any(sample.was_guessed for sample in job.samples):
            self._note(job, f"{self.name} did not send all token ids", GUESSED)

    def _note(self, job: Job, problem: str, hint: str) -> None:
        """Emit a notice, once for all requests."""
        if (problem, hint) not in self._noted:
            self._noted.add((problem, hint))
            job.emit(NoticeEvent(problem, hint))

    async def _receive_replies(self, job: Job) -> None:
        """Wait for whole replies, however long they take while the server is healthy.

        Nothing is emitted before the last turn: until then, another server may be asked for all of them.
        """
        events = read_replies(job.samples, await self._ask(job.samples))
        while waiting := [sample for sample in job.samples if sample.needs_turn]:
            answers = await asyncio.gather(*(self._ask([sample]) for sample in waiting), return_exceptions=True)
            for sample, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                events += read_replies([sample], answer)
        self._note_guesses(job)
        job.report(events)

    async def _ask(self, samples: Sequence[RemoteSample]) -> Sequence[Part]:
        """Ask for the next turn of some samples, which share it if there are several."""
        kind, first = self.info.kind, samples[0]
        turns = [sample.take_turn() for sample in samples]
        body = kind.completion_body(turns[0], self.info, first.seed, len(samples))
        return kind.read_replies(await self._while_healthy(self.client.post(kind.completion_path, body)))

    async def _receive_stream(self, job: Job) -> None:
        """Pass on the parts of a reply as they arrive; closing the stream of a turn stops the server."""
        [sample] = job.samples
        while not sample.is_finished:
            body = self.info.kind.completion_body(sample.take_turn(), self.info, sample.seed, 1)
            async with contextlib.aclosing(self.client.stream(self.info.kind.completion_path, body)) as answers:
                await self._receive_turn(job, sample, answers)

    async def _receive_turn(self, job: Job, sample: RemoteSample, answers: AsyncIterator[dict[str, Any]]) -> None:
        """Pass on the parts of a turn, up to its end or to an intervention."""

        async def checked() -> AsyncIterator[dict[str, Any]]:
            async for answer in answers:
                raise_stream_error(answer)
                yield answer

        parts = self.info.kind.read_stream(checked())
        try:
            while not (sample.is_finished or sample.needs_turn):
                events = sample.add(await self._while_healthy(anext(parts)))
                for event in events:
                    job.has_output = job.has_output or not isinstance(event, PromptEvent)
                    job.report([event])
                if sample.is_interrupted and not sample.is_finished:
                    self._note_guesses(job)
                    job.report(sample.interrupt())
        except StopAsyncIteration as error:
            raise LostServerError("the reply is incomplete") from error

    async def _while_healthy(self, work: Any) -> Any:
        """Wait for something; in silence, check now and then that the server is alive."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([task], timeout=self._patience.silence))[0]:
                await self._require_health()
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _require_health(self) -> None:
        """Raise LostServerError if the server no longer answers."""
        try:
            await asyncio.wait_for(self.client.check(HEALTH, self._patience.health), self._patience.health)
        except (LostServerError, TimeoutError, RequestError) as error:
            raise LostServerError("it stopped answering") from error
        except BusyServerError as error:  # it is loading the model again
            raise LostServerError(error.reason) from error
