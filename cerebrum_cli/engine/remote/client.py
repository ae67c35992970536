"""The address of a server, requests to it, and why one has no reply, by how that is handled.

Redirects are not followed: a key never reaches another host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import h11

from cerebrum_cli.core.errors import CerebrumError, EndpointError, UsageError
from cerebrum_cli.core.text import one_line, well_formed
from cerebrum_cli.engine.remote.connection import (
    CONNECT_S,
    PORTS,
    Connection,
    ConnectionPool,
    OversizedReplyError,
)

KEY_VARIABLE = "CEREBRUM_API_KEY"
MESSAGE_S = 5.0  # in which the message of an error must arrive
QUESTION_BYTES = 2**20  # about a server, its load or the tokens of a text, and of an error
REPLY_BYTES = 2**26  # of all samples of a request
EVENT_BYTES = 2**23  # of a stream: llama-server's last event may repeat a long prompt
STREAM_BYTES = 2**28
IN_PATH = "/%:@!$&'()*+,;=~"  # what may be in the path of a URL besides letters and digits
MAX_REASON = 200  # characters of a server's message
RETRY_LATER = (408, 429, 503)
URL_EXAMPLE = "write it like http://localhost:8080"
DONE = b"[DONE]"  # ends a stream in OpenAI's format

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server: `name` is what messages call it, `url` ends before `/v1`, and `served_model` is the model's id there.

    With `allow_http_key`, the key may travel unencrypted to another machine.
    """

    name: str
    url: str
    key: str | None = field(default=None, repr=False)
    served_model: str | None = None
    allow_http_key: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, to which no proxy leads."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    @property
    def is_encrypted(self) -> bool:
        return self.url.startswith("https:")

    def validate(self) -> None:
        """Raise UsageError if the key would travel unencrypted to another machine, or cannot be a header."""
        if self.key is None:
            return
        if not (self.is_encrypted or self.is_loopback or self.allow_http_key):
            problem = f"{self.name}: the API key would be sent unencrypted"
            raise UsageError(problem, "use an https URL, or add --set allow_http_key=on")
        if not (self.key.isascii() and self.key.isprintable()):
            raise UsageError(f"{self.name}: the API key is not printable ASCII", "check its variable for line breaks")


DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading a value raises that has not the expected shape."""


@dataclass(eq=False)
class LostServerError(Exception):
    """The server is gone or failed; another may answer. `was_sent`: it may have been this request that killed it."""

    reason: str
    was_sent: bool = True


@dataclass(eq=False)
class BusyServerError(Exception):
    """The server takes no more requests now; `retry_after` is in seconds, None if not stated."""

    reason: str
    retry_after: float | None = None


@dataclass(eq=False)
class RefusedRequestError(Exception):
    """The server will never answer this request."""

    error: CerebrumError


@dataclass(eq=False)
class RequestError(Exception):
    """A status of 400 to 499 that concerns one request, or 501; `message` is the server's."""

    status: int
    message: str

    def __str__(self) -> str:
        return self.message


def parse_url(text: str) -> str:
    """The base URL of a server, without a trailing slash or `/v1`. Raises UsageError."""
    try:
        parts = urlsplit(text.strip())
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        shown = "the URL of an endpoint" if "@" in text else text  # a password is never shown
        raise UsageError(f"{shown}: {error}", URL_EXAMPLE) from error
    if parts.username or parts.password:
        problem = "the URL of an endpoint contains a user name or password"
        raise UsageError(problem, f"remove them, and set {KEY_VARIABLE} to an API key")
    if parts.scheme not in ("http", "https") or not has_host or parts.query or parts.fragment:
        raise UsageError(f"{text!r} is not the URL of a server", URL_EXAMPLE)
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return SplitResult(parts.scheme, parts.netloc, path, "", "").geturl()


