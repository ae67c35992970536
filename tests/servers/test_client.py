"""The HTTP client of servers, against hostile ones in the same event loop: bounds, connections, streams and proxies."""

import asyncio
import gzip
import json
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.servers import bodies
from cerebrum_cli.servers import client as client_module
from cerebrum_cli.servers.bodies import DONE
from cerebrum_cli.servers.client import Client
from cerebrum_cli.servers.endpoint import Endpoint, base_url
from cerebrum_cli.servers.faults import LostServerError, RequestError

CERTIFICATE = Path(__file__).parents[1] / "data" / "localhost.pem"  # with its key, self-signed
LIMIT = 2**16
BUFFERED = 2**23  # bytes that may be on their way between two sockets
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"x" * 2**16
TOO_LARGE = "the reply is too large: more than 66 kB"

Ask = Callable[[Client], Awaitable[Any]]


class Server:
    """Answers each request with the same bytes, then with an endless repetition of others; counts what it does."""

    def __init__(self, reply: bytes = b"", repeated: bytes = b"", pause_s: float = 0.0) -> None:
        self.reply, self.repeated, self.pause_s = reply, repeated, pause_s
        self.connections, self.sent = 0, 0
        self.requests: list[bytes] = []
        self.port, self.hangs_up = 0, False

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError), closing(writer.transport):
            while True:
                self.requests.append(await read_request(reader))
                writer.write(self.reply)
                if self.hangs_up:
                    return
                while self.repeated:
                    writer.write(self.repeated)
                    await writer.drain()
                    self.sent += len(self.repeated)
                    await asyncio.sleep(self.pause_s)

    def client(self, **endpoint: Any) -> Client:
        return Client(Endpoint("it", f"http://127.0.0.1:{self.port}", **endpoint))


S = TypeVar("S", bound=Server)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + (await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b"")


@asynccontextmanager
async def listening(server: S, tls: ssl.SSLContext | None = None) -> AsyncIterator[S]:
    async with await asyncio.start_server(server.converse, "127.0.0.1", backlog=1024, ssl=tls) as listener:
        server.port = listener.sockets[0].getsockname()[1]
        yield server


def json_reply(content: bytes = b"[1]", headers: bytes = b"") -> bytes:
    return OK + headers + b"Content-Length: %d\r\n\r\n%b" % (len(content), content)


def asked(server: Server, ask: Ask) -> Any:
    """What asking a server returns."""

    async def run() -> Any:
        async with listening(server), aclosing(server.client()) as client, asyncio.timeout(30):
            return await ask(client)

    return asyncio.run(run())


def lost(server: Server, ask: Ask) -> str:
    with pytest.raises(LostServerError) as raised:
        asked(server, ask)
    return raised.value.reason


async def stream(client: Client) -> list[Any]:
    async with aclosing(client.stream("/completion", {})) as events:
        return [event async for event in events]


ASKS: dict[str, Ask] = {
    "get": lambda client: client.get("/v1/models", 20.0),
    "question": lambda client: client.post("/tokenize", {}, 20.0),
    "reply": lambda client: client.post("/completion", {}),
    "stream": stream,
}


@pytest.fixture(autouse=True)
def small_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUESTION_BYTES", "REPLY_BYTES"):
        monkeypatch.setattr(client_module, name, LIMIT)
    for name in ("REPLY_BYTES", "STREAM_BYTES", "EVENT_BYTES"):
        monkeypatch.setattr(bodies, name, LIMIT)


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS.keys())
@pytest.mark.parametrize(
    ("reply", "repeated", "reason"),
    [
        pytest.param(OK + b"\r\n", ENDLESS, TOO_LARGE, id="endless"),
        pytest.param(OK + b"Content-Length: 9999999999\r\n\r\n", ENDLESS, TOO_LARGE, id="huge"),
        pytest.param(OK + b"\r\ndata: ", ENDLESS, TOO_LARGE, id="event"),
        pytest.param(OK + b"\r\n", b":\n\n" * 2**12, TOO_LARGE, id="pings"),
        pytest.param(OK, b"a: b\r\n" * 2**12, "connection lost", id="headers"),
        pytest.param(b"HTTP/1.1 500 Oh\r\n\r\n", ENDLESS, "status 500", id="error"),
        pytest.param(CHUNKED, b"1\r\nx\r\n" * 2**12, TOO_LARGE, id="chunks"),
    ],
)
def test_client_ends_a_reply_that_is_too_large(ask: Ask, reply: bytes, repeated: bytes, reason: str) -> None:
    server = Server(reply, repeated)
    assert lost(server, ask) == reason
    assert server.sent < LIMIT + BUFFERED


