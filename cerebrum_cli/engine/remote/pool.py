"""Which server answers which request, and what happens when one fails.

All of it runs on one event loop. A request is computed at least once and reported once: one whose server is lost is
sent to another one with the same seed; a lost server is tried again with growing delays.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from math import inf

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import (
    Event,
    NoticeEvent,
    PromptEvent,
    ServerTokens,
    StageEvent,
)
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.remote.client import BusyServerError, LostServerError, RefusedRequestError
from cerebrum_cli.engine.remote.job import MAX_LOSSES, PoolJob, Server, ServerTimeouts
from cerebrum_cli.engine.sequence import Failure

AHEAD = 2  # requests submitted for each sample that the servers run at a time


class Pool:
    """The servers, and the jobs that wait for one."""

    def __init__(self, servers: Sequence[Server], timeouts: ServerTimeouts, emit: Callable[[Event], None]) -> None:
        self._servers = servers
        self._timeouts = timeouts
        self._emit = emit  # later replaced by that of the latest job
        self._reported: set[NoticeEvent] = set()
        self._waiting: deque[PoolJob] = deque()
        self._running: dict[PoolJob, asyncio.Task[None]] = {}
        self._opening: dict[Server, asyncio.Task[None]] = {}
        self._giving_up: asyncio.TimerHandle | None = None
        self._misfits: dict[Server, Exception] = {}  # servers that are something else than expected
        self._has_tried = asyncio.Event()  # to open a server
        self._is_connected = False

    async def connect(self) -> None:
        """Open the servers; return soon after one can be used. The others join as they answer.

        Raises EndpointError if none answers, or one does not fit.
        """
        for server in self._servers:
            self._start_opening(server, 0.0)
        await self._until(lambda: self._is_lost or any(server.state == "ready" for server in self._servers))
        if self._is_lost:
            raise self._lost_error
        with contextlib.suppress(TimeoutError):
            all_tried = self._until(lambda: all(server.state != "busy" for server in self._servers))
            await asyncio.wait_for(all_tried, self._timeouts.join)
        for server in self._opening:
            problem = f"{server.name} is not available yet: {server.reason}"
            self._emit(NoticeEvent(problem, "using the other servers until it answers"))
        self._is_connected = True
        self._report()

    @property
    def known(self) -> list[Server]:
        """The servers that have answered so far; for any thread, as the next two."""
        return [server for server in self._servers if server.is_known]

    @property
    def generated(self) -> tuple[ServerTokens, ...]:
        return tuple(ServerTokens(server.name, server.generated, server.state == "lost") for server in self.known)

    @property
    def room(self) -> int:
        """Number of samples to submit at a time."""
        return AHEAD * sum(server.window for server in self.known)

    def submit(self, jobs: Sequence[PoolJob], scope: CancelScope) -> None:
        """Answer jobs, unless their scope is cancelled by now."""
        if scope.is_cancelled:
            for job in jobs:
                job.cancel()
            return
        self._waiting += jobs
        for job in jobs:
            self._emit = job.emit
        if self._misfits:
            self._fail(next(iter(self._misfits.values())))
        else:
            self._assign()

    def cancel(self, should_cancel: Callable[[PoolJob], bool]) -> None:
        """Stop jobs; each sample that has not finished does, as `cancelled`."""
        for job in [each for each in self._waiting if should_cancel(each)]:
            self._waiting.remove(job)
            job.cancel()
        for job, task in self._running.items():
            if should_cancel(job):
                job.is_cancelled = True
                task.cancel()

    async def close(self) -> None:
        self.cancel(lambda _: True)
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), *self._opening.values(), return_exceptions=True)
        for server in self._servers:
            await server.close()

    # Jobs.

    def _assign(self) -> None:
        """Start waiting jobs, in order, while a server can take the next: the one with the smallest share in use.

        A job whose prompt a server has evaluated waits for that one, and no later job takes its slots.
        """
        free = list(self._servers)
        for job in list(self._waiting):
            while job.samples and (fitting := [server for server in free if server.has_room(job)]):
                server = min(fitting, key=lambda each: each.outstanding / each.window)
                self._start(job.take(server.max_samples), server)
            if not job.samples:
                self._waiting.remove(job)
            elif not job.bound_to:
                break
            elif job.bound_to in free:
                free.remove(job.bound_to)
        self._watch_for_the_end()

    def _start(self, job: PoolJob, server: Server) -> None:
        job.pooled.server = server
        load = max(len(job.samples), server.window if job.is_suspect else 0)
        server.outstanding += load
        self._running[job] = task = asyncio.get_running_loop().create_task(self._answer(job, server))
        task.add_done_callback(lambda task: self._end(task, job, server, load))

    async def _answer(self, job: PoolJob, server: Server) -> None:
        job.samples = tuple(sample.restarted(server.context_size) for sample in job.samples)
        for sample in job.samples:
            job.emit(PromptEvent(sample.id, 0, len(sample.request.prompt_tokens)))
        await server.answer(job)

    def _end(self, task: asyncio.Task[None], job: PoolJob, server: Server, load: int) -> None:
        """Act on how a server's answer to a job ended; a task that was cancelled may never have begun."""
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or job.is_cancelled:
            job.cancel()
        elif error is None:
            server.window = min(server.limit, server.window + 1)
            server.busy_since = None
        elif isinstance(error, RefusedRequestError):
            job.refuse(error.error)
        elif isinstance(error, BusyServerError):
            self._postpone(job, server, error)
        elif isinstance(error, LostServerError):
            self._lose(job, server, error)
        else:  # it concerns everything
            self._fail(error)
        del self._running[job]
        server.outstanding -= load
        self._assign()

    def _fail(self, error: BaseException) -> None:
        waiting, self._waiting = self._waiting, deque()
        for job in (*waiting, *self._running):
            job.emit(Failure(error))

    def _postpone(self, job: PoolJob, server: Server, busy: BusyServerError) -> None:
        """Ask a busy server's job again, elsewhere or later, unless part of its reply was shown."""
        if server.state == "ready":  # else it has refused several at the same time
            server.window = max(1, server.window // 2)
        if job.has_output:
            job.emit(Failure(EndpointError(f"{server.name}: {busy.reason}", "ask again later")))
        else:
            job.pooled.server = None
            self._waiting.appendleft(job)
        if server not in self._opening:
            self._rest(server, busy)

    def _rest(self, server: Server, busy: BusyServerError) -> None:
        """Give a busy server nothing for a while; notify users once if it answers nothing for long."""
        loop = asyncio.get_running_loop()
        seconds = self._timeouts.busy if busy.retry_after is None else busy.retry_after
        server.state, server.reason = "busy", busy.reason
        server.busy_until = max(server.busy_until, loop.time() + seconds)
        server.busy_since = server.busy_since or loop.time()
        if server.busy_until - server.busy_since >= self._timeouts.busy_notice:
            server.busy_since = inf  # it is not reported again
            wait = "retrying" if busy.retry_after is None else f"retrying in {seconds:g} s, as requested"
            self._emit(NoticeEvent(f"{server.name} is busy: {busy.reason}", f"{wait}, until it is available"))

        def resume() -> None:
            if server not in self._opening and loop.time() >= server.busy_until:
                server.state = "ready"
                self._assign()

        loop.call_at(server.busy_until, resume)

    def _lose(self, job: PoolJob, server: Server, lost: LostServerError) -> None:
        """Ask a lost server's job again, unless part of its reply was shown, or it may be what kills servers."""
        job.losses += lost.was_sent
        noun = server.noun
        is_alone = all(other.state == "lost" for other in self._servers if other is not server)
        if job.has_output or (is_alone and job.samples[0].request.stream):
            job.emit(Failure(EndpointError(f"{server.name}: {lost.reason}", f"check the {noun}, then ask again")))
        elif job.losses >= MAX_LOSSES:
            problem = f"{job.losses} {noun}s failed on this request; the last, {server.alias}: {lost.reason}"
            job.refuse(EndpointError(problem, f"check the log of the {noun}"))
        else:
            self._waiting.appendleft(job)
        server.state, server.reason = "lost", lost.reason
        if server not in self._opening:
            self._emit(NoticeEvent(f"{server.name} is unavailable: {lost.reason}", "retrying until it answers"))
            self._start_opening(server, self._timeouts.retries[0])

    # Servers that do not answer.

    def _start_opening(self, server: Server, delay: float) -> None:
        """Open a server in the background, for the first time after a delay."""
        self._opening[server] = asyncio.get_running_loop().create_task(self._open(server, delay))

    async def _open(self, server: Server, delay: float) -> None:
        """Open a server, again and again until it can be used; one that does not fit ends everything."""
        was_known = server.is_known
        retries = self._timeouts.retries
        delays = chain(retries[bool(delay) :], repeat(retries[-1]))
        while server in self._opening:
            await asyncio.sleep(delay)
            try:
                await server.open()
                server.state = "ready"
                del self._opening[server]
                self._misfits.pop(server, None)
            except BusyServerError as busy:  # it is loading its model
                server.state, server.reason = "busy", busy.reason
                delay = min(busy.retry_after or self._timeouts.busy, retries[-1])
                if not self.known:
                    self._emit(StageEvent(f"waiting for {server.name}: {busy.reason}", 0, 1))
            except LostServerError as lost:
                server.state, server.reason, delay = "lost", lost.reason, next(delays)
            except Exception as error:
                server.state, server.reason, delay = "lost", str(error), next(delays)
                self._misfits[server] = error
                self._fail(error)
            self._has_tried.set()
            self._watch_for_the_end()
        if self._is_connected:
            self._emit(NoticeEvent(f"{server.name} is available {'again' if was_known else 'now'}", ""))
            self._report()
        self._assign()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds that opening servers changes. Raises the error of one that does not fit."""
        while not condition():
            self._has_tried.clear()
            await self._has_tried.wait()
            if self._misfits:
                raise next(iter(self._misfits.values()))

    def _watch_for_the_end(self) -> None:
        """Fail the waiting jobs once no server has been usable for a while."""
        is_stuck = bool(self._waiting) and self._is_lost
        if not is_stuck and self._giving_up:
            self._giving_up.cancel()
            self._giving_up = None
        elif is_stuck and self._giving_up is None:
            self._giving_up = asyncio.get_running_loop().call_later(self._timeouts.give_up, self._give_up)

    def _give_up(self) -> None:
        self._giving_up = None
        self._fail(self._lost_error)

    @property
    def _is_lost(self) -> bool:
        return all(server.state == "lost" for server in self._servers)

    @property
    def _lost_error(self) -> EndpointError:
        first, problems = self._servers[0], "; ".join(f"{server.name}: {server.reason}" for server in self._servers)
        return EndpointError(
            f"no {first.noun} answers ({problems})", f"{first.remedy}, then run the same command again"
        )

    def _report(self) -> None:
        """Emit the remarks of the servers, and one if they differ, each once."""
        variants: dict[str, str] = {}
        for server in self.known:
            variants.setdefault(server.variant, server.name)
        found = [remark for server in self.known for remark in server.remarks]
        if len(variants) > 1:
            noun = self._servers[0].noun
            shown = "; ".join(f"{name}: {variant}" for variant, name in variants.items())
            problem = f"the {noun}s differ, so answers may depend on the {noun} ({shown})"
            found.append(NoticeEvent(problem, "for identical answers, use identical machines, builds and models"))
        for notice in found:
            if notice not in self._reported:
                self._reported.add(notice)
                self._emit(notice)
