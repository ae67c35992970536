"""Engines on llama-servers, and what happens when servers fail; the HTTP client: bounds of size and time, trust."""

import asyncio
import resource
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asking import collect_replies
from model_servers import Refused
from remote_engines import (
    connected,
    events_of,
    local_replies,
    outcome,
    remote_engine,
    replies_of,
    request_of,
    serving,
    serving_kind,
    set_patience,
    summaries,
    unicode_model,
)
from scripted_backend import endless, random_model
from server_kinds import LlamaServer
from thinkers import CountingControl
from waiting import TIMEOUT_S, wait_until

from cerebrum_cli.core.errors import EndpointError, EngineError
from cerebrum_cli.core.events import FinishEvent, NoticeEvent, RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.servers import client as client_module
from cerebrum_cli.servers.client import Client
from cerebrum_cli.servers.endpoint import Endpoint, base_url
from cerebrum_cli.servers.faults import LostServerError, RequestError
from cerebrum_cli.servers.remote_engine import raise_open_files


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    set_patience(monkeypatch)


REQUESTS = tuple(request_of(f"Q{at}", seed=100 * at, temperature=0.8) for at in range(20))
STORY = endless({"Q": "once upon a time "})


def test_remote_abort_closes_the_connection() -> None:
    with serving(random_model) as [server], connected(server) as engine:
        stuck = server.arm(hang_after=0)
        with closing(engine.complete([request_of("stuck")])) as events:
            assert stuck.is_hanging.wait(TIMEOUT_S)
            events.abort(0)
            assert collect_replies(events)[SequenceId(0)].reason == "cancelled"
        server.wait_for(lambda: server.completions()[0].is_left)


def test_remote_cancel_keeps_what_has_arrived() -> None:
    with serving(STORY) as servers, connected(*servers) as engine:
        stuck = servers[0].arm(hang_after=6)  # objects; the first are of the prompt's progress
        seen: list[TokenEvent] = []
        with closing(engine.complete([request_of("Q", stream=True)])) as events:
            for event in events:
                if isinstance(event, TokenEvent):
                    seen.append(event)
                    if len(seen) == 4:
                        assert stuck.is_hanging.wait(TIMEOUT_S)
                        engine.cancel()
        servers[0].wait_for(lambda: servers[0].completions()[0].is_left)
    assert isinstance(event, FinishEvent)
    assert (event.reason, event.completion_tokens, event.has_all_tokens) == ("cancelled", len(seen), True)
    assert "once upon a time".startswith("".join(each.text for each in seen))


def test_remote_source_is_read_ahead() -> None:
    given = iter(REQUESTS)
    with serving(STORY) as [server], connected(server) as engine:
        stuck = server.arm(hang_after=0, times=None)
        with closing(engine.complete(given)):
            assert len(REQUESTS) - len(list(given)) == 2 * server.slots
            assert stuck.is_hanging.wait(TIMEOUT_S)


def test_remote_bug_ends_the_only_row_with_its_error() -> None:
    def fail(_: int) -> None:
        raise RuntimeError("a bug")

    request = request_of("Q", controls=(partial(CountingControl, fail),))
    with serving(STORY) as servers, connected(*servers) as engine, pytest.raises(RuntimeError, match="a bug"):
        events_of(engine, request)


def test_remote_row_that_kills_servers_is_refused_and_stalls_no_other() -> None:
    bad, good = REQUESTS[5], [request for request in REQUESTS if request is not REQUESTS[5]]

    class Poisoned(LlamaServer):
        def complete(self, body: Mapping[str, Any]) -> Generator[Any, None, None]:
            if tuple(body["prompt"]) == bad.prompt_tokens:
                raise Refused(500, "assertion failed")
            yield from super().complete(body)

    with serving_kind(Poisoned, unicode_model, 2) as servers, connected(*servers) as engine:
        events = events_of(engine, *REQUESTS)
        prompts = [[asked.prompt for asked in server.completions()] for server in servers]
    refused = [event for event in events if isinstance(event, RefusedEvent)]
    assert [event.sequence.request for event in refused] == [5]
    assert refused[0].error.message.startswith("this request failed 3 times, last on server ")
    texts = [outcome(events)[SequenceId(at)][0] for at in range(20) if at != 5]
    assert texts == [reply.text for reply in local_replies(unicode_model, *good).values()]
    assert sum(each.count(tuple(bad.prompt_tokens)) for each in prompts) >= 3


