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
from cerebrum_cli.engine.remote.job import Job, Patience, Server
from cerebrum_cli.engine.remote.kind import ServerInfo, origin, raise_stream_error, refusal

HEALTH = "/health"
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
            problem = f"{self.name} is back with {origin(info.recorded)} instead of {origin(before.recorded)}"
            raise EndpointError(problem, "start it with the model it had, then run the same command again")
        self._info = info
        self.resize(min(self._most or info.slots, info.slots))

    async def close(self) -> None:
        await self.client.close()

    async def answer(self, job: Job) -> None:
        sample = job.samples[0]
        request = sample.request
        for difference in self.info.kind.differences(request, self.info):
            if difference not in self._noted:
                self._noted.add(difference)
                job.emit(NoticeEvent(*difference))
        body = self.info.kind.completion_body(request, self.info, sample.seed, len(job.samples))
        try:
            if request.stream:
                await self._receive_stream(job, body)
            else:
                await self._receive_replies(job, body)
        except RequestError as error:
            if error.status in OF_ONE_REQUEST:
                raise RefusedRequestError(refusal(error, request, self.alias)) from error
            raise refusal(error, request, self.name) from error
        except DAMAGE as error:
            raise LostServerError("damaged reply") from error

    async def _receive_replies(self, job: Job, body: dict[str, Any]) -> None:
        """Wait for whole replies, however long they take while the server is healthy."""
        kind = self.info.kind
        replies = kind.read_replies(await self._while_healthy(self.client.post(kind.completion_path, body)))
        self.generated += job.finish(replies)

    async def _receive_stream(self, job: Job, body: dict[str, Any]) -> None:
        """Pass on the parts of a reply as they arrive."""
        [sample] = job.samples
        kind = self.info.kind
        async with contextlib.aclosing(self.client.stream(kind.completion_path, body)) as answers:

            async def checked() -> AsyncIterator[dict[str, Any]]:
                async for answer in answers:
                    raise_stream_error(answer)
                    yield answer

            parts = kind.read_stream(checked())
            try:
                while not sample.is_finished:
                    for event in sample.add(await self._while_healthy(anext(parts))):
                        job.has_output = job.has_output or not isinstance(event, PromptEvent)
                        job.emit(event)
            except StopAsyncIteration as error:
                raise LostServerError("the reply ends in the middle") from error
        self.generated += sample.tokens

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
