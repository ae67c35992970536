"""Requests to a server; redirects are not followed, so a key never reaches another host.

They are aiohttp's: httpx2, which downloads from the Hub use, takes six times the CPU time a request (3.4 ms to 0.55 ms
at 128 requests at a time).
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from cerebrum_cli.core.environment import environment, named_proxy
from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import foreign_line
from cerebrum_cli.servers.bodies import (
    QUESTION_BYTES,
    REPLY_BYTES,
    SAMPLES_BYTES,
    error_body,
    parse_json,
    read_body,
    read_events,
    unpacked,
)
from cerebrum_cli.servers.endpoint import KEY_VARIABLE, Endpoint
from cerebrum_cli.servers.faults import (
    ExchangeError,
    LostServerError,
    RequestError,
    connection_problem,
    failure,
    require_success,
)

if TYPE_CHECKING:
    import aiohttp

MESSAGE_S = 5.0  # in which the message of an error must arrive
CONNECT_S = 5.0
IDLE_S = 2.0  # of a connection before it is closed: llama-server closes it after 5, perhaps while a request is sent
# A peer that has vanished is noticed within a minute. TCP_KEEPALIVE is TCP_KEEPIDLE on macOS; the last is for a request
# that is never acknowledged, in ms.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}
SECRET = 8  # characters; a shorter key, or value of a query, is a word that messages may have
RESEND_S = 1.0  # in which a kept connection breaks that the server had closed
_opened = ContextVar[list[socket.socket]]("sockets that the running request has opened")
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


class Client:
    """Requests to a server, for the running event loop. Each raises LostServerError, BusyServerError, RequestError."""

    def __init__(self, endpoint: Endpoint) -> None:
        import aiohttp

        endpoint.validate()
        self.endpoint = endpoint
        certificates: ssl.SSLContext | bool = True
        try:
            self._proxy = None if endpoint.is_loopback else _proxy_of(urlsplit(endpoint.url))
            if "https:" in (endpoint.url[:6], (self._proxy or "")[:6]):
                certificates = _certificates(endpoint)
        except (OSError, ValueError) as error:
            problem = f"{endpoint.name}: {foreign_line(str(error))}"
            hint = f"check the URL, HTTP_PROXY, ALL_PROXY, {' and '.join(CA_VARIABLES)}, or ca_file and client_cert"
            raise EndpointError(problem, hint) from error
        self._base_url, mark, query = endpoint.url.partition("?")
        self._query = mark + query
        secrets = (endpoint.key or "", *(value for _, value in parse_qsl(query)), query)
        self._secrets = [secret.strip() for secret in secrets if len(secret) >= SECRET]
        self._headers = {"User-Agent": "cerebrum-cli", "Accept-Encoding": "identity"}
        if endpoint.key:
            self._headers["Authorization"] = f"Bearer {endpoint.key.strip()}"  # those of a session also go to a proxy
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=IDLE_S, ssl=certificates, socket_factory=_open_socket
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            json_serialize=partial(json.dumps, separators=(",", ":")),
        )

    async def get(self, path: str, timeout_s: float, **query: str) -> Any:
        async with self._exchange("GET", path, timeout_s, params=query) as response:
            return parse_json(await read_body(_body(response), QUESTION_BYTES))

    async def post(self, path: str, body: JsonObject, timeout_s: float | None = None, samples: int = 1) -> Any:
        """The JSON reply to a JSON body. Without a timeout, the caller must end the request in time."""
        limit = QUESTION_BYTES if timeout_s else min(samples * REPLY_BYTES, SAMPLES_BYTES)
        async with self._exchange("POST", path, timeout_s, json=body) as response:
            return require_success(parse_json(await read_body(_body(response), limit)))

    async def stream(self, path: str, body: JsonObject) -> AsyncGenerator[JsonDict, None]:
        """Yield the values of events, or a reply that does not stream; closing the iterator closes the connection."""
        async with (
            self._exchange("POST", path, None, json=body) as response,
            aclosing(read_events(_body(response))) as events,
        ):
            async for event in events:
                yield event

    def fault(self, error: RequestError, hint: str, where: str = "") -> EndpointError:
        if error.status in (401, 403):
            problem = "requires an API key"
            if self.endpoint.key is not None:
                problem = "refuses this API key"
            hint = f"set {KEY_VARIABLE}, or key_env in its table in config.toml"
            return EndpointError(f"{self.endpoint.name} {problem}", hint)
        return EndpointError(f"{self.endpoint.name}: {where}{error}", hint)

    async def aclose(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, timeout_s: float | None, **content: Any
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Send a request, and raise the error of a failure; the content of a success is not read yet."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(timeout_s, sock_connect=CONNECT_S)
        content |= {"headers": self._headers, "proxy": self._proxy, "allow_redirects": False, "timeout": timeout}
        try:
            async with await self._request(method, path, content) as response:
                if response.status >= 300:
                    raise await self._error(response)
                yield response
        except ExchangeError as error:
            error.reason = foreign_line(self._without_secrets(error.reason))
            raise
        except aiohttp.InvalidURL as error:
            raise EndpointError(f"{self.endpoint.name}: not the URL of a server", "check the URL") from error
        except aiohttp.ClientConnectorCertificateError as error:
            reason = getattr(error.certificate_error, "verify_message", error)
            hint = "check the URL, or set SSL_CERT_FILE, or ca_file in its table in config.toml"
            raise EndpointError(f"{self.endpoint.name}: untrusted certificate: {reason}", hint) from error
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise LostServerError(connection_problem(error), was_sent=False) from error
        except aiohttp.ClientHttpProxyError as error:
            raise LostServerError(f"the proxy returned status {error.status}", was_sent=False) from error
        except TimeoutError as error:
            raise LostServerError("no reply in time") from error
        except (OSError, aiohttp.ClientError) as error:
            raise LostServerError("connection lost") from error
        except (ValueError, RecursionError) as error:
            raise LostServerError("damaged reply") from error

    async def _request(self, method: str, path: str, content: JsonObject) -> aiohttp.ClientResponse:
        """Send a request; again if a kept connection breaks immediately: a busy vLLM may have closed it meanwhile."""
        import aiohttp

        clock = asyncio.get_running_loop().time
        broken = None
        while True:
            opened = list[socket.socket]()
            _opened.set(opened)
            sent_at = clock()
            try:
                return await self._session.request(method, self._base_url + path + self._query, **content)
            except aiohttp.ClientConnectorError as error:
                raise broken or error from error
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if opened or clock() - sent_at > RESEND_S:
                    raise
                broken = error

    async def _error(self, response: aiohttp.ClientResponse) -> Exception:
        import aiohttp

        if 300 <= response.status < 400:
            location = self._without_secrets(response.headers.get("Location", "nowhere"))
            problem = f"{self.endpoint.name} redirects to {foreign_line(location)}"
            return EndpointError(problem, "if you trust it, use that URL as --endpoint")
        body: Any = None
        with suppress(TimeoutError, LostServerError, aiohttp.ClientError):
            async with asyncio.timeout(MESSAGE_S):
                body = error_body(await read_body(_body(response), QUESTION_BYTES))
        return failure(response.status, body, _delay(response.headers.get("Retry-After", "")))

    def _without_secrets(self, text: str) -> str:
        """A text of the server, which may repeat what it was sent."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _body(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    return unpacked(response.content.iter_any(), response.headers.get("Content-Encoding", "").lower())