class Client:
    """Requests to one server; for one event loop. Each raises LostServerError, BusyServerError or RequestError."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._name, self._has_key = endpoint.name, endpoint.key is not None
        url = urlsplit(endpoint.url)
        try:
            host = url.netloc if url.netloc.isascii() else url.netloc.encode("idna").decode()
            proxy = None if endpoint.is_loopback else _proxy_of(url)
            tls = None
            if "https" in (url.scheme, proxy and proxy.scheme):
                import httpx2

                tls = httpx2.create_ssl_context()
            self._connections = ConnectionPool(endpoint.url, proxy, tls)
        except OSError as error:
            problem = f"{endpoint.name}: the certificates cannot be read: {error.strerror or error}"
            raise EndpointError(problem, "check SSL_CERT_FILE and SSL_CERT_DIR") from error
        except ValueError as error:
            problem = f"{endpoint.name}: {server_text(str(error))}"
            raise EndpointError(problem, "check the URL, and the proxy that HTTP_PROXY or ALL_PROXY names") from error
        self._headers = [("Host", host), ("User-Agent", "cerebrum-cli"), ("Accept-Encoding", "identity")]
        if endpoint.key:
            self._headers.append(("Authorization", f"Bearer {endpoint.key.strip()}"))
        self._base = quote(url.path, safe=IN_PATH)
        if proxy and url.scheme == "http":
            self._base = f"http://{host}{self._base}"
            self._headers += self._connections.headers

    async def get(self, path: str, timeout_s: float, **query: str) -> Any:
        """The JSON value at a path."""
        return await self._request("GET", f"{path}?{urlencode(query)}" if query else path, json.loads, timeout_s)

    async def text(self, path: str, timeout_s: float) -> str:
        """The text at a path, such as a page of metrics."""
        return await self._request("GET", path, lambda content: content.decode("utf-8", "replace"), timeout_s)

    async def post(self, path: str, body: Mapping[str, Any], timeout_s: float | None = None) -> Any:
        """The JSON value that a path answers a JSON body with. Without a timeout, the caller ends a reply in time."""
        return await self._request("POST", path, json.loads, timeout_s, body)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the JSON objects of server-sent events; closing the iterator closes the connection."""
        async with (
            self._exchange("POST", path, None, body) as connection,
            contextlib.aclosing(connection.read_parts(STREAM_BYTES)) as parts,
            contextlib.aclosing(_events(parts)) as events,
        ):
            async for event in events:
                yield _checked(json.loads(event))

    async def aclose(self) -> None:
        await self._connections.close()

    async def _request(
        self,
        method: str,
        path: str,
        parse: Callable[[bytes], T],
        timeout_s: float | None,
        body: Mapping[str, Any] | None = None,
    ) -> T:
        """What a whole reply says; with a time limit, it is that to a question, and is small."""
        async with self._exchange(method, path, timeout_s, body) as connection:
            return parse(await connection.read(REPLY_BYTES if timeout_s is None else QUESTION_BYTES))

    @contextlib.asynccontextmanager
    async def _exchange(
        self, method: str, path: str, timeout_s: float | None, body: Mapping[str, Any] | None
    ) -> AsyncGenerator[Connection, None]:
        """Send a request, and let the content of the reply be read from the connection if it is a success."""
        content, headers = b"", self._headers
        if body is not None:
            content = json.dumps(body, separators=(",", ":")).encode()
            headers = [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        request = h11.Request(method=method, target=self._base + path, headers=headers)
        with _translated():
            async with asyncio.timeout(timeout_s):
                try:
                    connection = await self._connections.take()
                except (OSError, UnicodeError) as error:  # or the name of no host
                    raise _connection_error(self._name, error) from error
                try:
                    response = await connection.ask(request, content)
                    if not 200 <= response.status_code < 300:
                        raise await self._error(connection, response)
                    if _header(response, b"content-encoding") not in ("", "identity"):
                        raise LostServerError("the reply is compressed, which was not asked for")
                    yield connection
                finally:
                    self._connections.put_back(connection)

    async def _error(self, connection: Connection, response: h11.Response) -> Exception:
        """What a response without success means."""
        status, name = response.status_code, self._name
        if 300 <= status < 400:
            target = server_text(_header(response, b"location") or "another address")
            return EndpointError(f"{name} redirects to {target}", "if you trust it, give that URL as --endpoint")
        if status in (401, 403):
            problem = "refuses this API key" if self._has_key else "requires an API key"
            return EndpointError(f"{name} {problem}", f"set {KEY_VARIABLE}, or key_env of its table in config.toml")
        content = b""
        with contextlib.suppress(TimeoutError, OSError, OversizedReplyError, h11.RemoteProtocolError):
            async with asyncio.timeout(MESSAGE_S):
                content = await connection.read(QUESTION_BYTES)
        retry_after = _header(response, b"retry-after")
        is_number = retry_after.isascii() and retry_after.isdecimal()
        return failure(status, _server_message(content, status), float(retry_after) if is_number else None)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise LostServerError("no reply in time") from error
    except OversizedReplyError as error:
        raise LostServerError("the reply is too large") from error
    except (ValueError, RecursionError) as error:
        raise LostServerError("damaged reply") from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise LostServerError("connection lost") from error


def _proxy_of(url: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a URL. Raises ValueError if it cannot be used."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named or proxy_bypass(url.hostname or ""):
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme not in PORTS or not proxy.hostname or proxy.port == 0:
        raise ValueError("its proxy is not one for HTTP")  # which may contain a password
    return proxy


def _header(response: h11.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key == name), "")


async def _events(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the data of server-sent events but the last, `[DONE]`. Raises OversizedReplyError."""
    received, searched = bytearray(), 0
    async for part in parts:
        received += part.replace(b"\r", b"")  # which JSON escapes
        while (end := received.find(b"\n\n", searched)) >= 0:
            lines = received[:end].split(b"\n")
            data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:")).strip()
            del received[: end + 2]
            searched = 0
            if data not in (b"", DONE):
                yield data
        searched = max(0, len(received) - 1)
        if searched > EVENT_BYTES:
            raise OversizedReplyError


def failure(status: int, message: str, retry_after: float | None = None) -> Exception:
    """What an error with an HTTP status means, whether it is that of the answer or comes in the middle of a stream."""
    if status in RETRY_LATER:
        return BusyServerError(message, retry_after)
    if 400 <= status < 500 or status == 501:
        return RequestError(status, message)
    return LostServerError(message)


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    """An event of a stream. Raises what it means if it is an error."""
    error = event.get("error")
    if error is None:
        return event
    detail = error if isinstance(error, dict) else {"message": error}
    status = detail.get("code")
    raise failure(status if isinstance(status, int) else 500, server_text(str(detail.get("message", "error"))))


def _server_message(content: bytes, status: int) -> str:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return server_text(str(error)) if error else f"status {status}"


def server_text(text: str) -> str:
    """A server's text as part of a message."""
    return well_formed(one_line(text))[:MAX_REASON]


def _connection_error(name: str, error: Exception) -> Exception:
    """Why there is no connection: an untrusted certificate, or in the operating system's words if there are any."""
    number = re.search(r"\[Errno (\d+)\]", str(error))  # of the first of several addresses, or of the only one
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = f"{name}: untrusted certificate: {error.verify_message.rstrip('.')}"
        return EndpointError(problem, "check the URL, or name trusted certificates with SSL_CERT_FILE")
    if isinstance(error, ssl.SSLError):  # its number is not the operating system's
        return LostServerError(f"no encrypted connection: {error.reason}", was_sent=False)
    if isinstance(error, TimeoutError) and not error.errno:
        return LostServerError(f"no connection within {CONNECT_S:g} s", was_sent=False)
    words = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or str(error) or "no connection"
    return LostServerError(words, was_sent=False)
