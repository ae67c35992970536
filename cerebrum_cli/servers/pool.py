"""Which server answers which row, and how a failing server is retried, all on one event loop.

A server that fails is asked what it is, ever less often, until it answers. Then it is given one row, and more once it
has answered that. One that is busy rests.

A row that is lost with its server is asked again, with the same seed. As many may be lost with one that kills servers,
those that were lost twice have servers to themselves: at most a quarter of those that were lost together. A row that is
lost alone, for the third time or later, is refused.

Once nothing else waits, free servers are also asked rows that have waited long elsewhere, sooner if the other server
has sent nothing meanwhile; the first reply counts. A silent server is lost once another one was faster.
"If a server fails" in docs/how-to/several-machines.md lists most events. `client.py` translates responses into errors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import monotonic

from cerebrum_cli.core.errors import CerebrumError, EndpointError, NoServerError
from cerebrum_cli.core.events import Emit, ServersEvent
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.servers.endpoint import ServerTimeouts
from cerebrum_cli.servers.exchanges import Exchange
from cerebrum_cli.servers.faults import BusyServerError, ExchangeError, LostServerError, RefusedRequestError
from cerebrum_cli.servers.notices import Notices
from cerebrum_cli.servers.server import LATE, NOT_ASKED, AsyncioTask, PoolJob, Server

ATTEMPTS = 3  # at a row; twice as many at servers that answer nothing else, unless it timed out and none works
SPLIT = 4  # divides a group of rows that was lost together
STUCK = 10  # times the longest reply, after which no server is expected to answer


class Pool:
    def __init__(self, servers: Sequence[Server], timeouts: ServerTimeouts, emit: Emit) -> None:
        self._servers = servers
        self._timeouts = timeouts
        self._notices = Notices(emit, lambda: any(self._jobs) or not self._is_connected, timeouts.notices)
        self._waiting = deque[PoolJob]()
        self._suspects = deque[PoolJob]()  # which were lost twice
        self._longest_s = 0.0  # of all replies
        self._alive_at = monotonic()  # when a reply last arrived, or there was nothing to do
        self._has_started = asyncio.Event()  # a server can be used, or the start has failed
        self._error: BaseException | None = None  # of the start
        self._is_connected = self._is_closed = False

    async def connect(self) -> None:
        """Return soon after a server is usable. Raises NoServerError if none answers, EndpointError if one is unfit."""
        self._ticking = asyncio.create_task(self._tick())
        await asyncio.wait([self._reach(server) for server in self._servers], timeout=self._timeouts.join)
        await self._has_started.wait()
        if self._error:
            raise self._error
        for server in self._servers:
            if not server.is_known:
                self._notices.note_problem(server, "retrying")
        self._is_connected = True
        self._schedule()

    @property
    def known(self) -> list[Server]:
        """The servers that have answered so far; for any thread, as the window."""
        return [server for server in self._servers if server.is_known]

    @property
    def window(self) -> int:
        return sum(server.window for server in self._servers)

    def submit(self, jobs: Sequence[PoolJob], scope: CancelScope) -> None:
        for job in jobs:
            self._notices.emit = job.pooled.emit
            self._waiting.append(job)
            if scope.is_set():
                job.cancel()
        self._schedule()

    def cancel(self, should_cancel: Callable[[PoolJob], bool]) -> None:
        """Stop jobs; each sample that has not finished does, as `cancelled`."""
        for job in list(self._jobs):
            if should_cancel(job):
                job.cancel()
        self._schedule()

    async def close(self) -> None:
        self._is_closed = True
        self.cancel(lambda _: True)
        tasks = [job.task for job in self._jobs]
        tasks += [server.reaching for server in self._servers]
        running = [self._ticking, *filter(None, tasks)]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for server in self._servers:
            await server.client.aclose()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._timeouts.tick)
            self._schedule()

    @property
    def _jobs(self) -> Iterator[PoolJob]:
        """All jobs that have not finished."""
        yield from self._waiting
        yield from self._suspects
        for server in self._servers:
            yield from server.running

    # Jobs that wait.

    def _schedule(self) -> None:
        """Start all that can be started now; called after every change, and every `tick` seconds."""
        if self._is_closed:
            return
        for server in self._servers:
            if server.is_due:
                self._reach(server)
        for queue in (self._suspects, self._waiting):
            self._start_from(queue)
        if not self._waiting:
            self._start_copies()
        if error := self._stuck():
            self._fail(error)
        else:
            self._note_servers()

    def _start_from(self, queue: deque[PoolJob]) -> None:
        while queue:
            job = queue[0]
            server = self._choose(job, self._servers)
            if job.unfinished and server is None:
                return
            queue.popleft()
            if job.unfinished and server:
                self._start(job, server)

    def _start_copies(self) -> None:
        """Also ask servers with free slots for the rows that have waited longest on other servers."""
        late = monotonic() - max(self._timeouts.hedge, LATE * self._longest_s)
        for server in self._servers:
            for job in list(server.running):
                silence_s = server.silence(job)
                if job.start >= late and silence_s < self._timeouts.silent_row:  # so do later ones
                    break
                racers = job.racers
                if job.request.ask.stream or any(racer.start > job.start for racer in racers):
                    continue
                others = [
                    other
                    for other in self._servers
                    if other not in (server, *racers.values()) and (job.start < late or 0 < other.reply_s < silence_s)
                ]
                if other := self._choose(job, others):
                    self._start(replace(job), other)
                elif not racers:  # nor is there one for later jobs
                    break

    def _choose(self, job: PoolJob, servers: Sequence[Server]) -> Server | None:
        """The server to give a job now: the one that has its prompt, or one that works; the idlest."""
        needs_proof = bool(job.group and self._waiting)  # that the server answers other rows
        fitting = [server for server in servers if server.has_room(job) and not (needs_proof and server.failures)]

        def preference(server: Server) -> tuple[bool, int, float]:
            return server is not job.pooled.server, server.failures, server.outstanding / server.window

        return min(fitting, key=preference, default=None)

    def _start(self, job: PoolJob, server: Server) -> None:
        if rest := job.split(server.max_samples(job.request)):
            self._waiting.appendleft(rest)
        job.pooled.server = server
        job.pooled.jobs[job] = server
        self._notices.note_limits(server, job.request)
        server.start(job)
        job.task = asyncio.create_task(Exchange(server, job).run())
        job.task.add_done_callback(lambda task: self._end(task, job, server))

    # Jobs that end.

    def _end(self, task: AsyncioTask, job: PoolJob, server: Server) -> None:
        server.remove(job)
        del job.pooled.jobs[job]
        error = LostServerError(str(server.problem)) if task.cancelled() else task.exception()
        if error is None or isinstance(error, RefusedRequestError):
            self._end_answered(job, server, error)
        elif not job.unfinished:
            pass  # it was cancelled
        elif isinstance(error, BusyServerError) and not job.has_output:
            server.rest(error)
            self._requeue(job)
        elif isinstance(error, (ExchangeError, EndpointError)):
            self._lose(job, server, error)
        else:  # a bug
            self._waiting.append(job)
            self._fail(error)
        self._schedule()

    def _end_answered(self, job: PoolJob, server: Server, refusal: RefusedRequestError | None) -> None:
        self._alive_at = monotonic()
        self._longest_s = max(self._longest_s, self._alive_at - job.start)
        if refusal:
            job.refuse(refusal.error)
        server.note_answer(job, is_reply=refusal is None)
        for late, other in job.pooled.jobs.items():
            if not late.unfinished:
                late.cancel()
                other.note_loss(late, server)

    def _lose(self, job: PoolJob, server: Server, error: ExchangeError | EndpointError) -> None:
        """Ask for a job again, unless part of its reply was shown, or it is to blame."""
        lost = error if isinstance(error, LostServerError) else LostServerError(str(error))
        if not lost.server_works:
            server.lose(error)
        others = [other for other in self._servers if other is not server and other.is_reached and not other.failures]
        if job.has_output or (job.request.ask.stream and not others):
            is_named = isinstance(error, EndpointError) and server.name in error.message
            named = error if is_named else EndpointError(f"{server.name}: {lost}", "check the server, then ask again")
            job.pooled.emit(named)
            return
        together = 1 if lost.server_works else server.lost_together
        job.losses += lost.was_sent
        if job.losses >= ATTEMPTS - 1:
            job.group = max(1, together // SPLIT)
        is_timed_out_everywhere = lost.timed_out and not others
        attempts = ATTEMPTS if server.failures <= 1 or is_timed_out_everywhere else 2 * ATTEMPTS
        if together == 1 and job.losses >= attempts:
            problem = f"this request failed {job.losses} times, last on {server.alias}: {lost}"
            hint = "allow more time with --set row_timeout=SECONDS, or " if lost.timed_out else ""
            job.refuse(EndpointError(problem, f"{hint}check the log of the server"))
        else:
            self._requeue(job)

    def _requeue(self, job: PoolJob) -> None:
        job.pooled.server = None
        racing = {sample.id for racer in job.racers for sample in racer.samples}  # which may still be answered
        job.samples = tuple(sample for sample in job.unfinished if sample.id not in racing)
        if not job.samples:
            return
        if job.group:
            self._suspects.appendleft(job)
        else:
            self._waiting.append(job)

    # When to give up.

    def _stuck(self) -> CerebrumError | None:
        """The error if no server fits, or none has answered for too long.

        At the start, one server that does not fit is enough, and those that do not answer may not be waited for at all.
        """
        problems = [server.problem for server in self._servers]
        misfits = [problem for problem in problems if isinstance(problem, EndpointError)]
        if misfits and (not self._is_connected or len(misfits) == len(problems)):
            return misfits[0]
        if not any(self._jobs) and self._is_connected:
            self._alive_at = monotonic()
        is_busy = any(isinstance(problem, BusyServerError) for problem in problems)
        may_wait = self._is_connected or self._timeouts.waits_at_start or is_busy or None in problems
        if may_wait and self._left_s > 0:
            return None
        if None in problems:
            hint = "check their logs; batch and eval wait longer with --set patience=SECONDS"
            return NoServerError(f"no reply from any server within {self._patience:.3g} s", hint)
        reasons = "; ".join(f"{server.name}: {server.problem}" for server in self._servers)
        hint = "start one or correct the URL, then run the same command again"
        return NoServerError(f"no server answers ({reasons})", hint)

    @property
    def _patience(self) -> float:
        return max(self._timeouts.patience, self._timeouts.row_timeout or 0.0, STUCK * self._longest_s)

    @property
    def _left_s(self) -> float:
        """Seconds of the patience that are left."""
        alive_at = max(self._alive_at, *(server.heard_at for server in self._servers))
        return alive_at + self._patience - monotonic()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._has_started.set()
        for job in self._jobs:
            job.pooled.emit(error)
        self._waiting.clear()
        self._suspects.clear()

    # Servers.

    def _reach(self, server: Server) -> AsyncioTask:
        server.reaching = asyncio.create_task(server.open())
        server.reaching.add_done_callback(lambda task: self._end_reach(task, server))
        return server.reaching

    def _end_reach(self, task: AsyncioTask, server: Server) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, (ExchangeError, EndpointError)):  # it is busy while it loads its model
            server.lose(error)
            server.stop_all()
        elif error:  # a bug
            self._fail(error)
        elif server.is_reached:
            self._note_reached()
        server.reaching = None
        self._schedule()

    def _note_reached(self) -> None:
        self._has_started.set()
        self._notices.note_differences(self.known)
        if self._is_connected:
            self._notices.emit(ServersEvent())  # so that it is recorded before its first reply

    def _note_servers(self) -> None:
        """Note problems of servers, and their ends; none while others may still answer at the start."""
        if not self._is_connected and any(server.problem is NOT_ASKED for server in self._servers):
            return
        is_usable = any(server.problem is None for server in self._servers)
        hint = "retrying" if is_usable else f"giving up in {self._left_s:.0f} s"
        for server in self._servers:
            if server.is_noteworthy or (not is_usable and not self._is_connected):
                self._notices.note_problem(server, hint)
            else:
                self._notices.note_end(server)