@pytest.mark.parametrize("ask", [ASKS["reply"], ASKS["stream"]], ids=["reply", "stream"])
@pytest.mark.parametrize(
    ("encoding", "content", "outcome"),
    [
        ("gzip", gzip.compress(b'{"a": 1}', mtime=0), {"a": 1}),
        ("deflate", zlib.compress(b'{"a": 1}'), {"a": 1}),
        ("deflate", zlib.compress(b'{"a": 1}', wbits=-15), {"a": 1}),  # as some servers understand it
        ("identity", b'{"a": 1}', {"a": 1}),
        ("gzip", gzip.compress(b'{"a"', mtime=0) + gzip.compress(b": 1}", mtime=0) + bytes(5), {"a": 1}),
        ("gzip", gzip.compress(b'{"a": 1}', mtime=0) + b"<!-- served -->", "the reply is not valid gzip"),
        ("deflate", zlib.compress(b'{"a": 1}') + b"x", {"a": 1}),
        ("gzip", gzip.compress(bytes(2**24), mtime=0), TOO_LARGE),
        ("x-gzip", gzip.compress(b'{"a": 1}', mtime=0)[:-1], "the reply is incomplete: its x-gzip data ends early"),
        ("deflate", zlib.compress(b'{"a": 1}')[:-1], "the reply is incomplete: its deflate data ends early"),
        ("gzip", b'{"a": 1}', "the reply is not valid gzip"),
        ("deflate", zlib.compress(b'{"a": 1}')[:-1] + b"x", "the reply is not valid deflate"),
        ("br", b"x", "the reply is compressed with br, which was not requested"),
    ],
)
def test_client_reads_what_a_server_compresses_although_asked_not_to(
    ask: Ask, encoding: str, content: bytes, outcome: Any
) -> None:
    server = Server(json_reply(content, b"Content-Encoding: %b\r\n" % encoding.encode()))
    if isinstance(outcome, str):
        assert lost(server, ask) == outcome
    else:
        assert asked(server, ask) in (outcome, [outcome])
    assert b"Accept-Encoding: identity\r\n" in server.requests[0]


@pytest.mark.parametrize("ask", [ASKS["reply"], ASKS["stream"]], ids=["reply", "stream"])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        (b"gzip", b"".join(gzip.compress(part, mtime=0) for part in (b'{"a"', b"", b": 1}")) + bytes(3)),
        (b"deflate", zlib.compress(b'{"a": 1}') + b"padding"),
    ],
)
def test_client_reads_compressed_parts_of_any_size(ask: Ask, size: int, encoding: bytes, content: bytes) -> None:
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    head = CHUNKED.removesuffix(b"\r\n") + b"Content-Encoding: %b\r\n\r\n" % encoding
    assert asked(Server(head + chunks + b"0\r\n\r\n"), ask) in ({"a": 1}, [{"a": 1}])


