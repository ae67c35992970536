"""The HTTP client of servers: bounds of size and time, and certificates."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.servers import client as client_module
from cerebrum_cli.servers.client import Client
from cerebrum_cli.servers.endpoint import Endpoint, base_url
from cerebrum_cli.servers.faults import LostServerError, RequestError

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


async def stream(client: Client) -> list[Any]:
    async with aclosing(client.stream("/completion", {})) as events:
        return [event async for event in events]


ASKS: dict[str, Ask] = {
    "get": lambda client: client.get("/v1/models", 20.0),
    "post": lambda client: client.post("/tokenize", {}, 20.0),
    "stream": stream,
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS.keys())
@pytest.mark.parametrize(
    ("reply", "repeated", "reason"),
    [
        pytest.param(OK + b"\r\n", ENDLESS, TOO_LARGE, id="endless"),
        pytest.param(OK, b"a: b\r\n" * 2**12, "connection lost", id="headers"),
        pytest.param(b"HTTP/1.1 500 Oh\r\n\r\n", ENDLESS, "status 500", id="error"),
    ],
)
def test_client_ends_a_reply_that_is_too_large(
    ask: Ask, reply: bytes, repeated: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_BYTES", LIMIT)
    assert lost(Server(reply, repeated), ask) == reason


def test_client_ends_an_event_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_BYTES", LIMIT)
    assert lost(Server(STREAM + b"\r\ndata: ", ENDLESS), stream) == TOO_LARGE


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
