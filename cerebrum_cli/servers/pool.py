"""A queue of requests, and the servers that answer them, each as many at a time as it runs; all on one event loop.

A server is `connecting` while it is asked what it is, then `up`: it is given requests, but after a failure one at a
time, until it has replied to one. If it fails, it is `failed`, or `busy` if it only asks for a rest: it is asked again
later, ever less often. One that does not fit, or refuses every request, is `unfit`, and not used any more.

A request that a server loses returns to the queue, with the same seeds; after three attempts it is refused. A reply of
which a part was shown cannot start again, so its error ends it. A request that a server refuses with a 4xx is refused,
unless that server has not replied to any, and another one may.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from time import monotonic

from cerebrum_cli.core.errors import EndpointError, GrammarError, NoServerError, PromptTooLong
from cerebrum_cli.core.events import Emit, NoticeEvent, ServersEvent
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.servers.description import ExpectedModel
from cerebrum_cli.servers.endpoint import EXACT, Servers
from cerebrum_cli.servers.faults import (
    REFUSED_HINT,
    BusyServerError,
    ExchangeError,
    LostServerError,
    RequestError,
    UnreadableReplyError,
)
from cerebrum_cli.servers.kind import ServerKind, origin
from cerebrum_cli.servers.server import Job, Server, State

ATTEMPTS = 3  # at a request
MAX_REFUSALS = 5  # requests that a server refuses before its first reply
SILENCE_S = 60.0  # without a byte, after which a server has failed if another one can take its requests
LONG_SILENCE_S = 300.0  # if none can: Ollama sends nothing while it loads a model or evaluates a prompt
GIVE_UP_S = 600.0  # without a byte of a reply from any server
UNREADABLE_HINT = "check the URL: it must be that of a language model server"
JOIN_S = 1.0  # for the other servers at the start, once one is up
TICK_S = 0.5
MAX_UNREADABLE = 3  # replies of a server before its first readable one
ACCOUNT_STATUSES = (401, 402)  # which concern no single request
FORBIDDEN = 403  # a key, or what is asked for
NO_EXACT_PROMPTS = NoticeEvent(
    "this server builds the prompt itself",
    f"for exact prompts, pull its model, and use {EXACT}, without a gateway",
)


class Pool:
    def __init__(self, servers: Servers, expected: ExpectedModel, emit: Emit) -> None:
        self._emit = emit  # of the latest caller
        self._noted = set[NoticeEvent]()
        self._servers = []
        for number, endpoint in enumerate(servers.endpoints, 1):
            alias = f"server {number}" if endpoint.name == endpoint.url else endpoint.name
            self._servers.append(Server(endpoint, alias, servers.window, expected, self._note))
        self._queue = deque[Job]()
        self._idle_at = monotonic()  # when there was nothing to do
        self._changed = asyncio.Event()  # the state of a server
        self._is_started = False
        self._watching = asyncio.create_task(self._watch())

    @property
    def known(self) -> list[ServerKind]:
        """What the servers are that have answered so far; for any thread, as the window."""
        return [server.info for server in self._servers if server.info]

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
        await self._wait_until(lambda: self._has("up", "unfit") or not self._has("connecting", "busy"), GIVE_UP_S)
        await self._wait_until(lambda: not self._has("connecting"), JOIN_S)
        for server in self._servers:
            if server.state == "unfit" and server.problem:
                raise server.problem
        if not self._has("up"):
            raise self._no_server()
        self._is_started = True
        self._note_differences()
        for server in self._servers:
            if server.state != "up":
                self._note_problem(server)

    def submit(self, jobs: Sequence[Job], scope: CancelScope) -> None:
        for job in jobs:
            self._emit = job.emit
            if scope.is_set():
                job.cancel()
            else:
                self._queue.append(job)
        if any(job.request.ask.stream for job in jobs) and not self._has("up"):  # someone waits
            for server in self._servers:
                if server.state == "failed":
                    server.state = "connecting"  # now, without a rest
                    self._connect(server)
        self._schedule()

    def cancel(self, should_cancel: Callable[[Job], bool]) -> None:
        """Stop jobs; each sample that has not ended does, as `cancelled`."""
        for job in list(self._jobs):
            if should_cancel(job):
                job.cancel()
        self._queue = deque(job for job in self._queue if job.samples)

    async def close(self) -> None:
        self.cancel(lambda _: True)
        tasks = [self._watching]
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
        self._changed.set()
        for job in list(self._queue):
            free = [server for server in self._servers if server.has_room]
            if not free:
                break
            fitting = [server for server in free if server not in job.refused_by or not self._others(job, server)]
            if fitting:
                self._queue.remove(job)
                self._start(job, min(fitting, key=lambda server: server.outstanding / server.window))
        if not self._has("connecting", "up", "busy"):
            is_over = not self._has("failed")  # no server will be up again
            for job in [job for job in self._queue if is_over or job.request.ask.stream]:  # someone waits
                self._queue.remove(job)
                job.fail(self._no_server())

    def _others(self, job: Job, server: Server) -> list[Server]:
        """The other servers that can take a job of a server."""
        others = [other for other in self._servers if other is not server]
        return [other for other in others if other.state == "up" and other not in job.refused_by]

    def _start(self, job: Job, server: Server) -> None:
        assert server.info, "only servers that are up have room"
        most = server.info.max_samples
        if len(job.samples) > most:
            self._queue.appendleft(replace(job, samples=job.samples[most:]))
            job.samples = job.samples[:most]
        if ignored := server.info.ignored(job.request):
            problem = f"{server.info.kind} ignores {', '.join(ignored)}"
            self._note(NoticeEvent(problem, "omit it, or use llama-server"))
        if not server.running:
            server.busy_since = monotonic()
        server.running.append(job)
        job.task = asyncio.create_task(server.answer(job, server.info))
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
                server.succeed()
            case GrammarError():
                job.refuse(error)
            case RequestError():
                self._refuse(job, server, error)
            case LostServerError() | BusyServerError():
                self._lose(server, error)
                self._retry(job, server, error)
            case EndpointError():
                self._queue.appendleft(job)
                self._retire(server, error)
            case _:  # a bug
                self._queue.appendleft(job)
                self._fail(error)
        self._schedule()

    def _refuse(self, job: Job, server: Server, error: RequestError) -> None:
        """Refuse a job for a status of 4xx, unless that may be the server's fault."""
        reason = error.explain(job.request, server.alias)
        refuses_all = error.status in ACCOUNT_STATUSES or (error.status == FORBIDDEN and not server.has_replied)
        if job.is_shown or isinstance(reason, PromptTooLong) or (server.has_replied and not refuses_all):
            job.refuse(reason)
            return
        server.refusals += 1
        job.refused_by += (server,)
        if refuses_all or self._others(job, server):
            self._queue.appendleft(job)
        else:
            job.refuse(reason)
        if refuses_all or (server.refusals >= MAX_REFUSALS and not job.request.ask.stream):
            self._retire(server, server.client.fault(error, REFUSED_HINT, "it refuses every request: "))

    def _retry(self, job: Job, server: Server, error: LostServerError | BusyServerError) -> None:
        """Ask for a job again, unless part of its reply was shown, or it has failed too often."""
        is_stream = job.request.ask.stream
        if job.is_shown or (is_stream and not self._has("connecting", "up", "busy")):
            job.fail(EndpointError(f"{server.name}: {error}", "check the server, then ask again"))
            return
        if isinstance(error, UnreadableReplyError) and not server.has_replied:
            server.unreadable += 1
            if server.unreadable >= MAX_UNREADABLE:
                self._queue.appendleft(job)
                self._retire(server, EndpointError(f"{server.name}: {error}", UNREADABLE_HINT))
                return
        if isinstance(error, LostServerError):
            self._note_problem(server)
            is_attempt = error.was_sent
        else:
            is_attempt = is_stream  # a row waits for a busy server
        if is_attempt:
            job.attempts += 1
        if job.attempts < ATTEMPTS:
            self._queue.appendleft(job)
            return
        problem = f"this request failed {job.attempts} times, last on {server.alias}: {error}"
        job.refuse(EndpointError(problem, "check the log of the server"))

    # The states of servers.

    def _has(self, *states: State) -> bool:
        """Whether any server is in one of these states."""
        return any(server.state in states for server in self._servers)

    async def _wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    def _connect(self, server: Server) -> None:
        if server.connecting:
            server.connecting.cancel()
        server.connecting = asyncio.create_task(self._identify(server))

    async def _identify(self, server: Server) -> None:
        """Ask a server what it is until it answers, each time after a rest if it has failed."""
        while server.state in ("connecting", "busy", "failed"):
            if server.state != "connecting":
                await asyncio.sleep(server.rest_s)
            server.state = "connecting"
            try:
                await server.identify()
            except ExchangeError as error:
                server.fail(error)
                if isinstance(error, BusyServerError) and not self._is_started:
                    self._note_problem(server)
            except Exception as error:  # it does not fit, or a bug
                self._retire(server, error)
            else:
                if self._is_started:
                    self._note_differences()
                    self._emit(ServersEvent())  # so that it is recorded before its first reply
            self._schedule()

    def _lose(self, server: Server, error: ExchangeError) -> None:
        """Give a server nothing until it has answered what it is."""
        if server.state == "up":
            server.fail(error)
            self._connect(server)

    def _retire(self, server: Server, error: Exception) -> None:
        if server.connecting and server.connecting is not asyncio.current_task():
            server.connecting.cancel()
        server.state = "unfit"
        server.problem = error
        if not isinstance(error, EndpointError) or all(other.state == "unfit" for other in self._servers):
            self._fail(error)
        elif self._is_started:
            self._note_problem(server)

    async def _watch(self) -> None:
        """End what takes too long."""
        while True:
            await asyncio.sleep(TICK_S)
            for server in self._servers:
                limit = self._silence_limit(server)
                if server.running and monotonic() - server.silent_since > limit:
                    self._lose(server, LostServerError(f"silent for {limit:g} s"))
                    for job in server.running:
                        if job.task:
                            job.task.cancel()
            heard_at = max(server.client.heard_at for server in self._servers)
            if not any(self._jobs):
                self._idle_at = monotonic()
            elif monotonic() - max(self._idle_at, heard_at) > GIVE_UP_S:
                self._fail(self._no_server())

    def _silence_limit(self, server: Server) -> float:
        """Seconds without a byte after which a server has failed: fewer if one that works can take its requests."""
        for other in self._servers:
            is_silent = other.running and other.client.heard_at < server.silent_since
            if other is not server and other.state == "up" and not (is_silent or other.failures):
                return SILENCE_S
        return LONG_SILENCE_S

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
        else:
            self._note(NoticeEvent(f"{server.name} is unavailable: {problem or 'no answer yet'}", "retrying"))

    def _note_differences(self) -> None:
        """Note whether servers build prompts themselves, and differ from each other."""
        if any(info.takes_messages for info in self.known):
            self._note(NO_EXACT_PROMPTS)
        variants = {f"{origin(info.recorded)} {info.build}" for info in self.known}
        if len(variants) > 1:
            problem = f"the servers differ, so answers may depend on the server ({'; '.join(sorted(variants))})"
            self._note(NoticeEvent(problem, "for identical answers, use identical machines, builds and models"))