@pytest.mark.parametrize("ask", [ASKS["reply"], ASKS["stream"]], ids=["reply", "stream"])
def test_client_limits_the_memory_of_small_values(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SMALL_BYTES", 1000)
    monkeypatch.setattr(bodies, "VALUES_BYTES", 100_000)
    problem = "the reply is too large: its values would take more than 100 kB of memory"
    for value in (b"[],", b'{"a":1},', b'"a",', b"[" * 9 + b"]" * 9 + b","):
        assert lost(Server(json_reply(b'{"a":[' + value * (LIMIT // 20) + b"1]}")), ask) == problem
    text = {"text": r'[],{"\\",' * 1000}
    assert asked(Server(json_reply(json.dumps(text).encode())), ask) in (text, [text])


@pytest.mark.parametrize(
    "reply", [OK[:-2], OK + b"a: ", OK + b"Content-Length: 9\r\n\r\n"], ids=["status", "headers", "content"]
)
@pytest.mark.parametrize("name", ["get", "post"])
def test_client_ends_a_question_in_time(name: str, reply: bytes) -> None:
    server = Server(reply, b" ", pause_s=0.01)
    more: tuple[Any, ...] = ({},) if name == "post" else ()
    assert lost(server, lambda client: getattr(client, name)("/x", *more, 0.05)) == "no reply in time"


def test_client_does_not_wait_for_the_message_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MESSAGE_S", 0.02)
    server = Server(b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n", b" ", pause_s=0.005)
    with pytest.raises(RequestError, match="status 404"):
        asked(server, ASKS["reply"])


def test_client_asks_a_vanished_server_for_a_sign_of_life() -> None:
    idle = getattr(socket, "TCP_KEEPIDLE", 0x10)  # TCP_KEEPALIVE on macOS
    with client_module._kept_alive((socket.AF_INET, socket.SOCK_STREAM, 0, "", None)) as created:
        options = [created.getsockopt(socket.IPPROTO_TCP, option) for option in (idle, socket.TCP_KEEPINTVL)]
        assert created.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and options == [30, 10]


@pytest.mark.parametrize(
    ("headers", "hangs_up", "idle_s", "connections"),
    [
        pytest.param(b"", False, 60.0, 1, id="kept"),
        pytest.param(b"", False, 0.01, 3, id="idle"),
        pytest.param(b"Connection: close\r\n", False, 60.0, 3, id="to be closed"),
        pytest.param(b"", True, 60.0, 3, id="closed"),
    ],
)
def test_client_reuses_a_connection_that_stays_open(
    headers: bytes, hangs_up: bool, idle_s: float, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "IDLE_S", idle_s)
    server = Server(json_reply(headers=headers))
    server.hangs_up = hangs_up

    async def ask(client: Client) -> None:
        for _ in range(3):
            assert await client.get("/", 20.0) == [1]
            await asyncio.sleep(0.02)

    asked(server, ask)
    assert server.connections == connections


@pytest.mark.parametrize("resend_s", [60.0, 0.0])
def test_client_asks_again_where_a_kept_connection_breaks_immediately(
    resend_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RESEND_S", resend_s)
    server = Server(json_reply())

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Close each connection upon its second request."""
        server.connections += 1
        with closing(writer.transport):
            server.requests.append(await read_request(reader))
            writer.write(server.reply)
            server.requests.append(await read_request(reader))

    server.converse = converse  # type: ignore[method-assign]

    async def ask(client: Client) -> None:
        assert await asyncio.gather(*(client.post("/completion", {}) for _ in range(3))) == [[1]] * 3
        assert await client.post("/completion", {}) == [1]

    if resend_s:
        asked(server, ask)
        assert (server.connections, len(server.requests)) == (4, 7)  # all three connections were kept
    else:
        assert lost(server, ask) == "connection lost" and server.connections == 3


def test_client_has_as_many_connections_as_requests() -> None:
    server = Server(json_reply(), pause_s=20.0)

    async def ask(client: Client) -> None:
        assert await asyncio.gather(*(client.post("/completion", {}) for _ in range(150))) == [[1]] * 150
        assert 100 < server.connections <= 150

    asked(server, ask)


@pytest.mark.parametrize(
    "content",
    [
        b':ping\r\n\r\nevent: x\r\ndata:{"a": 1}\r\n\r\n:\r\n\r\ndata: {"b": 2}\r\n\r\n',
        b'data: {"a": 1}\n\nid: 7\nretry: 5\ndata: {"b": 2}\n\nretry: 6',
        b'data: : PING\n\ndata:\n\ndata: null\n\ndata: {"a": 1}\n\ndata:{"b": 2}\n\n',
        b'data: : PING\n\ndata:\n\ndata: {"a": 1}\n\ndata: \ndata\n\ndata:: ping\n\ndata:{"b": 2}\n\n',
    ],
)
def test_client_reads_events_however_they_are_split(content: bytes) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content)
    whole = OK + b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
    for reply in (whole, CHUNKED + chunks + b"0\r\n\r\n"):
        assert asked(Server(reply), stream) == [{"a": 1}, {"b": 2}]
    done = Server(OK + b"Content-Length: 29\r\n\r\n" + b'data: {"a": 1}\n\ndata: [DONE]\n\n')
    assert asked(done, stream) == [{"a": 1}, DONE]


class Proxy(Server):
    """Answers itself, but connects a tunnel to a port of this machine."""

    def __init__(self, port: int, status: bytes = b"200 OK") -> None:
        super().__init__(json_reply(b"[2]"))
        self.target, self.status = port, status

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        self.requests.append(request)
        with closing(writer.transport):
            if not request.startswith(b"CONNECT"):
                writer.write(self.reply)
                return
            writer.write(b"HTTP/1.1 %b\r\n\r\n" % self.status)
            if self.target:
                source, target = await asyncio.open_connection("127.0.0.1", self.target)
                await asyncio.gather(pump(reader, target), pump(source, writer))


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError), closing(target.transport):
        while data := await source.read(2**16):
            target.write(data)


def test_client_opens_an_encrypted_tunnel_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setattr(Endpoint, "is_loopback", False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    server = Server(json_reply())

    async def run() -> tuple[Any, list[bytes]]:
        async with listening(server, context), listening(Proxy(server.port)) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv("CEREBRUM_API_KEY", "sesame")
            async with aclosing(Client(Endpoint("it", "https://localhost:444"))) as client:
                return [await client.get("/", 20.0), await client.get("/", 20.0)], proxy.requests

    value, [request] = asyncio.run(run())
    assert value == [[1], [1]]
    assert request.startswith(b"CONNECT localhost:444 HTTP/1.1\r\n") and b"sesame" not in request
    assert server.connections == 1 and b"Authorization: Bearer sesame" in server.requests[0]


def test_client_names_the_certificate_that_it_cannot_read(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    endpoint = Endpoint("it", "https://localhost:9")
    for path in (empty, tmp_path / "missing.pem"):
        for files in (replace(endpoint, ca_file=str(path)), replace(endpoint, client_cert=str(path))):
            with pytest.raises(EndpointError, match=f"it: {path}: "):
                Client(files)


@pytest.mark.parametrize("variable", [None, "REQUESTS_CA_BUNDLE"])
def test_client_and_server_trust_each_other_by_files(monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if variable:
        monkeypatch.setenv(variable, str(CERTIFICATE))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(CERTIFICATE))
    context.load_cert_chain(CERTIFICATE)
    context.verify_mode = ssl.CERT_REQUIRED
    server = Server(json_reply())

    async def run() -> Any:
        async with listening(server, context):
            url, trusted = f"https://localhost:{server.port}/base?api-version=1", None if variable else str(CERTIFICATE)
            endpoint = Endpoint("it", base_url(url), ca_file=trusted, client_cert=str(CERTIFICATE))
            async with aclosing(Client(endpoint)) as client:
                await client.post("/completion", {})
                return await client.get("/props", 20.0, model="a b")

    assert asyncio.run(run()) == [1]
    paths = [request.split(b" ")[1] for request in server.requests]
    assert paths == [b"/base/completion?api-version=1", b"/base/props?api-version=1&model=a+b"]


@pytest.mark.parametrize(
    ("url", "outcome", "head"),
    [
        ("http://far.example:81/größe", "[2]", b"GET http://far.example:81/gr%C3%B6%C3%9Fe/x HTTP/1.1\r\n"),
        ("https://far.example", "the proxy returned status 403", b"CONNECT far.example:443 HTTP/1.1\r\n"),
    ],
)
def test_client_asks_a_proxy_for_a_server_elsewhere(
    monkeypatch: pytest.MonkeyPatch, url: str, outcome: str, head: bytes
) -> None:
    async def run() -> tuple[str, list[bytes]]:
        async with listening(Proxy(0, b"403 No")) as proxy:
            for name in ("http_proxy", "https_proxy"):
                monkeypatch.setenv(name, f"http://me:p%40ss@127.0.0.1:{proxy.port}")
            monkeypatch.setenv("CEREBRUM_API_KEY", "sesame")
            async with aclosing(Client(Endpoint("it", url, allow_http_key=True))) as client:
                try:
                    return str(await client.get("/x", 20.0)), proxy.requests
                except LostServerError as lost:
                    assert not lost.was_sent
                    return lost.reason, proxy.requests

    found, [request] = asyncio.run(run())
    assert found == outcome and request.startswith(head)
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in request
