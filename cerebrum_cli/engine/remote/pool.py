"""Which server answers which request, and what happens when one fails.

All of it runs on one event loop. A request is computed at least once and reported once: one whose server is lost is
sent to another one with the same seed; a lost server is tried again with growing delays.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cerebrum_cli.core.errors import CerebrumError, EndpointError
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, PromptEvent, RefusedEvent
from cerebrum_cli.engine.remote.failures import (
    BusyServerError,
    LostServerError,
    RefusedRequestError,
    no_server_error,
)
from cerebrum_cli.engine.remote.kind import Part
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.sequence import Failure

MAX_LOSSES = 3  # servers lost with one request, after which it is refused


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds: silence before a server's health is checked, the limit of that check, the delays before a lost
    server is tried again, and before a busy one is, and how long no server may answer.
    """

    silence: float = 30.0
    health: float = 25.0  # SGLang's check may take 20 s while it evaluates a long prompt
    retries: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 15.0)
    busy: float = 1.0  # unless the server states how long to wait
    give_up: float = 60.0


@dataclass(eq=False, slots=True)
class Place:
    """The server that has evaluated a request's prompt; None before one is chosen."""

    server: Server | None = None


@dataclass(eq=False, slots=True)
class Job:
    """Samples of one request that one server generates together; all jobs of the request share its `place`.

    `load` is how much of its server's window it takes while it runs.
    """

    samples: tuple[RemoteSample, ...]
    emit: Callable[[Event | Failure], None]
    place: Place
    losses: int = 0
    has_output: bool = False
    load: int = 0
    has_begun: bool = False
    is_cancelled: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether the next server lost with it is the last: it gets one of its own, to be the only possible cause."""
        return self.losses == MAX_LOSSES - 1

    @property
    def unfinished(self) -> list[RemoteSample]:
        return [sample for sample in self.samples if not sample.is_finished]

    def finish(self, replies: Sequence[Part]) -> int:
        """Emit the whole replies of all samples; return the number of their tokens. Raises LostServerError."""
        self.report(read_replies(self.samples, replies))
        return sum(sample.tokens for sample in self.samples)

    def report(self, events: Iterable[Event]) -> None:
        """Emit events of the samples, and remember which have finished."""
        for event in events:
            self.emit(event)
            if isinstance(event, FinishEvent):
                for sample in self.samples:
                    sample.is_finished = sample.is_finished or sample.id == event.sequence


def read_replies(samples: Sequence[RemoteSample], replies: Sequence[Part]) -> list[Event]:
    """The events of whole replies, or of whole turns of them. Raises LostServerError if any is missing."""
    if len(replies) != len(samples) or not all(reply.end for reply in replies):
        raise LostServerError(f"{len(replies)} replies instead of {len(samples)}")
    return [event for sample, reply in zip(samples, replies, strict=True) for event in sample.add(reply)]


class Server(ABC):
    """What answers requests, and how much it is doing.

    `window` is the number of samples it is given at a time, up to `limit`. `problem` is why it is lost, None if it is
    not; `is_busy` while it takes no more requests.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = self.window = limit
        self.outstanding = 0
        self.problem: str | None = None
        self.is_busy = False
        self.busy_until = 0.0  # on the event loop's clock
        self.generated = 0  # tokens

    @property
    @abstractmethod
    def context_size(self) -> int:
        """Maximum length of a sequence, in tokens."""

    @property
    @abstractmethod
    def max_samples(self) -> int:
        """Number of samples it takes in one request."""

    @property
    @abstractmethod
    def recorded(self) -> dict[str, str]:
        """What is recorded with replies: not the address."""

    @abstractmethod
    async def answer(self, job: Job) -> None:
        """Generate the samples of a job and emit their events. Raises one of the errors in `failures`."""

    @abstractmethod
    async def reopen(self) -> None:
        """Find out whether it can be used again after it was lost. Raises one of the errors in `failures`, or a
        CerebrumError if it has become something else, which ends everything.
        """

    @abstractmethod
    async def close(self) -> None:
        """Free what it holds."""

    def has_room(self, job: Job) -> bool:
        """Whether it can be given a job now."""
        if self.problem is not None or self.is_busy:
            return False
        fits = self.outstanding + len(job.samples) <= self.window and not job.is_suspect
        return fits or self.outstanding == 0