def _delay(retry_after: str) -> float | None:
    """Seconds to wait, stated as such or as a date; None if neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _open_socket(address: Any) -> socket.socket:
    created = _kept_alive(address)
    _opened.get().append(created)
    return created


def _kept_alive(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    created = socket.socket(family, kind, protocol)
    created.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if option := getattr(socket, name, None):
            created.setsockopt(socket.IPPROTO_TCP, option, value)
    return created


def _certificates(endpoint: Endpoint) -> ssl.SSLContext:
    """The trusted authorities, and the client's certificate. Raises ValueError for a file that cannot be read."""
    import httpx2

    files = endpoint.ca_file, *map(environment, CA_VARIABLES)
    file = next(filter(None, files), None)
    try:
        certificates = ssl.create_default_context(cafile=file) if file else httpx2.create_ssl_context()
        if file := endpoint.client_cert:
            certificates.load_cert_chain(file)
    except OSError as error:
        raise ValueError(f"{file or 'certificates'}: {error.strerror or error}") from error
    return certificates


def _proxy_of(url: SplitResult) -> str | None:
    """The proxy that the environment names for a URL. Raises ValueError if it cannot be used."""
    named = named_proxy(url.scheme, url.hostname or "")
    if not named:
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme not in ("http", "https") or not proxy.hostname or proxy.port == 0:
        raise ValueError("its proxy is not an HTTP proxy")  # which may contain a password
    return proxy.geturl()
