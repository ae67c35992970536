"""Which server answers which request, and what happens when one fails.

All of it runs on one event loop. A request is computed at least once and reported once: one whose server is lost is
asked again elsewhere, with the same seed; a lost server is tried again with growing delays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cerebrum_cli.core.errors import CerebrumError, EndpointError
from cerebrum_cli.core.events import Event, NoticeEvent, PromptEvent, RefusedEvent
from cerebrum_cli.engine.remote.client import Client, RequestError
from cerebrum_cli.engine.remote.endpoint import Endpoint
from cerebrum_cli.engine.remote.failures import (
    BusyServerError,
    LostServerError,
    RefusedRequestError,
    no_server_error,
)
from cerebrum_cli.engine.remote.kind import NOT_FOUND, ServerInfo, raise_stream_error, refusal
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.sequence import Failure

MAX_LOSSES = 3  # servers lost with one request, after which it is refused
HEALTH = "/health"


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds: silence before a server's health is checked, the limit of that check, the delays before a lost
    server is tried again, and before a busy one is, and how long no server may answer.
    """

    silence: float = 30.0
    health: float = 25.0  # SGLang's check may take 20 s while it evaluates a long prompt
    retries: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 15.0)
    busy: float = 1.0  # unless the server says how long to wait
    give_up: float = 60.0


@dataclass(eq=False, slots=True)
class Place:
    """The server that has evaluated a request's prompt; None before one is chosen."""

    server: Server | None = None


@dataclass(eq=False, slots=True)
class Job:
    """Samples of one request that one server generates together; all jobs of the request share its `place`."""

    samples: tuple[RemoteSample, ...]
    emit: Callable[[Event | Failure], None]
    place: Place
    losses: int = 0
    has_output: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def unfinished(self) -> list[RemoteSample]:
        return [sample for sample in self.samples if not sample.is_finished]


@dataclass(eq=False, slots=True)
class Server:
    """One server: what it is, and how much it is doing.

    `window` is the number of samples it is given at a time, up to `limit`. `problem` is why it is lost, None if it is
    not; `is_busy` while it takes no more requests.
    """

    endpoint: Endpoint
    client: Client
    info: ServerInfo
    limit: int
    outstanding: int = 0
    problem: str | None = None
    is_busy: bool = False
    generated: int = 0  # tokens
    noted: set[tuple[str, str]] = field(default_factory=set)  # differences that were reported
    window: int = field(init=False)

    def __post_init__(self) -> None:
        self.window = self.limit

    def has_room(self, samples: int) -> bool:
        """Whether it can be given so many samples now."""
        is_usable = self.problem is None and not self.is_busy
        return is_usable and (self.outstanding == 0 or self.outstanding + samples <= self.window)


def choose_server(servers: Iterable[Server], samples: int) -> Server | None:
    """The server with the smallest part of its window in use that has room for so many samples; None without one."""
    fitting = [each for each in servers if each.has_room(samples)]
    return min(fitting, key=lambda each: each.outstanding / each.window, default=None)


