"""Completions of servers: one thread runs an event loop with all connections, others read events from queues."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby

from cerebrum_cli.core.errors import EndpointError, EngineError, NoServerError
from cerebrum_cli.core.events import Event, SequenceId
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.engine.engine import CancelScope, Completions, Engine, OpenBackend
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.client import Client
from cerebrum_cli.servers.description import ExpectedModel, describe
from cerebrum_cli.servers.endpoint import Endpoint, ServerInfo, Servers
from cerebrum_cli.servers.faults import BusyServerError, LostServerError
from cerebrum_cli.servers.pool import Pool
from cerebrum_cli.servers.replies import MessageSample, RemoteSample
from cerebrum_cli.servers.server import Job
from cerebrum_cli.servers.token_replies import TokenSample

MAX_OPEN_FILES = 10_240  # macOS refuses more where its hard limit is unlimited
AHEAD = 2  # requests submitted for each sample that the servers run at a time
READ_AT = 1.5  # such requests; together, since submitting wakes the thread of the servers


def probe(*endpoints: Endpoint, as_messages: bool = False) -> ServerInfo:
    """Ask servers what they are; return the first answer.

    To be used `as_messages`, they need not take token ids.
    Without any, raises NoServerError if none can be reached, else another EndpointError of the first that can.
    """
    return asyncio.run(ask_all(endpoints, as_messages))


async def ask_all(endpoints: Sequence[Endpoint], as_messages: bool) -> ServerInfo:
    problems = list[EndpointError]()
    for answer in asyncio.as_completed([ask(endpoint, as_messages) for endpoint in endpoints]):
        try:
            return await answer
        except EndpointError as error:
            problems.append(error)
    others = [problem for problem in problems if not isinstance(problem, NoServerError)]
    if others or len(problems) == 1:
        raise (others or problems)[0]
    raise NoServerError(f"no server answers ({'; '.join(map(str, problems))})", problems[0].hint)


async def ask(endpoint: Endpoint, as_messages: bool) -> ServerInfo:
    """What a server is. Raises EndpointError if that is not known."""
    try:
        async with aclosing(Client(endpoint)) as client:
            return await describe(client, as_messages)
    except BusyServerError as busy:
        raise EndpointError(f"{endpoint.name} is not ready: {busy.reason}", "try again later") from busy
    except LostServerError as lost:
        remedy = "the log of the server" if lost.was_sent else "start the server there"
        raise NoServerError(f"{endpoint.name}: {lost.reason}", f"check the URL, and {remedy}") from lost


@dataclass(slots=True)
class Submitted:
    """A request that may get more samples: how many it has got, and how many of them run."""

    request: Request
    seed: int  # of the first sample
    samples: int = 0
    running: int = 0


class RemoteCompletions(Completions):
    """Completions of servers; the caller reads the source."""

    def __init__(self, engine: RemoteEngine, requests: Iterable[Request], scope: CancelScope) -> None:
        super().__init__(scope)
        self._pool, self._call, self._vocabulary = engine.pool, engine.call, engine.vocabulary
        self._source: Iterator[tuple[int, Request]] = enumerate(requests)
        self._submitted: dict[int, Submitted] = {}
        self._read_source()

    def abort(self, index: int) -> None:
        self._cancel(lambda job: job.samples[0].id.request == index)

    def __next__(self) -> Event:
        if len(self._live) < READ_AT * self._pool.window:
            self._read_source()
        return super().__next__()

    def close(self) -> None:
        self._source = iter(())
        self._cancel(lambda _: True)
        self._live.clear()

    def _cancel(self, should_cancel: Callable[[Job], bool]) -> None:
        emit = self._outbox.put
        self._call(lambda: self._pool.cancel(lambda job: job.emit == emit and should_cancel(job)))

    def _read_source(self) -> None:
        jobs = []
        for index, request in self._source:
            if self._scope.is_set():
                break
            self._submitted[index] = Submitted(request, request.first_seed())
            jobs += self._create_jobs(index, request.ask.n)
            if len(self._live) >= AHEAD * self._pool.window:
                break
        if jobs:
            self._call(lambda: self._pool.submit(jobs, self._scope))

    def add_samples(self, index: int, count: int) -> None:
        jobs = self._create_jobs(index, count)
        self._call(lambda: self._pool.submit(jobs, self._scope))

    def _create_jobs(self, index: int, count: int) -> list[Job]:
        submitted = self._submitted[index]
        numbers = range(submitted.samples, submitted.samples + count)
        samples = tuple(self._create_sample(submitted, SequenceId(index, number)) for number in numbers)
        submitted.samples += count
        submitted.running += count
        self._live.update((sample.id, sample) for sample in samples)
        groups: list[tuple[RemoteSample, ...]] = [(sample,) for sample in samples]
        if not submitted.request.ask.stream:  # a server counts on from the first seed, and never back to 0
            groups = [tuple(group) for _, group in groupby(samples, lambda sample: sample.seed < samples[0].seed)]
        return [Job(submitted.request, group, self._outbox.put) for group in groups]

    def _create_sample(self, submitted: Submitted, id: SequenceId) -> RemoteSample:
        request, seed = submitted.request, (submitted.seed + id.sample) % SEEDS
        if request.as_messages:
            return MessageSample(id, request, seed)
        return TokenSample(id, request, seed, vocabulary=self._vocabulary)

    def _end_sample(self, index: int) -> None:
        submitted = self._submitted[index]
        submitted.running -= 1
        if not submitted.running and submitted.samples >= submitted.request.ask.max_n:
            del self._submitted[index]


class RemoteEngine(Engine):
    """Servers of one model, to which it starts to connect immediately; they take token ids, or messages."""

    def __init__(self, open_vocabulary: OpenBackend, servers: Servers, as_messages: bool) -> None:
        self._open_vocabulary, self._servers, self._as_messages = open_vocabulary, servers, as_messages
        self._loop = asyncio.new_event_loop()
        self._serving: asyncio.Task[None] | None = None
        self._pool: Pool | None = None  # once it is connected
        threading.Thread(target=import_module, args=["httpx2"], daemon=True).start()  # while the vocabulary is loaded
        super().__init__("servers")

    # For callers, on any thread.

    @property
    def is_loaded(self) -> bool:
        return self._pool is not None

    @property
    def context_size(self) -> int:
        return min(info.context_size for info in self.pool.known)

    @property
    def pool(self) -> Pool:
        """The servers in use; EngineError before `load` and after `close`."""
        if self._pool is None:
            raise EngineError("no server is connected")
        return self._pool

    @property
    def builds(self) -> list[dict[str, str]]:
        records = [info.recorded for info in self.pool.known]
        return [record for at, record in enumerate(records) if record not in records[:at]]

    def complete(self, requests: Iterable[Request], scope: CancelScope | None = None) -> RemoteCompletions:
        return RemoteCompletions(self, requests, scope or self.cancel_scope)

    def cancel(self) -> None:
        super().cancel()
        self._stop.set()
        self.call(lambda: self._pool.cancel(lambda _: True) if self._pool else self._stop_serving())

    def close(self, frees: bool = True) -> None:  # noqa: ARG002
        self._stop.set()
        self.call(self._stop_serving)
        self._thread.join()
        atexit.unregister(self.close)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the event loop of the pool, unless that has ended; without waiting for it."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    # On the event loop's thread.

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                self._backend = self._open_vocabulary(self._loading.put, self._stop)
                runner.run(self._serve())
        except BaseException as error:
            self.has_failed = True
            self._loading.put(error)
        finally:
            self._pool = None
            if self._backend:
                backend = self._backend
                self._backend = None
                backend.close()

    async def _serve(self) -> None:
        """Connect, and keep the event loop running until the engine is closed."""
        if self._stop:
            raise EngineError("loading interrupted")
        self._serving = asyncio.current_task()
        raise_open_files()
        expected = ExpectedModel(self.vocabulary, self._servers.earlier, self._as_messages)
        pool = Pool(self._servers, expected, self._loading.put)
        try:
            await pool.connect()
            self._pool = pool
            self._loading.put(None)
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            if self._pool is None:
                raise EngineError("loading interrupted") from error
        finally:
            self._serving = None  # nothing may interrupt the closing of connections
            await pool.close()

    def _stop_serving(self) -> None:
        if self._serving:
            self._serving.cancel()
            self._serving = None  # a second time would interrupt the closing of connections


def raise_open_files() -> None:
    """Raise the limit of this process's open files, connections included, as far as it may be: macOS allows 256."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else hard
    if soft < highest:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