@pytest.mark.slow
def test_remote_server_that_is_killed_twice_answers_each_row_once() -> None:
    def kill_twice(server: LlamaServer) -> None:
        for _ in range(2):
            held = server.arm(hang_after=0, times=None, let_through=15)
            assert held.is_hanging.wait(TIMEOUT_S)
            server.kill()
            server.disarm()
            server.start()

    requests = [request_of(f"Q{at}") for at in range(60)]
    with serving(unicode_model, slots=4) as [server], connected(server) as engine, ThreadPoolExecutor() as meanwhile:
        killing = meanwhile.submit(kill_twice, server)
        events = events_of(engine, *requests)
        killing.result(TIMEOUT_S)
    ends = [event.sequence for event in events if isinstance(event, FinishEvent | RefusedEvent)]
    assert sorted(ends) == [SequenceId(at) for at in range(60)]
    texts = {id: reply.text for id, reply in local_replies(unicode_model, *requests).items()}
    assert {id: values[0] for id, values in outcome(events).items()} == texts


def test_remote_start_waits_for_a_server_that_loads_its_model() -> None:
    with serving(random_model) as [server]:
        server.is_loading = True
        with closing(remote_engine(server)) as engine:
            loading = iter(engine.load())
            assert next(loading) == NoticeEvent(f"{server.url} is unavailable: Loading model", "retrying")
            server.is_loading = False
            list(loading)
            assert len(replies_of(engine, REQUESTS[0])) == 1


def test_remote_server_missing_at_the_start_is_noted_and_joins() -> None:
    with serving(random_model, 2) as [first, missing]:
        missing.kill()
        with closing(remote_engine(first, missing)) as engine:
            [notice] = [event for event in engine.load() if isinstance(event, NoticeEvent)]
            assert notice.message == f"{missing.url} is unavailable: Connection refused"
            stuck = first.arm(hang_after=0, times=None)
            with closing(engine.complete(REQUESTS)) as replies:
                assert stuck.is_hanging.wait(TIMEOUT_S)
                missing.start()
                missing.wait_for(missing.completions)
                stuck.disarm()
                events = list(replies)
    assert outcome(events) == summaries(local_replies(random_model, *REQUESTS))


@pytest.mark.parametrize("fault", [{"status": 503}, {"hang_after": 0}])
def test_remote_server_that_never_loads_holds_up_no_other(
    fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_patience(monkeypatch, JOIN_S=10.0 if "status" in fault else 0.05)
    with serving(random_model, 2) as [first, loading]:
        loading.arm(path="/v1/models", times=None, **fault)
        with closing(remote_engine(first, loading)) as engine:
            [notice] = [event for event in engine.load() if isinstance(event, NoticeEvent)]
            assert outcome(events_of(engine, *REQUESTS)) == summaries(local_replies(random_model, *REQUESTS))
        reason = "scripted" if "status" in fault else "no answer yet"
        assert notice.message == f"{loading.url} is unavailable: {reason}"
        assert loading.completions() == []


@pytest.mark.parametrize("fault", [{"path": "/v1/models", "hang_after": 0}, {"path": "/tokenize", "status": 503}])
def test_remote_cancel_ends_connecting(fault: dict[str, Any]) -> None:
    with serving(random_model) as [server]:
        armed = server.arm(times=None, **fault)
        with closing(remote_engine(server)) as engine:
            server.wait_for(lambda: armed.struck)
            engine.cancel()
            with pytest.raises(EngineError, match="loading interrupted"):
                list(engine.load())
        wait_until(lambda: server.connections == 0)


@pytest.mark.parametrize("moment", ["connecting", "running", "restoring"])
def test_remote_close_leaves_nothing_behind(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_patience(monkeypatch, RETRY_S=(1000.0,))
    with serving(random_model) as [server]:
        is_connecting = moment == "connecting"
        armed = server.arm(path="/props", hang_after=0) if is_connecting else None
        engine = remote_engine(server)
        if not armed:
            list(engine.load())
            armed = server.arm(**({"hang_after": 0} if moment == "running" else {"status": 500}))
            engine.complete([request_of("Q")])
        server.wait_for(lambda: armed.struck)
        engine.close()
        wait_until(lambda: server.connections == 0)
        assert not [thread for thread in threading.enumerate() if "servers" in thread.name]
        with pytest.raises(EngineError):
            engine.complete([request_of("Q")])
        engine.close()


def test_open_files_are_limited_by_the_hard_limit_alone() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] in (hard, 10_240)  # where that is unlimited
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


CERTIFICATE = Path(__file__).parents[1] / "data" / "localhost.pem"  # with its key, self-signed
LIMIT = 2**16
OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\n"
ENDLESS = b"x" * 2**16
TOO_LARGE = "the reply is too large: more than 66 kB"

Ask = Callable[[Client], Awaitable[Any]]


class Server:
    """Answers each request with the same bytes, then with an endless repetition of others."""

    def __init__(self, reply: bytes = b"", repeated: bytes = b"", pause_s: float = 0.0) -> None:
        self.reply, self.repeated, self.pause_s = reply, repeated, pause_s
        self.requests: list[bytes] = []
        self.port = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError), closing(writer.transport):
            while True:
                self.requests.append(await read_request(reader))
                writer.write(self.reply)
                while self.repeated:
                    writer.write(self.repeated)
                    await writer.drain()
                    await asyncio.sleep(self.pause_s)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + (await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b"")