class Pool:
    """The servers, and the jobs that wait for one."""

    def __init__(
        self,
        servers: Sequence[Server],
        reconnect: Callable[[Server], Any],
        patience: Patience,
    ) -> None:
        self.servers = servers
        self._reconnect = reconnect
        self._patience = patience
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._restoring: dict[Server, asyncio.Task[None]] = {}
        self._gone: asyncio.TimerHandle | None = None
        self._error: CerebrumError | None = None  # of a server that is back, but with something else

    def submit(self, jobs: Sequence[Job]) -> None:
        self._waiting.extend(jobs)
        if self._error:
            self._fail(self._error)
        else:
            self._assign()

    def cancel(self, should_cancel: Callable[[Job], bool]) -> None:
        """Stop jobs; each sample that has not finished does, as `cancelled`."""
        for job in [each for each in self._waiting if should_cancel(each)]:
            self._waiting.remove(job)
            finish_cancelled(job)
        for job in [each for each in self._running if should_cancel(each)]:
            if job.task:
                job.task.cancel()

    async def close(self) -> None:
        """Stop everything, and close all connections."""
        self.cancel(lambda _: True)
        tasks = [job.task for job in self._running if job.task]
        for task in self._restoring.values():
            task.cancel()
        await asyncio.gather(*tasks, *self._restoring.values(), return_exceptions=True)
        for server in self.servers:
            await server.client.close()

    # Assigning jobs to servers.

    def _assign(self) -> None:
        """Start waiting jobs, in order, while a server has room for the next.

        A job whose prompt a server has evaluated waits for that one, and no later job gets its room.
        """
        free = list(self.servers)
        for job in list(self._waiting):
            place = job.place.server
            is_bound = place is not None and place.problem is None
            server = choose_server([each for each in free if each is place or not is_bound], len(job.samples))
            if server:
                self._waiting.remove(job)
                self._start(job, server)
            elif is_bound and place in free:
                free.remove(place)
            elif not is_bound:
                break
        self._watch_for_the_end()

    def _start(self, job: Job, server: Server) -> None:
        job.place.server = server
        server.outstanding += len(job.samples)
        self._running.add(job)
        job.task = asyncio.get_running_loop().create_task(self._run(job, server))

    def _watch_for_the_end(self) -> None:
        """Fail the waiting jobs once no server has been usable for a while."""
        is_stuck = bool(self._waiting) and all(server.problem for server in self.servers)
        if not is_stuck and self._gone:
            self._gone.cancel()
            self._gone = None
        elif is_stuck and self._gone is None:
            self._gone = asyncio.get_running_loop().call_later(self._patience.give_up, self._give_up)

    def _give_up(self) -> None:
        self._gone = None
        reasons = {server.endpoint.name: server.problem or "busy" for server in self.servers}
        self._fail(no_server_error(reasons))

    def _fail(self, error: BaseException) -> None:
        """End all jobs with an error."""
        waiting, self._waiting = self._waiting, deque()
        for job in (*waiting, *self._running):
            job.emit(Failure(error))

    # One job.

    async def _run(self, job: Job, server: Server) -> None:
        """Have a server answer a job; whatever goes wrong ends here."""
        try:
            await self._answer(job, server)
            server.window = min(server.limit, server.window + 1)
        except asyncio.CancelledError:
            finish_cancelled(job)
        except RefusedRequestError as refused:
            refuse(job, refused.error)
        except BusyServerError as busy:
            self._postpone(job, server, busy)
        except LostServerError as lost:
            self._lose(job, server, lost)
        except BaseException as error:  # it concerns everything
            self._fail(error)
        finally:
            self._running.discard(job)
            server.outstanding -= len(job.samples)
            self._assign()

    def _postpone(self, job: Job, server: Server, busy: BusyServerError) -> None:
        """Ask a busy server's job again, elsewhere or later, unless part of its reply was shown."""
        server.window = max(1, server.window // 2)
        if job.has_output:
            job.emit(Failure(EndpointError(f"{server.endpoint.name}: {busy.reason}", "ask again later")))
        else:
            job.place.server = None
            self._waiting.appendleft(job)
        self._rest(server, self._patience.busy if busy.retry_after is None else busy.retry_after)

    def _lose(self, job: Job, server: Server, lost: LostServerError) -> None:
        """Ask a lost server's job again, unless part of its reply was shown, or it may be what kills servers."""
        job.losses += lost.was_sent
        name = server.endpoint.name
        is_alone = all(other.problem for other in self.servers if other is not server)
        if job.has_output or (is_alone and job.samples[0].request.stream):
            job.emit(Failure(EndpointError(f"{name}: {lost.reason}", "check the server, then ask again")))
        elif job.losses >= MAX_LOSSES:
            problem = f"{job.losses} servers failed at this request; the last one, {name}: {lost.reason}"
            refuse(job, EndpointError(problem, "check the log of the server"))
        else:
            self._waiting.appendleft(job)
        self._pause(server, job, lost.reason)

    def _rest(self, server: Server, seconds: float) -> None:
        """Give a busy server nothing for a while."""

        def resume() -> None:
            server.is_busy = False
            self._assign()

        server.is_busy = True
        asyncio.get_running_loop().call_later(seconds, resume)

    async def _answer(self, job: Job, server: Server) -> None:
        sample = job.samples[0]
        request = sample.request
        for each in job.samples:
            each.restart(server.info.context_size)
            job.emit(PromptEvent(each.id, 0, len(request.prompt_tokens)))
        for difference in server.info.kind.differences(request, server.info):
            if difference not in server.noted:
                server.noted.add(difference)
                job.emit(NoticeEvent(*difference))
        body = server.info.kind.completion_body(request, server.info, sample.seed, len(job.samples))
        try:
            if request.stream:
                await self._receive_stream(job, server, body)
            else:
                await self._receive_replies(job, server, body)
        except RequestError as error:
            refused = refusal(error, request, server.endpoint.name)
            raise refused if error.status == NOT_FOUND else RefusedRequestError(refused) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LostServerError("damaged reply") from error

    async def _receive_replies(self, job: Job, server: Server, body: dict[str, Any]) -> None:
        """Wait for whole replies, however long they take while the server is healthy."""
        kind = server.info.kind
        replies = kind.read_replies(await self._while_healthy(server, server.client.post(kind.completion_path, body)))
        if len(replies) != len(job.samples) or not all(reply.end for reply in replies):
            raise LostServerError(f"{len(replies)} replies instead of {len(job.samples)}")
        events = [list(sample.add(reply)) for sample, reply in zip(job.samples, replies, strict=True)]
        for sample, each in zip(job.samples, events, strict=True):
            server.generated += sample.tokens
            for event in each:
                job.emit(event)

    async def _receive_stream(self, job: Job, server: Server, body: dict[str, Any]) -> None:
        """Pass on the parts of a reply as they arrive."""
        [sample] = job.samples
        kind = server.info.kind
        async with contextlib.aclosing(server.client.stream(kind.completion_path, body)) as answers:

            async def checked() -> AsyncIterator[dict[str, Any]]:
                async for answer in answers:
                    raise_stream_error(answer)
                    yield answer

            parts = kind.read_stream(checked())
            try:
                while not sample.is_finished:
                    for event in sample.add(await self._while_healthy(server, anext(parts))):
                        job.has_output = job.has_output or not isinstance(event, PromptEvent)
                        job.emit(event)
            except StopAsyncIteration as error:
                raise LostServerError("the reply ends in the middle") from error
        server.generated += sample.tokens

    async def _while_healthy(self, server: Server, work: Any) -> Any:
        """Wait for something; in silence, check now and then that the server is alive."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([task], timeout=self._patience.silence))[0]:
                await self._require_health(server)
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _require_health(self, server: Server) -> None:
        """Raise LostServerError if the server no longer answers."""
        try:
            await asyncio.wait_for(server.client.check(HEALTH, self._patience.health), self._patience.health)
        except (LostServerError, TimeoutError, RequestError) as error:
            raise LostServerError("it stopped answering") from error
        except BusyServerError as error:  # it is loading the model again
            raise LostServerError(error.reason) from error

    # Servers that do not answer.

    def _pause(self, server: Server, job: Job, reason: str) -> None:
        """Use a lost server no more until it answers again."""
        server.problem = reason
        if server not in self._restoring:
            job.emit(NoticeEvent(f"{server.endpoint.name} is not used for now: {reason}", "it is tried again"))
            task = asyncio.get_running_loop().create_task(self._restore(server, job.emit))
            self._restoring[server] = task

    async def _restore(self, server: Server, emit: Callable[[Event | Failure], None]) -> None:
        """Try a server again until it answers; one that now serves something else ends everything."""
        delays = iter(self._patience.retries)
        delay = next(delays)
        while True:
            await asyncio.sleep(delay)
            delay = next(delays, delay)
            try:
                server.info = await self._reconnect(server)
                break
            except BusyServerError:  # it is loading its model
                server.problem, server.is_busy = None, True
            except LostServerError as error:
                server.problem, server.is_busy = error.reason, False
            except CerebrumError as error:
                server.problem, self._error = error.message, error
                self._fail(error)
            self._watch_for_the_end()
        del self._restoring[server]
        server.problem, server.is_busy, self._error = None, False, None
        emit(NoticeEvent(f"{server.endpoint.name} answers again", ""))
        self._assign()


def finish_cancelled(job: Job) -> None:
    """End the samples of a job that was stopped from here."""
    for sample in job.unfinished:
        job.emit(sample.cancelled())


def refuse(job: Job, error: CerebrumError) -> None:
    """End the samples of a job that no server will answer."""
    for sample in job.unfinished:
        sample.is_finished = True
        job.emit(RefusedEvent(sample.id, error))
