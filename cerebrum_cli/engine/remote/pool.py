"""Which server answers which request, and what happens when one fails.

All of it runs on one event loop. A request is computed at least once and reported once: one whose server is lost is
sent to another one with the same seed. For each server, a task goes through the states of its `Breaker`:

    open       wait, then ask what it is: `_reach`; an answer that fits leads to half-open, at first to closed
    half-open  give it one request: a reply closes it, a loss opens it again
    closed     give it requests, and watch that it shows signs of life: `Server.watch`; a loss opens it

Jobs that were lost with two servers are suspects: one waits until nothing else does and a server is empty, so that no
other is lost with it. Everything fails once no server has been usable for as long as the timeouts allow.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from cerebrum_cli.core.errors import EndpointError, NoServerError
from cerebrum_cli.core.events import Event, NoticeEvent, ServersEvent, ServerTokens, StageEvent
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.remote.client import BusyServerError, LostServerError, RefusedRequestError
from cerebrum_cli.engine.remote.description import remarks
from cerebrum_cli.engine.remote.job import MAX_LOSSES, PoolJob, ServerNotices, ServerTimeouts
from cerebrum_cli.engine.remote.server import CANCELLED, LateReplyError, MissingServerError, Server
from cerebrum_cli.engine.sequence import Failure

RECALLED = BusyServerError("another server is free")


class Pool:
    """The servers, and the jobs that wait for one."""

    def __init__(self, servers: Sequence[Server], timeouts: ServerTimeouts, emit: Callable[[Event], None]) -> None:
        self._servers = servers
        self._timeouts = timeouts
        self._emit = emit  # later replaced by that of the latest job
        self._notices = ServerNotices(timeouts.notices)
        self._waiting: deque[PoolJob] = deque()
        self._suspects: deque[PoolJob] = deque()
        self._slowest = 0.0  # seconds of the slowest reply so far
        self._giving_up: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._has_asked = asyncio.Event()  # a server what it is, or has failed
        self._error: BaseException | None = None  # of the start
        self._is_connected = False

    async def connect(self) -> None:
        """Start to ask the servers; return soon after one can be used. The others join as they answer.

        Raises NoServerError if none answers in time, EndpointError if one does not fit.
        """
        self._tasks = [asyncio.create_task(self._serve(server)) for server in self._servers]
        self._watch_for_the_end()
        await self._until(lambda: any(server.breaker.state != "open" for server in self._servers))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeouts.join):
                await self._until(lambda: all(server.info or server.problem for server in self._servers))
        self._is_connected = True
        for server in self._servers:
            if not server.info:
                problem = f"{server.name} is not available yet: {server.reason}"
                self._notices.add(server.name, NoticeEvent(problem, "using the other servers until it answers"))
        self._remark()
        self._report()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds that asking a server changes. Raises what ends the start."""
        while not condition():
            self._has_asked.clear()
            await self._has_asked.wait()
            if self._error:
                raise self._error

    @property
    def known(self) -> list[Server]:
        """The servers that have answered so far; for any thread, as the next two."""
        return [server for server in self._servers if server.info]

    @property
    def generated(self) -> tuple[ServerTokens, ...]:
        known = self.known if len(self._servers) > 1 else []
        return tuple(ServerTokens(each.name, each.generated, each.breaker.state != "closed") for each in known)

    @property
    def window(self) -> int:
        """Number of samples that the servers are given at a time."""
        return sum(server.window for server in self._servers)

    def submit(self, jobs: Sequence[PoolJob], scope: CancelScope) -> None:
        """Answer jobs, unless their scope is cancelled by now."""
        if scope.is_cancelled:
            for job in jobs:
                job.cancel()
            return
        self._waiting += jobs
        for job in jobs:
            self._emit = job.emit
        if not self._fail_if_none_fits():
            self._assign()

    def cancel(self, should_cancel: Callable[[PoolJob], bool]) -> None:
        """Stop jobs; each sample that has not finished does, as `cancelled`."""
        for queue in (self._waiting, self._suspects):
            for job in [each for each in queue if should_cancel(each)]:
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

    # Jobs that wait.

    def _assign(self) -> None:
        """Start waiting jobs, in order, while a server can take the next.

        A job whose prompt a server has evaluated waits for that one, and no later job takes its slots.
        """
        free, bound = list(self._servers), list[PoolJob]()
        while self._waiting:
            job = self._waiting[0]
            if server := self._choose(job, free):
                self._start(job.take(server.known_info.max_samples), server)
                if not job.samples:
                    self._waiting.popleft()
            elif owner := self._owner(job):
                bound.append(self._waiting.popleft())
                free = [each for each in free if each is not owner]
            else:
                break
        self._waiting.extendleft(reversed(bound))
        while self._suspects and not self._waiting and (server := self._choose(self._suspects[0], self._servers)):
            self._start(self._suspects.popleft(), server)
        if not self._waiting and any(server.is_idle(self._now) for server in self._servers):
            self._recall()
        self._watch_for_the_end()

    def _owner(self, job: PoolJob) -> Server | None:
        """The server that has evaluated the prompt of a job, unless it is lost or busy."""
        server = job.pooled.server
        return server if isinstance(server, Server) and server.is_usable else None

    def _choose(self, job: PoolJob, free: Sequence[Server]) -> Server | None:
        """The server to give a job now: the one with the smallest share in use, one that is half-open last."""
        owner, now = self._owner(job), self._now
        fitting = [each for each in free if owner in (None, each) and each.has_room(job, now)]
        return min(fitting, key=lambda each: (each.breaker.state, each.outstanding / each.window), default=None)

    def _start(self, job: PoolJob, server: Server) -> None:
        job.pooled.server = server
        task = asyncio.create_task(server.answer(job))
        server.add(job, task, self._now)
        task.add_done_callback(lambda task: self._end(task, job, server))

    def _recall(self) -> None:
        """Take back the jobs of half-open servers, which may never answer, for one that has nothing to do."""
        for server in self._servers:
            if server.breaker.state == "half-open":
                server.stop(RECALLED, (job for job in server.running if not job.has_output))

    def _requeue(self, job: PoolJob) -> None:
        """Let a job wait again, behind the others: it may be what fails."""
        job.pooled.server = job.stopped_by = None
        (self._suspects if job.is_suspect else self._waiting).append(job)

    # Jobs that end.

    def _end(self, task: asyncio.Task[None], job: PoolJob, server: Server) -> None:
        """Act on how a server's answer to a job ended."""
        error = job.stopped_by or (CANCELLED if task.cancelled() else task.exception())
        server.remove(job)
        if error is None or not job.unfinished:
            self._finish(job, server)
        elif error is CANCELLED:
            job.cancel()
        elif error is RECALLED:
            self._requeue(job)
        elif isinstance(error, RefusedRequestError):
            server.alive_at = self._now
            job.refuse(error.error)
        elif isinstance(error, BusyServerError):
            self._postpone(job, server, error)
        elif isinstance(error, LostServerError):
            self._lose(job, server, error)
        elif isinstance(error, EndpointError):
            self._open(server, error, job)
            self._requeue(job)
            self._leave_out(server, error)
        else:  # a bug
            self._requeue(job)
            self._fail(error)
        self._assign()
        self._report()

    def _finish(self, job: PoolJob, server: Server) -> None:
        was_usable, now = server.is_usable, self._now
        server.breaker, server.busy_since, server.alive_at = server.breaker.finished(), None, now
        server.window = min(server.limit, server.window + 1)
        self._slowest = max(self._slowest, now - job.start)
        if server.is_usable and not was_usable:
            self._notices.recover(server.name, NoticeEvent(f"{server.name} is available again", ""))

    def _postpone(self, job: PoolJob, server: Server, busy: BusyServerError) -> None:
        """Ask for a busy server's job again, elsewhere or later, unless part of its reply was shown."""
        if job.has_output:
            job.emit(Failure(EndpointError(f"{server.name}: {busy.reason}", "ask again later")))
        else:
            self._requeue(job)
        seconds = self._timeouts.busy if busy.retry_after is None else busy.retry_after
        if seconds > self._timeouts.patience:
            self._open(server, LostServerError(f"{busy.reason} (retry after {seconds:g} s)"), job)
            return
        if server.rest(busy, self._now, seconds) >= self._timeouts.busy_notice:
            wait = "retrying" if busy.retry_after is None else f"retrying in {seconds:g} s, as requested"
            notice = NoticeEvent(f"{server.name} is busy: {busy.reason}", f"{wait}, until it is available")
            self._notices.add(server.name, notice)
        asyncio.get_running_loop().call_at(server.busy_until, self._assign)

    def _lose(self, job: PoolJob, server: Server, lost: LostServerError) -> None:
        """Ask for a lost server's job again, unless part of its reply was shown, or it may be what kills servers.

        A server that has answered nothing since it was reached proves nothing, unless there is no other job, and it has
        failed for long.
        """
        is_only = not self._waiting and not any(each.running for each in self._servers)
        has_failed_for_long = server.breaker.failures >= len(self._timeouts.retries)
        is_late = isinstance(lost, LateReplyError)
        job.losses += is_late or (lost.was_sent and (server.breaker.has_answered or (is_only and has_failed_for_long)))
        if not is_late:
            self._open(server, lost, job)
        is_alone = all(other.breaker.state == "open" for other in self._servers if other is not server)
        if job.has_output or (is_alone and job.samples[0].request.stream):
            job.emit(Failure(EndpointError(f"{server.name}: {lost.reason}", "check the server, then ask again")))
        elif job.losses >= MAX_LOSSES:
            problem = f"this request failed {job.losses} times, last on {server.alias}: {lost.reason}"
            job.refuse(EndpointError(problem, "check the log of the server"))
        else:
            self._requeue(job)

    def _open(self, server: Server, problem: LostServerError | EndpointError, job: PoolJob) -> None:
        """Open the breaker of a server because of a job, unless that was sent before the server was last reached."""
        before = server.breaker.state
        if before == "open" or job.opening != server.openings:
            return
        server.set_problem(problem)
        server.breaker = server.breaker.failed(self._now, self._timeouts.delays, with_request=True)
        server.was_lost.set()
        if before == "closed" and isinstance(problem, LostServerError):
            notice = NoticeEvent(f"{server.name} is unavailable: {server.reason}", "retrying until it answers")
            self._notices.add(server.name, notice)

    def _leave_out(self, server: Server, error: EndpointError) -> None:
        """Do without a server that is something else than expected; everything fails at the start, or if all are."""
        server.set_problem(error)
        if not self._is_connected:
            self._fail(error)
        elif not self._fail_if_none_fits():
            self._notices.add(server.name, NoticeEvent(error.message, error.hint))

    def _fail_if_none_fits(self) -> bool:
        misfits = [each.problem for each in self._servers if isinstance(each.problem, EndpointError)]
        if has_none := len(misfits) == len(self._servers):
            self._fail(misfits[0])
        return has_none

    def _fail(self, error: BaseException) -> None:
        """End everything."""
        self._error = error
        self._has_asked.set()
        for job in chain(self._waiting, self._suspects, *(server.running for server in self._servers)):
            job.emit(Failure(error))
        self._waiting.clear()
        self._suspects.clear()

    # Servers.

    async def _serve(self, server: Server) -> None:
        """Go through the states of a server, until the pool is closed."""
        try:
            while True:
                server.was_lost.clear()
                if server.breaker.state == "open":
                    await asyncio.sleep(server.breaker.retry_at - self._now)
                    await self._reach(server)
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._timeouts.tick):
                            await server.was_lost.wait()
                    window = server.window
                    await server.watch(self._slowest)
                    if server.window > window:
                        self._assign()
                        self._emit(ServersEvent(self.generated))  # so that more is submitted
                    self._report()
        except Exception as error:  # a bug
            self._fail(error)

    async def _reach(self, server: Server) -> None:
        """Ask a server what it is; from then on it is given requests, unless it does not fit."""
        was_known = server.info is not None
        try:
            await server.open()
        except BusyServerError as busy:  # it is loading its model
            server.set_problem(busy)
            pause = min(busy.retry_after or self._timeouts.busy, self._timeouts.retries[-1])
            server.breaker = replace(server.breaker, retry_at=self._now + pause)
        except (LostServerError, EndpointError) as error:
            server.set_problem(error)
            server.breaker = server.breaker.failed(self._now, self._timeouts.delays, with_request=False)
            server.stop(LostServerError(server.reason), server.running)  # what was sent before it was lost
            if isinstance(error, EndpointError):
                self._leave_out(server, error)
        else:
            self._remark()
            if not was_known:
                if self._is_connected:
                    self._emit(ServersEvent(self.generated))  # so that it is recorded before its first reply
                self._notices.recover(server.name, NoticeEvent(f"{server.name} is available now", ""))
        self._fail_without_answer()
        self._has_asked.set()
        self._assign()
        self._report_wait()
        self._report()

    def _fail_without_answer(self) -> None:
        """End the start if no server answers and none is waited for, or if no address is that of a server."""
        first, problems = self._servers[0], [server.problem for server in self._servers]
        if self._is_connected or not all(isinstance(problem, LostServerError) for problem in problems):
            return
        if all(isinstance(problem, MissingServerError) for problem in problems):
            problem = f"{first.name}: {first.reason}"
            self._fail(EndpointError(problem, "check the URL: it must be that of a language model server"))
        elif not self._timeouts.waits_at_start:
            self._fail(self._no_server)

    def _report_wait(self) -> None:
        """Report what is waited for while no server is usable."""
        if self._error or not (self._giving_up and all(server.problem for server in self._servers)):
            return
        for server in self._servers:
            message = f"waiting for {server.name}: {server.reason}"
            if self._is_connected or self._timeouts.waits_at_start:
                hint = f"giving up after {self._timeouts.patience:g} s without a server"
                self._notices.add(server.name, NoticeEvent(message, hint), repeats=True)
            else:
                self._emit(StageEvent(message, 0, 1))

    def _watch_for_the_end(self) -> None:
        """Fail everything once no server has been usable for too long while something waits for one."""
        has_work = self._waiting or self._suspects or any(server.running for server in self._servers)
        is_stuck = (has_work or not self._is_connected) and not any(server.is_usable for server in self._servers)
        if not is_stuck and self._giving_up:
            self._giving_up.cancel()
            self._giving_up = None
        elif is_stuck and self._giving_up is None:
            self._giving_up = asyncio.get_running_loop().call_later(self._timeouts.patience, self._give_up)

    def _give_up(self) -> None:
        self._giving_up = None
        if any(server.running for server in self._servers):  # a reply may come
            self._giving_up = asyncio.get_running_loop().call_later(self._timeouts.tick, self._give_up)
        else:
            self._fail(self._no_server)

    @property
    def _no_server(self) -> NoServerError:
        problem = f"no server answers ({'; '.join(f'{server.name}: {server.reason}' for server in self._servers)})"
        return NoServerError(problem, "start one or correct the URL, then run the same command again")

    def _remark(self) -> None:
        """Report what users should know of the servers that are in use, each remark once."""
        known = self.known if self._is_connected else []
        for remark in remarks({server.name: server.known_info for server in known}):
            self._notices.add(remark.message, remark)

    def _report(self) -> None:
        for notice in self._notices.take(self._now):
            self._emit(notice)
