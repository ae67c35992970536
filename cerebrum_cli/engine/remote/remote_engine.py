"""Generate completions on servers.

One thread runs an event loop with all connections; callers on other threads read events from queues, as with a model
on this machine. The vocabulary is that of a local file, and is compared with each server's before it is used.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from math import inf
from time import monotonic

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import Event, FinishEvent, LoadEvent, SequenceId, ServersEvent
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.engine.backend import OpenBackend, StopFlag
from cerebrum_cli.engine.engine import CancelScope, Completions, Engine, first_seed
from cerebrum_cli.engine.machine import raise_open_files
from cerebrum_cli.engine.remote.client import Endpoint
from cerebrum_cli.engine.remote.description import ExpectedModel
from cerebrum_cli.engine.remote.job import PooledRequest, PoolJob
from cerebrum_cli.engine.remote.kind import file_name
from cerebrum_cli.engine.remote.pool import Pool
from cerebrum_cli.engine.remote.replies import RemoteSample, TokenTables
from cerebrum_cli.engine.remote.server import Server
from cerebrum_cli.engine.remote.server_health import ServerTimeouts
from cerebrum_cli.engine.sequence import EXPECTED_REPLY_TOKENS, Failure, Request

OTHER_FILES = 128  # that are open besides connections
REPORT_S = 1.0  # between reports of what each server has generated
AHEAD = 2  # requests submitted for each sample that the servers run at a time
HELD_TOKENS = 4_000_000  # of prompts and replies, beyond which no more is read ahead; a token takes some 10 bytes
READ_AT = 1.5  # such requests; together, since submitting wakes the thread of the servers
REPLIES = 64  # whose mean length is expected of the others


class RemoteCompletions(Completions[RemoteSample]):
    """Completions of servers, and once a second what each of several has generated.

    The source is read on the caller's thread, up to a None until the next event. Requests ahead of those that run are
    read only while prompts and replies of usual length are few enough to be held in memory.
    """

    def __init__(self, engine: RemoteEngine, requests: Iterable[Request | None], scope: CancelScope) -> None:
        super().__init__(scope)
        self._pool, self._call, self._tables = engine.pool, engine.call, TokenTables(engine.vocabulary)
        self._source: Iterator[Request | None] | None = iter(requests)
        self._submitted: dict[int, PooledRequest] = {}
        self._next_index = 0
        self._prompt_tokens = 0  # of the requests submitted
        self._reply_tokens: float = EXPECTED_REPLY_TOKENS  # of one
        self._report_at = monotonic() + REPORT_S
        self._read_source()

    def abort(self, index: int) -> None:
        """Cancel the running samples of a request; each finishes as `cancelled`."""
        if pooled := self._submitted.get(index):
            pooled.is_aborted = True
            self._call(lambda: self._pool.cancel(lambda job: job.pooled is pooled))
            self._forget_if_over(index)

    def __next__(self) -> Event:
        if self._source and len(self._live) < READ_AT * self._pool.window:
            self._read_source()
        now = monotonic() if self._live else inf  # the last report comes after the last sample
        if now > self._report_at and len(self._pool.known) > 1 and self._next_index:
            self._report_at = now + REPORT_S
            return ServersEvent(self._pool.generated)
        event = super().__next__()
        if isinstance(event, FinishEvent):
            self._reply_tokens += (event.completion_tokens - self._reply_tokens) / REPLIES
        return event

    def close(self) -> None:
        self._source = None
        self._report_at = inf
        if self._live:
            self._call(lambda: self._pool.cancel(lambda job: job.pooled.emit == self._outbox.put))
            self._live.clear()

    def _read_source(self) -> None:
        jobs = list[PoolJob]()
        while self._source and self._has_room():
            try:
                request = None if self._scope.is_cancelled else next(self._source)
            except StopIteration:
                self._source = request = None
            if request is None:
                break
            index = self._next_index
            self._next_index += 1
            self._submitted[index] = PooledRequest(request, first_seed(request), self._outbox.put)
            self._prompt_tokens += len(request.prompt_tokens)
            jobs += self._create_jobs(index, request.n)
        if jobs:
            self._call(lambda: self._pool.submit(jobs, self._scope))

    def _has_room(self) -> bool:
        live, window = len(self._live), self._pool.window
        held = self._prompt_tokens + live * self._reply_tokens
        return live < window or (live < AHEAD * window and held < HELD_TOKENS)

    def add_samples(self, index: int, count: int) -> None:
        jobs = self._create_jobs(index, count)
        self._call(lambda: self._pool.submit(jobs, self._scope))

    def _create_jobs(self, index: int, count: int) -> list[PoolJob]:
        pooled = self._submitted[index]
        samples = tuple(
            RemoteSample(SequenceId(index, number), pooled.request, (pooled.seed + number) % SEEDS, self._tables)
            for number in range(pooled.samples, pooled.samples + count)
        )
        pooled.samples += count
        pooled.unfinished += count
        self._live.update((sample.id, sample) for sample in samples)
        if pooled.request.stream:
            return [PoolJob(pooled, (sample,)) for sample in samples]
        return [PoolJob(pooled, samples)]

    def _end_sample(self, index: int) -> None:
        self._submitted[index].unfinished -= 1
        self._forget_if_over(index)

    def _forget_if_over(self, index: int) -> None:
        if self._submitted[index].is_over:
            self._prompt_tokens -= len(self._submitted.pop(index).request.prompt_tokens)


class RemoteEngine(Engine):
    """Servers of one model, to which it starts to connect immediately; for the options, see `Servers`."""

    scores_texts = has_prompt_cache = False
    schedules_rows = True

    def __init__(
        self,
        open_vocabulary: OpenBackend,
        endpoints: Sequence[Endpoint],
        window: int | None = None,
        timeouts: ServerTimeouts | None = None,
        earlier: Sequence[Mapping[str, str]] = (),
        may_differ: bool = False,
        messages: bool = False,
    ) -> None:
        self._open_vocabulary, self._endpoints, self._window = open_vocabulary, endpoints, window
        self._earlier, self._may_differ, self._messages = earlier, may_differ, messages
        self._timeouts = timeouts or ServerTimeouts()
        self._stop = StopFlag()
        self._cancel_count = 0
        self._loop = asyncio.new_event_loop()
        self._serving: asyncio.Task[None] | None = None
        self._pool: Pool | None = None  # once it is connected
        threading.Thread(target=import_module, args=["aiohttp"], daemon=True).start()  # while the vocabulary is loaded
        super().__init__("servers")

    # For callers, on any thread.

    @property
    def larger_context(self) -> str:
        if self._pool is None:
            return super().larger_context
        return f"restart the server with a larger {self._pool.known[0].info.kind.context_option}"

    @property
    def is_loaded(self) -> bool:
        return self._pool is not None

    @property
    def context_size(self) -> int:
        return min(server.info.context_size for server in self.pool.known)

    @property
    def pool(self) -> Pool:
        """The servers in use; EngineError before `load` and after `close`."""
        if self._pool is None:
            raise EngineError("no server is connected")
        return self._pool

    @property
    def builds(self) -> list[dict[str, str]]:
        records = list[dict[str, str]]()
        for server in self.pool.known:
            if server.info.recorded not in records:
                records.append(server.info.recorded)
        return records

    @property
    def served_models(self) -> list[str]:
        ids = [server.info.model for server in self.pool.known]
        return [*ids, *map(file_name, ids)]

    def complete(self, requests: Iterable[Request | None], scope: CancelScope | None = None) -> RemoteCompletions:
        return RemoteCompletions(self, requests, scope or self.cancel_scope())

    def cancel_scope(self) -> CancelScope:
        return CancelScope(lambda: self._cancel_count)

    def cancel(self) -> None:
        self._cancel_count += 1
        self._stop.set()
        self.call(lambda: self._pool.cancel(lambda _: True) if self._pool else self._stop_serving())

    def close(self) -> None:
        self._stop.set()
        self.call(self._stop_serving)
        self._thread.join()
        atexit.unregister(self.close)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the event loop of the pool, unless that has ended; without waiting for it."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    # On the event loop's thread.

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                self._backend = self._open_vocabulary(self._emit_progress, self._stop)
                runner.run(self._serve())
        except BaseException as error:
            self.has_failed = True
            self._loading.put(Failure(error))
        finally:
            self._pool = None
            if self._backend:
                backend, self._backend = self._backend, None
                backend.close()

    async def _serve(self) -> None:
        """Connect, and keep the event loop running until the engine is closed."""
        if self._stop:
            raise EngineError("loading interrupted")
        self._serving, pool = asyncio.current_task(), None
        try:
            pool = Pool(self._create_servers(), self._timeouts, self._loading.put)
            await pool.connect()
            self._pool = pool
            self._loading.put(None)
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            if self._pool is None:
                raise EngineError("loading interrupted") from error
        finally:
            self._serving = None  # nothing may interrupt the closing of connections
            if pool:
                await pool.close()

    def _create_servers(self) -> Sequence[Server]:
        expected = ExpectedModel(self.vocabulary, self._earlier, self._may_differ, self._messages)
        most = max(1, (raise_open_files() - OTHER_FILES) // len(self._endpoints))
        return [
            Server(
                endpoint,
                f"server {number}" if endpoint.name == endpoint.url else endpoint.name,
                self._window,
                most,
                expected,
                self._timeouts,
            )
            for number, endpoint in enumerate(self._endpoints, 1)
        ]

    def _stop_serving(self) -> None:
        if self._serving:
            self._serving.cancel()
            self._serving = None  # a second time would interrupt the closing of connections

    def _emit_progress(self, event: Event) -> None:
        """Pass on progress of opening the vocabulary; notices concern memory for a whole model."""
        if isinstance(event, LoadEvent):
            self._loading.put(event)
