"""Generate completions on servers.

One thread runs an event loop with all connections; callers on other threads read events from queues, as with a model
on this machine. The vocabulary is that of a local file, and is compared with each server's before it is used.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EndpointError, EngineError
from cerebrum_cli.core.events import Event, LoadEvent
from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag, Vocabulary
from cerebrum_cli.engine.engine import CancelScope, Capabilities, LoadEvents
from cerebrum_cli.engine.remote.client import Client, import_http
from cerebrum_cli.engine.remote.completions import RemoteCompletions
from cerebrum_cli.engine.remote.connection import Connection
from cerebrum_cli.engine.remote.endpoint import Endpoint
from cerebrum_cli.engine.remote.job import Patience, Server
from cerebrum_cli.engine.remote.kind import ServerInfo, is_same_origin, origin
from cerebrum_cli.engine.remote.pool import Pool
from cerebrum_cli.engine.remote.recognition import describe, tokenize
from cerebrum_cli.engine.remote.server import HttpServer
from cerebrum_cli.engine.sequence import Request

if TYPE_CHECKING:
    from cerebrum_cli.engine.scoring.request import ScoreRequest, ScoringEvent

CAPABILITIES = Capabilities(scores=False, prompt_cache=False, schedules_rows=True)
PROBE = "What is 17 * 23? Ünïcödé, 日本語, emoji 🙂,\n\n\tif x >= 10**6: return [a, b]  # don't"


class PooledEngine:
    """A pool of servers of one model, to which it starts to connect immediately; `option` is what asks for it."""

    option: ClassVar[str]

    def __init__(self, open_vocabulary: OpenBackend, patience: Patience | None = None) -> None:
        self._open_vocabulary = open_vocabulary
        self._patience = patience or Patience()
        self._stop = StopFlag()
        self._cancel_count = 0
        self._loading = LoadEvents()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._connecting: asyncio.Task[Pool] | None = None
        self._backend: Backend | None = None
        self._connection: Connection | None = None
        self.has_failed = False
        self._thread = threading.Thread(target=self._run, name="servers", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _prepare(self) -> None:
        """Import what connecting needs, while native code loads the vocabulary."""

    async def _find_servers(self) -> Sequence[Server]:
        """The servers to open. Raises EndpointError."""
        raise NotImplementedError

    # For callers, on any thread.

    @property
    def capabilities(self) -> Capabilities:
        if self._connection is None:
            return CAPABILITIES
        return replace(CAPABILITIES, larger_context=self._connection.servers[0].larger_context)

    def load(self) -> Iterator[Event]:
        """Yield load events until the servers are ready; raise if they cannot be used. Later calls yield nothing."""
        return iter(self._loading)

    @property
    def is_loaded(self) -> bool:
        return self._connection is not None

    @property
    def vocabulary(self) -> Vocabulary:
        if self._backend is None:
            raise EngineError("the vocabulary is not loaded")
        return self._backend

    @property
    def context_size(self) -> int:
        return min(server.context_size for server in self._connected.servers)

    @property
    def _connected(self) -> Connection:
        """The servers in use; EngineError before `load` and after `close`."""
        if self._connection is None:
            raise EngineError("no server is connected")
        return self._connection

    @property
    def builds(self) -> list[dict[str, str]]:
        """Kind and build of the servers, each once."""
        records = [server.recorded for server in self._connected.servers]
        return [record for at, record in enumerate(records) if record not in records[:at]]

    def complete(self, requests: Iterable[Request | None], scope: CancelScope | None = None) -> RemoteCompletions:
        """Submit requests as the servers can take them; close the result when done."""
        return RemoteCompletions(self._connected, requests, scope or self.cancel_scope())

    def group_by_length(self, requests: Iterable[Request]) -> list[list[int]]:
        """All requests in one group: servers manage their own memory."""
        return [list(range(len(list(requests))))]

    def score(
        self,
        requests: Iterable[ScoreRequest],  # noqa: ARG002
        scope: CancelScope | None = None,  # noqa: ARG002
    ) -> Generator[ScoringEvent, None, None]:
        """Raise EngineError: servers do not score given texts."""
        raise EngineError("only a local model can score given texts", f"omit {self.option}")

    def cancel_scope(self) -> CancelScope:
        return CancelScope(lambda: self._cancel_count)

    def cancel(self) -> None:
        """Cancel everything, connecting included; streams end with the finish reason `cancelled`."""
        self._cancel_count += 1
        self._stop.set()
        self._call(self._stop_connecting)
        if connection := self._connection:
            connection.cancel(lambda _: True)

    def save_prompt_cache(self, min_tokens: int, prompt: tuple[int, ...] | None = None) -> None:
        """Do nothing: servers have their own caches."""

    def save_prefix(self, tokens: tuple[int, ...]) -> None:
        """Do nothing: servers have their own caches."""

    def close(self) -> None:
        """Close all connections; the engine cannot be used again."""
        self._stop.set()
        self._call(self._stop_connecting)
        self._call(self._closing.set)
        self._thread.join()
        atexit.unregister(self.close)

    def _call(self, function: Callable[[], object]) -> None:
        """Call a function on the event loop, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    # On the event loop's thread.

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                preparing = threading.Thread(target=self._prepare, name="servers: imports")
                preparing.start()
                self._backend = self._open_vocabulary(self._emit_progress, self._stop)
                preparing.join()
                runner.run(self._serve())
        except BaseException as error:
            self.has_failed = True
            self._loading.end(error)
        finally:
            self._connection = None
            if self._backend:
                backend, self._backend = self._backend, None
                backend.close()

    async def _serve(self) -> None:
        """Connect, and keep the event loop running until the engine is closed."""
        self._connecting = asyncio.get_running_loop().create_task(self._connect())
        if self._stop:
            self._stop_connecting()
        try:
            pool = await self._connecting
        except asyncio.CancelledError as error:
            raise EngineError("loading interrupted") from error
        self._connecting = None
        self._connection = Connection(self._call, pool, self.vocabulary)
        self._loading.end()
        await self._closing.wait()
        await pool.close()

    async def _connect(self) -> Pool:
        """Open the servers. Raises EndpointError if none answers, or one does not fit."""
        pool = Pool(await self._find_servers(), self._patience, self._loading.emit)
        try:
            await pool.connect()
        except BaseException:
            await pool.close()
            raise
        return pool

    def _stop_connecting(self) -> None:
        if self._connecting:
            self._connecting.cancel()

    def _emit_progress(self, event: Event) -> None:
        """Pass on progress of opening the vocabulary; notices concern memory for a whole model."""
        if isinstance(event, LoadEvent):
            self._loading.emit(event)