def choose_server(servers: Iterable[Server], job: Job) -> Server | None:
    """The server that can take a job and has the smallest share of its window in use; None without one."""
    fitting = [each for each in servers if each.has_room(job)]
    return min(fitting, key=lambda each: each.outstanding / each.window, default=None)


class Pool:
    """The servers, and the jobs that wait for one."""

    def __init__(self, servers: Sequence[Server], patience: Patience) -> None:
        self.servers = servers
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
            job.is_cancelled = True
            if job.task and job.has_begun:  # cancelled before its first step, a task would do nothing at all
                job.task.cancel()

    async def close(self) -> None:
        """Stop everything, and close all connections."""
        self.cancel(lambda _: True)
        tasks = [job.task for job in self._running if job.task]
        for task in self._restoring.values():
            task.cancel()
        await asyncio.gather(*tasks, *self._restoring.values(), return_exceptions=True)
        for server in self.servers:
            await server.close()

    # Assigning jobs to servers.

    def _assign(self) -> None:
        """Start waiting jobs, in order, while a server can take the next.

        A job whose prompt a server has evaluated waits for that one, and no later job takes its slots.
        """
        free = list(self.servers)
        for job in list(self._waiting):
            place = job.place.server
            is_bound = place is not None and place.problem is None
            server = choose_server([each for each in free if each is place or not is_bound], job)
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
        job.has_begun = False
        job.load = max(len(job.samples), server.window if job.is_suspect else 0)
        server.outstanding += job.load
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
        reasons = {server.name: server.problem or "busy" for server in self.servers}
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
            job.has_begun = True
            if job.is_cancelled:
                raise asyncio.CancelledError
            for sample in job.samples:
                sample.restart(server.context_size)
                job.emit(PromptEvent(sample.id, 0, len(sample.request.prompt_tokens)))
            await server.answer(job)
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
            server.outstanding -= job.load
            self._assign()

    def _postpone(self, job: Job, server: Server, busy: BusyServerError) -> None:
        """Ask a busy server's job again, elsewhere or later, unless part of its reply was shown."""
        if not server.is_busy:  # else it has refused several at the same time
            server.window = max(1, server.window // 2)
        if job.has_output:
            job.emit(Failure(EndpointError(f"{server.name}: {busy.reason}", "ask again later")))
        else:
            job.place.server = None
            self._waiting.appendleft(job)
        self._rest(server, self._patience.busy if busy.retry_after is None else busy.retry_after)

    def _lose(self, job: Job, server: Server, lost: LostServerError) -> None:
        """Ask a lost server's job again, unless part of its reply was shown, or it may be what kills servers."""
        job.losses += lost.was_sent
        name = server.name
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

        loop = asyncio.get_running_loop()
        server.busy_until = max(server.busy_until, loop.time() + seconds)

        def resume() -> None:
            if loop.time() >= server.busy_until and server not in self._restoring:
                server.is_busy = False
                self._assign()

        server.is_busy = True
        loop.call_at(server.busy_until, resume)

    # Servers that do not answer.

    def _pause(self, server: Server, job: Job, reason: str) -> None:
        """Use a lost server no more until it answers again."""
        server.problem = reason
        if server not in self._restoring:
            job.emit(NoticeEvent(f"{server.name} is not used for now: {reason}", "retrying until it answers"))
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
                await server.reopen()
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
        emit(NoticeEvent(f"{server.name} answers again", ""))
        self._assign()


def finish_cancelled(job: Job) -> None:
    """End the samples of a job that was stopped from here."""
    for sample in job.unfinished:
        job.report([sample.cancelled()])


def refuse(job: Job, error: CerebrumError) -> None:
    """End the samples of a job that no server will answer."""
    for sample in job.unfinished:
        sample.is_finished = True
        job.emit(RefusedEvent(sample.id, error))