@asynccontextmanager
async def listening(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    async with await asyncio.start_server(server.converse, "127.0.0.1", backlog=1024, ssl=tls) as listener:
        server.port = listener.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{server.port}"


def asked(server: Server, ask: Ask) -> Any:
    """What asking a server returns."""

    async def run() -> Any:
        async with listening(server) as url, aclosing(Client(Endpoint("it", url))) as client, asyncio.timeout(30):
            return await ask(client)

    return asyncio.run(run())


def lost(server: Server, ask: Ask) -> str:
    with pytest.raises(LostServerError) as raised:
        asked(server, ask)
    return raised.value.reason


async def stream_of(client: Client) -> list[Any]:
    async with aclosing(client.stream("/completion", {})) as events:
        return [event async for event in events]


ASKS: dict[str, Ask] = {
    "get": lambda client: client.get("/v1/models", 20.0),
    "post": lambda client: client.post("/tokenize", {}, 20.0),
    "stream": stream_of,
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS.keys())
@pytest.mark.parametrize(
    ("reply", "repeated", "reason"),
    [
        pytest.param(OK + b"\r\n", ENDLESS, TOO_LARGE, id="endless"),
        pytest.param(STREAM + b"\r\ndata: ", ENDLESS, TOO_LARGE, id="event"),
        pytest.param(OK, b"a: b\r\n" * 2**12, "connection lost", id="headers"),
        pytest.param(b"HTTP/1.1 500 Oh\r\n\r\n", ENDLESS, "status 500", id="error"),
    ],
)
def test_client_ends_a_reply_that_is_too_large(
    ask: Ask, reply: bytes, repeated: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_BYTES", LIMIT)
    assert lost(Server(reply, repeated), ask) == reason


@pytest.mark.parametrize(
    "reply", [OK[:-2], OK + b"a: ", OK + b"Content-Length: 99999\r\n\r\n"], ids=["status", "headers", "content"]
)
def test_client_ends_a_question_in_time(reply: bytes) -> None:
    server = Server(reply, b" ", pause_s=0.01)
    assert lost(server, lambda client: client.get("/x", 0.05)) == "no reply in time"
    assert lost(server, lambda client: client.post("/x", {}, 0.05)) == "no reply in time"


def test_client_does_not_wait_for_the_message_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MESSAGE_S", 0.02)
    server = Server(b"HTTP/1.1 404 No\r\nContent-Length: 99999\r\n\r\n", b" ", pause_s=0.005)
    with pytest.raises(RequestError, match="status 404"):
        asked(server, ASKS["post"])


def test_client_names_the_certificate_that_it_cannot_read(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    endpoint = Endpoint("it", "https://localhost:9")
    for path in (empty, tmp_path / "missing.pem"):
        for files in (replace(endpoint, ca_file=str(path)), replace(endpoint, client_cert=str(path))):
            with pytest.raises(EndpointError, match=f"it: {path}: "):
                Client(files)


def test_client_and_server_trust_each_other_by_files() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(CERTIFICATE))
    context.load_cert_chain(CERTIFICATE)
    context.verify_mode = ssl.CERT_REQUIRED
    server = Server(OK + b"Content-Length: 3\r\n\r\n[1]")

    async def run() -> Any:
        async with listening(server, context):
            url = base_url(f"https://localhost:{server.port}/base?api-version=1")
            endpoint = Endpoint("it", url, ca_file=str(CERTIFICATE), client_cert=str(CERTIFICATE))
            async with aclosing(Client(endpoint)) as client:
                await client.post("/completion", {}, 20.0)
                return await client.get("/props", 20.0, model="a b")

    assert asyncio.run(run()) == [1]
    paths = [request.split(b" ")[1] for request in server.requests]
    assert paths == [b"/base/completion?api-version=1", b"/base/props?api-version=1&model=a+b"]
