"""Which server answers which job, all on one event loop; `server_health.py` has the rules.

A request is computed at least once and reported once: if its server is lost, another one gets it, with the same seed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain

from cerebrum_cli.core.errors import EndpointError, NoServerError
from cerebrum_cli.core.events import Event, NoticeEvent, ServersEvent, ServerTokens
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.remote.client import BusyServerError, ExchangeError, LostServerError, RefusedRequestError
from cerebrum_cli.engine.remote.description import remarks
from cerebrum_cli.engine.remote.server import CANCELLED, PoolJob, Server
from cerebrum_cli.engine.remote.server_health import MAX_LOSSES, NOT_ASKED, RECENT, ServerNotices, ServerTimeouts


class Pool:
    def __init__(self, servers: Sequence[Server], timeouts: ServerTimeouts, emit: Callable[[Event], None]) -> None:
        self._servers = servers
        self._timeouts = timeouts
        self._emit = emit  # later replaced by that of the latest job
        self._notices = ServerNotices(timeouts.notices)
        self._waiting: deque[PoolJob] = deque()
        self._lost: list[PoolJob] = []  # jobs that were lost with their server
        self._recent: deque[float] = deque(maxlen=RECENT)  # seconds of the latest replies
        self._tasks: list[asyncio.Task[None]] = []
        self._has_started = asyncio.Event()  # a server can be used, or the start has failed
        self._error: BaseException | None = None  # of the start
        self._is_connected = False
        self._stuck_since = self._now  # without a usable server, or before the first reply without a part of one

    async def connect(self) -> None:
        """Return soon after a server is usable. Raises NoServerError if none answers, EndpointError if one is unfit."""
        asked = {server: asyncio.create_task(self._reach(server)) for server in self._servers}
        self._tasks = [asyncio.create_task(self._serve(server, task)) for server, task in asked.items()]
        await asyncio.wait(asked.values(), timeout=self._timeouts.join)
        await self._has_started.wait()
        if self._error:
            raise self._error
        for server in self._servers:
            if not server.is_known:
                self._note(server)
        self._assign()
        self._is_connected = True

    @property
    def known(self) -> list[Server]:
        """The servers that have answered so far; for any thread, as what they have generated, and the window."""
        return [server for server in self._servers if server.is_known]

    @property
    def generated(self) -> ServersEvent:
        servers = self.known if len(self._servers) > 1 else []
        return ServersEvent(
            tuple(ServerTokens(server.name, server.generated, server.health.state != "closed") for server in servers)
        )

    @property
    def window(self) -> int:
        return sum(server.health.window for server in self._servers)

    def submit(self, jobs: Sequence[PoolJob], scope: CancelScope) -> None:
        for job in jobs:
            self._emit = job.pooled.emit
            if scope.is_set():
                job.cancel()
            else:
                self._waiting.append(job)
        self._assign()

    def cancel(self, should_cancel: Callable[[PoolJob], bool]) -> None:
        """Stop jobs; each sample that has not finished does, as `cancelled`."""
        for queue in (self._waiting, self._lost):
            for job in list(filter(should_cancel, queue)):
                queue.remove(job)
                job.cancel()
        for server in self._servers:
            server.stop(CANCELLED, filter(should_cancel, server.running))

    async def close(self) -> None:
        running = [task for server in self._servers for task in server.running.values()]
        self.cancel(lambda _: True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*running, *self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.client.aclose()

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def _slow(self) -> float:
        """Seconds of a slow reply, one in twenty of the latest."""
        return sorted(self._recent)[len(self._recent) * 19 // 20] if self._recent else 0.0

    # Jobs that wait.

    def _assign(self) -> None:
        """Start waiting jobs in order, but let others pass those that wait for the server with their prompt."""
        # lost jobs, beside others
        self._start_lost(must_be_proven=True)
        # waiting jobs
        at = 0
        while at < len(self._waiting):
            job = self._waiting[at]
            if server := self._choose(job):
                self._start(job.take(server.info.max_samples), server)
                if not job.samples:
                    del self._waiting[at]
            elif self._owner(job):
                at += 1
            else:
                break
        # lost jobs, if there are no others
        if not self._waiting:
            self._start_lost(must_be_proven=False)
        self._fail_if_stuck()
        # notices, if someone reads them
        if self._has_jobs or not self._is_connected:
            for notice in self._notices.take(self._now):
                self._emit(notice)

    def _start_lost(self, must_be_proven: bool) -> None:
        """Start jobs that were lost: of those with equal losses, the one that was sent last before its first.

        Those with more losses are the first on servers that have just answered others, the last on other ones.
        """
        for losses in sorted({job.losses for job in self._lost}, reverse=must_be_proven):
            jobs = sorted((job for job in self._lost if job.losses == losses), key=lambda job: job.sent_at)
            while jobs and (server := self._choose(jobs[-1], must_be_proven)):
                self._lost.remove(jobs[-1])
                self._start(jobs.pop(), server)

    @property
    def _has_jobs(self) -> bool:
        return bool(self._waiting or self._lost or self._is_running)

    @property
    def _is_running(self) -> bool:
        return any(server.running for server in self._servers)

    def _owner(self, job: PoolJob) -> Server | None:
        """The server that has evaluated the prompt of a job, unless it is lost or busy."""
        server = job.pooled.server
        return server if isinstance(server, Server) and server.health.problem is None else None

    def _choose(self, job: PoolJob, must_be_proven: bool = False) -> Server | None:
        """The server to give a job now: one that has answered since it was reached, or failed least; the idlest."""
        owner = self._owner(job)
        candidates = [owner] if owner else self._servers
        if must_be_proven:
            candidates = [server for server in candidates if server.health.is_proven]
        fitting = [server for server in candidates if server.has_room(job, self._now)]

        def preference(server: Server) -> tuple[bool, int, float]:
            health = server.health
            return not health.is_proven, health.failures, server.outstanding / health.window

        return min(fitting, key=preference, default=None)

    def _start(self, job: PoolJob, server: Server) -> None:
        job.pooled.server = server
        for problem, hint in server.info.kind.differences(job.request, server.info):
            self._notices.add(problem, NoticeEvent(problem, hint))
        task = asyncio.create_task(server.answer(job))
        server.add(job, task, self._now)
        task.add_done_callback(lambda task: self._end(task, job, server))

    def _requeue(self, job: PoolJob) -> None:
        job.pooled.server = job.stopped_by = None
        (self._lost if job.losses else self._waiting).append(job)

    # Jobs that end.

    def _end(self, task: asyncio.Task[None], job: PoolJob, server: Server) -> None:
        error = job.stopped_by or (CANCELLED if task.cancelled() else task.exception())
        server.remove(job)
        if error is None or not job.samples:
            self._recent.append(self._now - job.start)
            self._note_answer(server, job, is_reply=True)
        elif error is CANCELLED:
            job.cancel()
        elif isinstance(error, RefusedRequestError):
            job.refuse(error.error)
            self._note_answer(server, job, is_reply=False)
        elif isinstance(error, BusyServerError) and not job.has_output:
            self._requeue(job)
            self._rest(server, error)
        elif isinstance(error, ExchangeError):
            self._lose(job, server, error if isinstance(error, LostServerError) else LostServerError(str(error)))
        else:
            self._requeue(job)
            if not isinstance(error, EndpointError):  # a bug
                self._fail(error)
            elif server.health.is_reached:
                self._open(server, error)
        self._assign()

    def _note_answer(self, server: Server, job: PoolJob, is_reply: bool) -> None:
        self._stuck_since = server.alive_at = self._now
        server.health.answer(self._now, job.losses, is_reply)
        self._recover(server)

    def _rest(self, server: Server, busy: BusyServerError) -> None:
        health = server.health
        health.rest(busy, self._now, self._timeouts)
        if health.busy_until - health.busy_since >= self._timeouts.busy_notice:
            self._note(server, f"retrying in {health.busy_until - self._now:.0f} s")
        asyncio.get_running_loop().call_at(health.busy_until, self._assign)

    def _lose(self, job: PoolJob, server: Server, lost: LostServerError) -> None:
        """Ask for a lost server's job again, unless part of its reply was shown, or it is to blame."""
        is_last, is_killer = not (self._waiting or self._is_running), False
        if lost.server_works:
            job.failures += 1
        elif lost.was_sent and server.health.is_evidence(job.losses, is_last, self._timeouts):
            job.losses += 1
            job.sent_at = job.start if job.losses == 1 else job.sent_at
            is_killer = job.is_alone and job.losses >= MAX_LOSSES
        if not lost.server_works and server.health.is_reached:
            self._open(server, lost)
        others = [other for other in self._servers if other is not server]
        if job.has_output or (job.request.stream and all(other.health.state == "open" for other in others)):
            job.pooled.emit(EndpointError(f"{server.name}: {lost}", "check the server, then ask again"))
        elif is_killer or job.failures >= MAX_LOSSES:
            problem = f"this request failed {job.losses + job.failures} times, last on {server.alias}: {lost}"
            job.refuse(EndpointError(problem, "check the log of the server"))
            if is_killer:
                self._forgive_others()
        else:
            self._requeue(job)

    def _forgive_others(self) -> None:
        """Treat lost jobs as new: the cause of their losses is known."""
        for job in chain(self._lost, *(server.running for server in self._servers)):
            job.losses = 0
        self._waiting += self._lost
        self._lost.clear()

    def _fail_if_stuck(self) -> None:
        """Fail everything if no server fits, or once none has been usable for too long while something waits for one.

        Neither may the first reply take so long, unless parts of it arrive. At the start, one server that does not fit
        is enough, and those that do not answer may not be waited for at all.
        """
        problems = [server.health.problem for server in self._servers]
        misfits = [problem for problem in problems if isinstance(problem, EndpointError)]
        has_answer = self._recent or not self._is_running  # or none is expected
        if misfits and (not self._is_connected or len(misfits) == len(problems)):
            self._fail(misfits[0])
        elif (None in problems and has_answer) or (self._is_connected and not self._has_jobs):
            self._stuck_since = self._now
        elif None in problems:
            heard_at = max(self._stuck_since, *(server.heard_at for server in self._servers))
            limit = max(self._timeouts.patience, self._timeouts.row_timeout or 0)
            if self._now - heard_at >= limit:
                hint = "check their logs; batch and eval wait longer with --set patience=SECONDS"
                self._fail(NoServerError(f"no reply of any server within {limit:g} s", hint))
        elif not self._is_running and NOT_ASKED not in problems:  # else a reply may come
            stuck_s = self._now - self._stuck_since
            left_s = self._timeouts.patience - stuck_s
            waits = self._is_connected or self._timeouts.waits_at_start
            if left_s <= 0 or not (waits or any(isinstance(problem, BusyServerError) for problem in problems)):
                reasons = "; ".join(f"{server.name}: {server.health.problem}" for server in self._servers)
                hint = "start one or correct the URL, then run the same command again"
                self._fail(NoServerError(f"no server answers ({reasons})", hint))
            elif not self._is_connected or stuck_s >= self._timeouts.busy_notice:
                for server in self._servers:
                    self._note(server, f"giving up in {left_s:.0f} s")

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._has_started.set()
        for job in chain(self._waiting, self._lost, *(server.running for server in self._servers)):
            job.pooled.emit(error)
        self._waiting.clear()
        self._lost.clear()

    # Servers.

    async def _serve(self, server: Server, asked: asyncio.Task[None]) -> None:
        health = server.health
        try:
            await asked
            while True:
                server.was_lost.clear()
                if health.state == "open":
                    await asyncio.sleep(health.retry_at - self._now)
                    await self._reach(server)
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._timeouts.tick):
                            await server.was_lost.wait()
                    self._fail_if_stuck()  # before a row that is late is asked again
                    server.stop_late(self._slow, self._now)
                    await server.require_life()
                    self._assign()
        except Exception as error:  # a bug
            self._fail(error)

    async def _reach(self, server: Server) -> None:
        try:
            await server.open()
        except (BusyServerError, LostServerError, EndpointError) as error:  # it is busy while it loads its model
            self._open(server, error)
            server.stop(LostServerError(str(error)), server.running)  # what was sent before it was lost
        else:
            self._recover(server)
            for remark in remarks({server.name: server.info for server in self.known}):
                self._notices.add(remark.message, remark)
            if self._is_connected:
                self._emit(self.generated)  # so that it is recorded before its first reply
            self._has_started.set()
        self._assign()

    def _open(self, server: Server, problem: ExchangeError | EndpointError) -> None:
        server.health.fail(problem, self._now, self._timeouts)
        server.was_lost.set()
        if self._is_connected and not isinstance(problem, BusyServerError):
            self._note(server)

    def _recover(self, server: Server) -> None:
        if server.health.recover(self._now):
            self._notices.recover(server.name)

    def _note(self, server: Server, hint: str = "retrying") -> None:
        problem = server.health.problem
        notice = NoticeEvent(f"{server.name} is unavailable: {problem}", hint)
        if isinstance(problem, EndpointError):
            notice = NoticeEvent(problem.message, problem.hint)
        self._notices.add(server.name, notice)