class RemoteEngine(PooledEngine):
    """Servers that are reached over HTTP; each gets up to `window` samples at a time.

    With records of servers in `earlier`, only such kinds and models are used.
    """

    option = "--endpoint"

    def __init__(
        self,
        open_vocabulary: OpenBackend,
        endpoints: Sequence[Endpoint],
        window: int | None = None,
        patience: Patience | None = None,
        earlier: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self._endpoints = endpoints
        self._earlier = earlier
        self._window = window
        super().__init__(open_vocabulary, patience)

    def _prepare(self) -> None:
        import_http()

    async def _find_servers(self) -> Sequence[HttpServer]:
        return [
            HttpServer(endpoint, self._alias(number), self._window, self._describe, self._patience)
            for number, endpoint in enumerate(self._endpoints, 1)
        ]

    def _alias(self, number: int) -> str:
        """What results call a server: its name in config.toml, or else its position."""
        endpoint = self._endpoints[number - 1]
        if endpoint.name != endpoint.url:
            return endpoint.name
        return f"server {number}" if len(self._endpoints) > 1 else "the server"

    async def _describe(self, endpoint: Endpoint, client: Client) -> ServerInfo:
        """Ask a server what it is, and check that it fits: it may serve another model than before."""
        info = await describe(client, endpoint)
        self._require_origin(endpoint, info)
        await self._require_vocabulary(endpoint, client, info)
        return replace(info, end_tokens=self._end_tokens) if info.kind.takes_end_tokens else info

    @cached_property
    def _end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a reply here."""
        return tuple(filter(self.vocabulary.is_eog, range(self.vocabulary.size)))

    def _require_origin(self, endpoint: Endpoint, info: ServerInfo) -> None:
        """Raise EndpointError for another kind of server, or another model, than those of earlier replies."""
        now = info.recorded
        if self._earlier and not any(is_same_origin(record, now) for record in self._earlier):
            before = " and ".join(dict.fromkeys(map(origin, self._earlier)))
            problem = f"{endpoint.name} serves {origin(now)}, but earlier replies are from {before}"
            raise EndpointError(problem, "resume with a server like that, or use --restart to start over")

    async def _require_vocabulary(self, endpoint: Endpoint, client: Client, info: ServerInfo) -> None:
        """Raise EndpointError unless the server's vocabulary is that of the local file."""
        ours = _without_bos(self.vocabulary, self.vocabulary.tokenize((Text(PROBE),)))
        has_size = info.vocabulary_size in (None, self.vocabulary.size)
        if not has_size or tuple(await tokenize(client, endpoint, info, PROBE)) != ours:
            problem = f"{endpoint.name} serves {info.model}, whose vocabulary differs from the model's"
            raise EndpointError(problem, "name the server's model with -m; cerebrum pull --vocabulary MODEL fetches it")


def _without_bos(vocabulary: Vocabulary, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens without a leading BOS: servers of other kinds may add one where llama.cpp does not, and vice versa."""
    bos = vocabulary.special_token_text("bos")
    return tokens[1:] if bos and tokens[0] in vocabulary.special_token_ids([bos]) else tokens
