"""A queue of requests, and the servers that answer them, each as many at a time as it runs; all on one event loop.

A request that a server loses returns to the queue, with the same seeds; after three attempts it is refused. A reply of
which a part was shown cannot start again, so its error ends it. A request that a server refuses with a 4xx is refused,
unless that server has not replied to any, and another one may.

A server that fails is asked what it is, ever less often, until it answers. It is then given one request at a time until
it has replied to one. A server that does not fit, or refuses every request, is not used any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from time import monotonic

from cerebrum_cli.core.errors import EndpointError, NoServerError, PromptTooLong
from cerebrum_cli.core.events import Emit, NoticeEvent, ServersEvent
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.description import NO_EXACT_PROMPTS, ExpectedModel
from cerebrum_cli.servers.endpoint import Servers
from cerebrum_cli.servers.faults import (
    BusyServerError,
    ExchangeError,
    LostServerError,
    RefusedRequestError,
    RequestError,
)
from cerebrum_cli.servers.kind import origin
from cerebrum_cli.servers.server import REFUSED_HINT, Job, Server

ATTEMPTS = 3  # at a request
MAX_REFUSALS = 5  # requests that a server refuses before its first reply
RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # before a server that has failed so often is asked what it is
GIVE_UP_S = 600.0  # without a byte of a reply from any server
JOIN_S = 1.0  # for the other servers at the start, once one is up
BUSY_NOTICE_S = 5.0  # of a busy server before users are notified
TICK_S = 0.5
KEY_STATUSES = (401, 403)


class Pool:
    def __init__(self, servers: Servers, expected: ExpectedModel, emit: Emit) -> None:
        self._emit = emit  # of the latest caller
        self._noted = set[NoticeEvent]()
        self._servers = []
        for number, endpoint in enumerate(servers.endpoints, 1):
            alias = f"server {number}" if endpoint.name == endpoint.url else endpoint.name
            self._servers.append(Server(endpoint, alias, servers.window, expected, self._note))
        self._queue = deque[Job]()
        self._alive_at = monotonic()  # when there was nothing to do
        self._has_changed = asyncio.Event()  # a server is up, or has failed
        self._is_connected = False
        self._ticking = asyncio.create_task(self._tick())

    @property
    def known(self) -> list[Server]:
        """The servers that have answered so far; for any thread, as the window."""
        return [server for server in self._servers if server.is_known]

    @property
    def window(self) -> int:
        return sum(server.window for server in self._servers)

    @property
    def _jobs(self) -> Iterator[Job]:
        """Those that have not ended."""
        yield from self._queue
        for server in self._servers:
            yield from (job for job in server.running if job.samples)

    # For callers.

    async def connect(self) -> None:
        """Return soon after a server is up. Raises NoServerError if none answers, EndpointError if one does not fit."""
        for server in self._servers:
            self._connect(server)
        joined_by = monotonic() + JOIN_S
        while not self._is_started(is_late=monotonic() >= joined_by):
            self._has_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._has_changed.wait()
        self._is_connected = True
        self._note_differences()
        for server in self._servers:
            if not server.is_up:
                self._note_problem(server)

    def submit(self, jobs: Sequence[Job], scope: CancelScope) -> None:
        for job in jobs:
            self._emit = job.emit
            if scope.is_set():
                job.cancel()
            else:
                self._queue.append(job)
        if not any(server.is_up for server in self._servers):
            for server in self._servers:
                self._connect(server)
                if any(job.request.ask.stream for job in jobs):  # someone waits
                    server.wake.set()
        self._schedule()

    def cancel(self, should_cancel: Callable[[Job], bool]) -> None:
        """Stop jobs; each sample that has not ended does, as `cancelled`."""
        for job in list(self._jobs):
            if should_cancel(job):
                job.cancel()
        self._queue = deque(job for job in self._queue if job.samples)

    async def close(self) -> None:
        self.cancel(lambda _: True)
        tasks = [self._ticking]
        for server in self._servers:
            tasks += filter(None, (server.connecting, *(job.task for job in server.running)))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            await server.client.aclose()

    # The queue.

    def _schedule(self) -> None:
        """Give jobs to the servers that have room, the least busy first; called after every change."""
        for job in list(self._queue):
            free = [server for server in self._servers if server.has_room]
            if not free:
                return
            fitting = [server for server in free if not self._can_go_elsewhere(job, server)]
            if fitting:
                self._queue.remove(job)
                self._start(job, min(fitting, key=lambda server: server.outstanding / server.window))

    def _can_go_elsewhere(self, job: Job, server: Server) -> bool:
        """Whether a server has refused a job that another one may take."""
        others = (other for other in self._servers if other.is_up and other not in job.refused_by)
        return server in job.refused_by and any(others)

    def _start(self, job: Job, server: Server) -> None:
        most = server.info.max_samples
        if len(job.samples) > most:
            self._queue.appendleft(replace(job, samples=job.samples[most:]))
            job.samples = job.samples[:most]
        self._note_limits(server, job.request)
        job.started_at = monotonic()
        server.running.append(job)
        job.task = asyncio.create_task(server.answer(job))
        job.task.add_done_callback(lambda task: self._end(task, job, server))

    def _end(self, task: asyncio.Task[None], job: Job, server: Server) -> None:
        server.running.remove(job)
        error: BaseException | None = LostServerError(str(server.problem))  # of a silent server
        if not task.cancelled():
            error = task.exception()
        match error:
            case _ if not job.samples and error:
                pass  # it was cancelled
            case None:
                self._note_reply(server)
            case RefusedRequestError():
                job.refuse(error.error)
            case RequestError():
                self._refuse(job, server, error)
            case BusyServerError() if not job.is_shown:
                self._rest(job, server, error)
            case ExchangeError():
                self._lose(server, error)
                self._retry(job, server, error)
            case EndpointError():
                self._queue.appendleft(job)
                self._retire(server, error)
            case _:  # a bug
                self._queue.appendleft(job)
                self._fail(error)
        self._schedule()

    def _note_reply(self, server: Server) -> None:
        server.has_replied = True
        server.failures = 0
        if server.is_up:
            server.problem = None

    def _refuse(self, job: Job, server: Server, error: RequestError) -> None:
        """Refuse a job for a status of 4xx, unless that may be the server's fault."""
        reason = server.explain(error, job.request)
        if server.has_replied or job.is_shown or isinstance(reason, PromptTooLong):
            job.refuse(reason)
            return
        server.refusals += 1
        job.refused_by += (server,)
        if error.status in KEY_STATUSES:
            self._queue.appendleft(job)
            self._retire(server, server.client.fault(error, REFUSED_HINT))
            return
        if self._can_go_elsewhere(job, server):
            self._queue.appendleft(job)
        else:
            job.refuse(reason)
        if server.refusals >= MAX_REFUSALS and not job.request.ask.stream:
            self._retire(server, server.client.fault(error, REFUSED_HINT, "it refuses every request: "))

    def _rest(self, job: Job, server: Server, error: BusyServerError) -> None:
        """Give a busy server nothing for as long as it asks for; someone who waits for a reply waits three times."""
        server.rests_until = monotonic() + error.retry_after
        server.problem = error
        if error.retry_after >= BUSY_NOTICE_S:
            self._note(NoticeEvent(f"{server.name} is busy: {error}", f"retrying in {error.retry_after:.0f} s"))
        asyncio.get_running_loop().call_later(error.retry_after, self._schedule)
        if job.request.ask.stream:
            self._retry(job, server, error)
        else:
            self._queue.appendleft(job)

    def _retry(self, job: Job, server: Server, error: ExchangeError) -> None:
        """Ask for a job again, unless part of its reply was shown, or it has failed too often."""
        is_waited_for = job.request.ask.stream and not any(other.is_up for other in self._servers)
        if job.is_shown or is_waited_for:
            job.fail(EndpointError(f"{server.name}: {error}", "check the server, then ask again"))
            return
        if not server.is_up:
            self._note_problem(server)
        if not isinstance(error, LostServerError) or error.was_sent:
            job.attempts += 1
        if job.attempts < ATTEMPTS:
            self._queue.appendleft(job)
            return
        problem = f"this request failed {job.attempts} times, last on {server.alias}: {error}"
        job.refuse(EndpointError(problem, "check the log of the server"))

    # Servers.

    def _connect(self, server: Server) -> None:
        if server.connecting is None:
            server.connecting = asyncio.create_task(self._identify(server))
            server.connecting.add_done_callback(lambda task: self._end_connect(task, server))

    async def _identify(self, server: Server) -> None:
        """Ask a server what it is until it answers. Raises EndpointError if it does not fit."""
        while True:
            if server.failures:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S[min(server.failures, len(RETRY_S)) - 1]):
                        await server.wake.wait()
            server.wake.clear()
            try:
                await server.identify()
                return
            except ExchangeError as error:
                server.problem = error
                server.failures += 1
                self._has_changed.set()
                self._end_streams()

    def _end_connect(self, task: asyncio.Task[None], server: Server) -> None:
        server.connecting = None
        error = None if task.cancelled() else task.exception()
        if isinstance(error, EndpointError):
            self._retire(server, error)
        elif error:  # a bug
            server.problem = error
            self._fail(error)
        elif server.is_up and self._is_connected:
            self._note_differences()
            self._emit(ServersEvent())  # so that it is recorded before its first reply
        self._has_changed.set()
        self._schedule()

    def _lose(self, server: Server, error: ExchangeError) -> None:
        """Give a server nothing until it has answered what it is."""
        if server.is_up:
            server.is_up = False
            server.problem = error
            server.failures += 1
            server.wake.clear()
            self._connect(server)

    def _retire(self, server: Server, error: EndpointError) -> None:
        """Do not use a server any more."""
        server.is_up = False
        server.problem = error
        if all(isinstance(other.problem, EndpointError) for other in self._servers):
            self._fail(error)
        elif self._is_connected:
            self._note_problem(server)

    def _end_streams(self) -> None:
        """End the requests for which someone waits, if no server is up."""
        problems = [server.problem for server in self._servers]
        if any(server.is_up for server in self._servers) or any(isinstance(each, BusyServerError) for each in problems):
            return
        waiting = [job for job in self._queue if job.request.ask.stream]
        for job in waiting:
            self._queue.remove(job)
            job.fail(self._no_server())

    async def _tick(self) -> None:
        """End what takes too long."""
        while True:
            await asyncio.sleep(TICK_S)
            for server in self._servers:
                if server.running and server.silence_s > 0:
                    self._end_silence(server)
            if self._is_connected and not any(self._jobs):
                self._alive_at = monotonic()
            elif self._is_connected and self._has_given_up:
                self._fail(self._no_server())
            self._schedule()

    def _end_silence(self, server: Server) -> None:
        limit = max(server.kind.silence_s(job.request) for job in server.running)
        self._lose(server, LostServerError(f"silent for {limit:g} s"))
        for job in server.running:
            if job.task:
                job.task.cancel()

    # The start and the end.

    def _is_started(self, is_late: bool) -> bool:
        """Whether a server is up, and the others have answered, or it is late. Raises EndpointError, NoServerError."""
        for server in self._servers:
            if server.problem and not isinstance(server.problem, ExchangeError):
                raise server.problem
        are_asked = all(server.is_up or server.problem for server in self._servers)
        if any(server.is_up for server in self._servers):
            return are_asked or is_late
        loading = [server for server in self._servers if isinstance(server.problem, BusyServerError)]
        if self._has_given_up or (are_asked and not loading):
            raise self._no_server()
        for server in loading:
            self._note_problem(server)
        return False

    @property
    def _has_given_up(self) -> bool:
        return monotonic() - max(self._alive_at, *(server.client.heard_at for server in self._servers)) > GIVE_UP_S

    def _no_server(self) -> NoServerError:
        reasons = "; ".join(f"{server.name}: {server.problem or 'no reply'}" for server in self._servers)
        hint = "start one or correct the URL, then run the same command again"
        return NoServerError(f"no server answers ({reasons})", hint)

    def _fail(self, error: BaseException) -> None:
        for job in list(self._jobs):
            job.fail(error)
        self._queue.clear()

    # Notices.

    def _note(self, notice: NoticeEvent) -> None:
        if notice not in self._noted:
            self._noted.add(notice)
            self._emit(notice)

    def _note_problem(self, server: Server) -> None:
        problem = server.problem
        if isinstance(problem, EndpointError):
            self._note(NoticeEvent(problem.message, problem.hint))
        elif problem or not server.is_up:
            self._note(NoticeEvent(f"{server.name} is unavailable: {problem or 'no answer yet'}", "retrying"))

    def _note_differences(self) -> None:
        """Note whether servers build prompts themselves, and differ from each other."""
        if any(server.info.takes_messages for server in self.known):
            self._note(NO_EXACT_PROMPTS)
        variants = {f"{origin(server.info.recorded)} {server.info.build}" for server in self.known}
        if len(variants) > 1:
            problem = f"the servers differ, so answers may depend on the server ({'; '.join(sorted(variants))})"
            self._note(NoticeEvent(problem, "for identical answers, use identical machines, builds and models"))

    def _note_limits(self, server: Server, request: Request) -> None:
        """Note settings of a request that have no effect on a server, or another one."""
        kind = server.kind
        if ignored := kind.ignored(request, server.info):
            problem = f"{kind.name} ignores {', '.join(ignored)}"
            self._note(NoticeEvent(problem, "omit it, or use llama-server"))
        if request.params.has_penalties and not kind.counts_last_tokens:
            problem = f"{kind.name}'s penalties count the whole text or reply, not the last 64 tokens"
            self._note(NoticeEvent(problem, "replies differ from those of llama.cpp; use --set repeat_penalty=1"))
