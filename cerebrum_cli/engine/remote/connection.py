"""HTTP/1.1 over connections to one server that are kept between requests, directly or through a proxy.

Whatever a server sends is read only up to a number of bytes, and never decompressed.
"""

from __future__ import annotations

import asyncio
import socket
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator
from ssl import SSLContext
from time import monotonic
from urllib.parse import SplitResult, unquote, urlsplit

import h11

CONNECT_S = 5.0
IDLE_S = 2.0  # of a connection before it is closed: llama-server closes it after 5, perhaps while a request is sent
READ_BYTES = 2**16
HEAD_BYTES = 2**17  # of what comes before the content; h11 allows 16 KiB of it to be headers
PORTS = {"http": 80, "https": 443}
# A peer that has vanished is noticed within a minute. TCP_KEEPALIVE is TCP_KEEPIDLE on macOS; the last is for a request
# that is never acknowledged, in ms.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}


class OversizedReplyError(Exception):
    """A reply has more bytes than it may have."""


class Connection:
    """A connection that carries one request at a time. Raises OSError and h11.RemoteProtocolError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.CLIENT)
        self._room = 0  # bytes that may still come
        self._idle_since = 0.0

    async def ask(self, request: h11.Request, content: bytes) -> h11.Response:
        """Send a request, and receive status and headers."""
        events = (request, h11.Data(content), h11.EndOfMessage())
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))  # in one packet, if it fits
        self._room = HEAD_BYTES
        while not isinstance(response := await self._receive(), h11.Response):
            pass  # provisional
        return response

    async def read(self, limit: int) -> bytes:
        """The content of the reply. Raises OversizedReplyError."""
        return b"".join([part async for part in self.read_parts(limit)])

    async def read_parts(self, limit: int) -> AsyncGenerator[bytes, None]:
        """Yield the content of the reply as it comes. Raises OversizedReplyError."""
        self._room = limit
        while isinstance(event := await self._receive(), h11.Data):
            yield bytes(event.data)

    async def _receive(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(READ_BYTES)
            self._room -= len(data)
            if self._room < 0:
                raise OversizedReplyError
            self._http.receive_data(data)
        return event

    def rest(self) -> bool:
        """Prepare for the next request; False if there can be none, as the reply was not read to its end."""
        if (self._http.our_state, self._http.their_state) != (h11.DONE, h11.DONE) or self._http.trailing_data[0]:
            return False
        self._http.start_next_cycle()
        self._idle_since = monotonic()
        return True

    @property
    def is_expired(self) -> bool:
        is_gone = self._reader.at_eof() or self._writer.is_closing()
        return is_gone or monotonic() - self._idle_since > IDLE_S

    def close(self) -> None:
        self._writer.transport.abort()


class ConnectionPool:
    """The idle connections to the host of a URL; for one event loop. `headers` are those that a proxy needs."""

    def __init__(self, url: str, proxy: SplitResult | None, tls: SSLContext | None) -> None:
        self._url, self._proxy, self._tls = urlsplit(url), proxy, tls
        self._idle: deque[Connection] = deque()
        self.headers: list[tuple[str, str]] = []
        if proxy and proxy.username is not None:
            user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            self.headers.append(("Proxy-Authorization", f"Basic {b64encode(user.encode()).decode()}"))

    async def take(self) -> Connection:
        """The connection that was used last, or a new one. Raises OSError; TimeoutError without an `errno`."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_expired:
                return connection
            connection.close()
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self._open()
        except h11.RemoteProtocolError as error:
            raise OSError("the proxy does not speak HTTP") from error

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for the next request, or close it if it cannot be used for one."""
        if connection.rest():
            self._idle.append(connection)
        else:
            connection.close()
        while self._idle and self._idle[0].is_expired:
            self._idle.popleft().close()

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        await asyncio.sleep(0)  # in which the event loop closes them

    async def _open(self) -> Connection:
        peer = self._proxy or self._url
        tls = self._tls if peer.scheme == "https" else None
        port = peer.port or PORTS[peer.scheme]
        reader, writer = await asyncio.open_connection(peer.hostname, port, ssl=tls)
        try:
            keep_alive(writer.get_extra_info("socket"))
            if self._proxy and self._tls and self._url.scheme == "https":
                target = self._url.netloc if self._url.port else f"{self._url.netloc}:443"
                request = h11.Request(method="CONNECT", target=target, headers=[("Host", target), *self.headers])
                response = await Connection(reader, writer).ask(request, b"")
                if response.status_code != 200:
                    raise OSError(f"the proxy answers {response.status_code}")
                await writer.start_tls(self._tls, server_hostname=self._url.hostname)
        except BaseException:
            writer.transport.abort()
            raise
        return Connection(reader, writer)


def keep_alive(connection: socket.socket) -> None:
    """Let the operating system ask a silent peer whether it is still there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if option := getattr(socket, name, None):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
