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

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import Event, NoticeEvent, PromptEvent, StageEvent
from cerebrum_cli.engine.remote.failures import (
    BusyServerError,
    LostServerError,
    RefusedRequestError,
    no_server_error,
)
from cerebrum_cli.engine.remote.job import (
    MAX_LOSSES,
    PoolJob,
    Server,
    ServerTimeouts,
    choose_server,
    finish_cancelled,
    refuse,
)
from cerebrum_cli.engine.sequence import Failure


class Pool:
    """The servers, and the jobs that wait for one."""

    def __init__(self, servers: Sequence[Server], patience: ServerTimeouts, emit: Callable[[Event], None]) -> None:
        self._servers = servers
        self._patience = patience
        self._emit = emit  # later replaced by that of the latest job
        self._reported: set[NoticeEvent] = set()
        self._waiting: deque[PoolJob] = deque()
        self._running: set[PoolJob] = set()
        self._opening: dict[Server, asyncio.Task[None]] = {}
        self._gone: asyncio.TimerHandle | None = None
        self._misfits: dict[Server, Exception] = {}  # servers that are something else than expected
        self._has_tried = asyncio.Event()  # to open a server
        self._is_connected = False

    async def connect(self) -> None:
        """Open the servers; return soon after one can be used. The others join as they answer.

        Raises EndpointError if none answers, or one does not fit.
        """
        for server in self._servers:
            self._start_opening(server, 0.0)
        await self._until(lambda: self._is_lost or any(server.is_usable for server in self._servers))
        if self._is_lost:
            raise self._lost_error
        with contextlib.suppress(TimeoutError):
            all_tried = self._until(lambda: all(server.is_usable or server.problem for server in self._servers))
            await asyncio.wait_for(all_tried, self._patience.join)
        for server in self._servers:
            if server in self._opening:
                problem = f"{server.name} is not available yet: {server.problem or server.busy_reason}"
                self._emit(NoticeEvent(problem, "using the other servers until it answers"))
        self._is_connected = True
        self._report()

    @property
    def known(self) -> list[Server]:
        """The servers that have answered so far."""
        return [server for server in self._servers if server.is_known]

    def submit(self, jobs: Sequence[PoolJob]) -> None:
        for job in jobs:
            self._emit = job.emit
            self._waiting.append(job)
        if self._misfits:
            self._fail(next(iter(self._misfits.values())))
        else:
            self._assign()

    def cancel(self, should_cancel: Callable[[PoolJob], bool]) -> None:
        """Stop jobs; each sample that has not finished does, as `cancelled`."""
        for job in [each for each in self._waiting if should_cancel(each)]:
            self._waiting.remove(job)
            finish_cancelled(job)
        for job in [each for each in self._running if should_cancel(each)]:
            job.is_cancelled = True
            if job.task and job.has_begun:  # cancelled before its first step, a task would do nothing at all
                job.task.cancel()

    async def close(self) -> None:
        """Stop everything, and close all connections."""
        self.cancel(lambda _: True)
        tasks = [job.task for job in self._running if job.task]
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*tasks, *self._opening.values(), return_exceptions=True)
        for server in self._servers:
            await server.close()

    # Assigning jobs to servers.

    def _assign(self) -> None:
        """Start waiting jobs, in order, while a server can take the next.

        A job whose prompt a server has evaluated waits for that one, and no later job takes its slots.
        """
        free = list(self._servers)
        for job in list(self._waiting):
            while job.samples and (server := choose_server(free, job)):
                self._start(job.take(server.max_samples), server)
            if not job.samples:
                self._waiting.remove(job)
            elif not job.bound_to:
                break
            elif job.bound_to in free:
                free.remove(job.bound_to)
        self._watch_for_the_end()

    def _start(self, job: PoolJob, server: Server) -> None:
        job.place.server = server
        job.has_begun = False
        job.load = max(len(job.samples), server.window if job.is_suspect else 0)
        server.outstanding += job.load
        self._running.add(job)
        job.task = asyncio.get_running_loop().create_task(self._run(job, server))

    def _watch_for_the_end(self) -> None:
        """Fail the waiting jobs once no server has been usable for a while."""
        is_stuck = bool(self._waiting) and self._is_lost
        if not is_stuck and self._gone:
            self._gone.cancel()
            self._gone = None
        elif is_stuck and self._gone is None:
            self._gone = asyncio.get_running_loop().call_later(self._patience.give_up, self._give_up)

    def _give_up(self) -> None:
        self._gone = None
        self._fail(self._lost_error)

    @property
    def _is_lost(self) -> bool:
        """Whether no server answers."""
        return all(server.problem for server in self._servers)

    @property
    def _lost_error(self) -> EndpointError:
        reasons = {server.name: server.problem or server.busy_reason for server in self._servers}
        return no_server_error(reasons, self._servers[0].noun, self._servers[0].remedy)

    def _fail(self, error: BaseException) -> None:
        """End all jobs with an error."""
        waiting, self._waiting = self._waiting, deque()
        for job in (*waiting, *self._running):
            job.emit(Failure(error))

    # One job.

    async def _run(self, job: PoolJob, server: Server) -> None:
        """Have a server answer a job; whatever goes wrong ends here."""
        try:
            job.has_begun = True
            if job.is_cancelled:
                raise asyncio.CancelledError
            for sample in job.samples:
                sample.restart(server.context_size)
                job.emit(PromptEvent(sample.id, 0, len(sample.request.prompt_tokens)))
            await server.answer(job)
            server.window = min(server.limit, server.window + 1)
            server.busy_since, server.is_reported_busy = None, False
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
            server.outstanding -= job.load
            self._assign()

    def _postpone(self, job: PoolJob, server: Server, busy: BusyServerError) -> None:
        """Ask a busy server's job again, elsewhere or later, unless part of its reply was shown."""
        if not server.is_busy:  # else it has refused several at the same time
            server.window = max(1, server.window // 2)
        if job.has_output:
            job.emit(Failure(EndpointError(f"{server.name}: {busy.reason}", "ask again later")))
        else:
            job.place.server = None
            self._waiting.appendleft(job)
        self._rest(server, busy)

    def _lose(self, job: PoolJob, server: Server, lost: LostServerError) -> None:
        """Ask a lost server's job again, unless part of its reply was shown, or it may be what kills servers."""
        job.losses += lost.was_sent
        noun = server.noun
        is_alone = all(other.problem for other in self._servers if other is not server)
        if job.has_output or (is_alone and job.samples[0].request.stream):
            job.emit(Failure(EndpointError(f"{server.name}: {lost.reason}", f"check the {noun}, then ask again")))
        elif job.losses >= MAX_LOSSES:
            problem = f"{job.losses} {noun}s failed on this request; the last, {server.alias}: {lost.reason}"
            refuse(job, EndpointError(problem, f"check the log of the {noun}"))
        else:
            self._waiting.appendleft(job)
        self._pause(server, lost.reason)

    def _rest(self, server: Server, busy: BusyServerError) -> None:
        """Give a busy server nothing for a while; notify users once if it answers nothing for long."""
        loop = asyncio.get_running_loop()
        seconds = self._patience.busy if busy.retry_after is None else busy.retry_after
        server.busy_until = max(server.busy_until, loop.time() + seconds)
        server.busy_since = server.busy_since or loop.time()
        if not server.is_reported_busy and server.busy_until - server.busy_since >= self._patience.busy_notice:
            server.is_reported_busy = True
            wait = "retrying" if busy.retry_after is None else f"retrying in {seconds:g} s, as requested"
            self._emit(NoticeEvent(f"{server.name} is busy: {busy.reason}", f"{wait}, until it is available"))

        def resume() -> None:
            if loop.time() >= server.busy_until and server not in self._opening:
                server.is_busy = False
                self._assign()

        server.is_busy = True
        loop.call_at(server.busy_until, resume)

    # Servers that do not answer.

    def _pause(self, server: Server, reason: str) -> None:
        """Use a lost server no more until it answers again."""
        server.problem = reason
        if server not in self._opening:
            self._emit(NoticeEvent(f"{server.name} is unavailable: {reason}", "retrying until it answers"))
            self._start_opening(server, self._patience.retries[0])

    def _start_opening(self, server: Server, delay: float) -> None:
        """Open a server in the background, for the first time after a delay."""
        self._opening[server] = asyncio.get_running_loop().create_task(self._open(server, delay))

    async def _open(self, server: Server, delay: float) -> None:
        """Open a server, again and again until it can be used; one that does not fit ends everything."""
        was_known = server.is_known
        retries = self._patience.retries
        delays = chain(retries[1:] if delay else retries, repeat(retries[-1]))
        while True:
            await asyncio.sleep(delay)
            try:
                await server.open()
                break
            except BusyServerError as busy:  # it is loading its model
                server.problem, server.is_busy, server.busy_reason = None, True, busy.reason
                delay = min(busy.retry_after or self._patience.busy, retries[-1])
                if not self.known:
                    self._emit(StageEvent(f"waiting for {server.name}: {busy.reason}", 0, 1))
            except LostServerError as error:
                server.problem, server.is_busy = error.reason, False
                delay = next(delays)
            except Exception as error:
                server.problem, server.is_busy, self._misfits[server] = str(error), False, error
                delay = next(delays)
                self._fail(error)
            self._has_tried.set()
            self._watch_for_the_end()
        del self._opening[server]
        self._misfits.pop(server, None)
        server.problem, server.is_busy = None, False
        self._has_tried.set()
        if self._is_connected:
            again = "again" if was_known else "now"
            self._emit(NoticeEvent(f"{server.name} is available {again}", ""))
            self._report()
        self._assign()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds that opening servers changes. Raises the error of one that does not fit."""
        while not condition():
            self._has_tried.clear()
            await self._has_tried.wait()
            if self._misfits:
                raise next(iter(self._misfits.values()))

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
