"""Requests to a server; redirects are not followed, so a key never reaches another host."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from codecs import BOM_UTF8
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import foreign_line, format_size
from cerebrum_cli.servers.endpoint import KEY_VARIABLE, Endpoint
from cerebrum_cli.servers.faults import (
    NO_CREDIT_STATUS,
    ExchangeError,
    LostServerError,
    RequestError,
    UnreadableReplyError,
    failure,
    require_success,
)

if TYPE_CHECKING:
    import httpx2

CONNECT_S = 5.0
MESSAGE_S = 5.0  # in which the message of an error must arrive
IDLE_S = 2.0  # of a connection before it is closed: llama-server closes it after 5, perhaps while a request is sent
SECRET = 8  # characters; a shorter key is a word that messages may have
MAX_BYTES = 32_000_000  # of a reply, or of an event of a stream
SHOWN = 2000  # bytes of a body that is not JSON
EVENT_STREAM = "text/event-stream"


class Client:
    """Requests to a server, for the running event loop. Each raises ExchangeError, or EndpointError if it affects all.

    `heard_at` is when the last byte of a reply arrived; refusals and the state of a server are none.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        import httpx2

        endpoint.validate()
        self.endpoint = endpoint
        self.heard_at = time.monotonic()
        self._base_url, _, self._query = endpoint.url.partition("?")
        secrets = (endpoint.key or "", *(value for _, value in parse_qsl(self._query)))
        self._secrets = [secret.strip() for secret in secrets if len(secret) >= SECRET]
        headers = {"User-Agent": "cerebrum-cli", "Content-Type": "application/json"}
        if endpoint.key:
            headers["Authorization"] = f"Bearer {endpoint.key.strip()}"
        try:
            self._http = httpx2.AsyncClient(
                headers=headers,
                verify=_certificates(endpoint),
                trust_env=not endpoint.is_loopback,  # for proxies
                timeout=httpx2.Timeout(None, connect=CONNECT_S),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_S),
            )
        except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
            problem = f"{endpoint.name}: {foreign_line(str(error))}"
            hint = "check HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE, or ca_file and client_cert in config.toml"
            raise EndpointError(problem, hint) from error

    async def get(self, path: str, timeout_s: float, **query: str) -> Any:
        async with self._response("GET", path, timeout_s, query=urlencode(query)) as response:
            return parse_json(await read_body(response.aiter_bytes()))

    async def post(self, path: str, body: JsonObject, timeout_s: float) -> Any:
        async with self._response("POST", path, timeout_s, body) as response:
            return require_success(parse_json(await read_body(response.aiter_bytes())))

    async def stream(self, path: str, body: JsonObject) -> AsyncGenerator[JsonDict, None]:
        """Yield the values of events up to [DONE], or a whole reply; closing the iterator closes the connection."""
        async with self._response("POST", path, None, body) as response:
            parts = self._heard(response)
            if EVENT_STREAM not in response.headers.get("Content-Type", ""):
                yield require_success(parse_json(await read_body(parts)))
                return
            async for line in read_lines(parts):
                field, _, data = line.partition(b":")  # a ping has no field
                if data.strip() == b"[DONE]":
                    return
                if field.removeprefix(BOM_UTF8) == b"data":
                    yield require_success(parse_json(data))

    async def _heard(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """The parts of a reply, of which the last is noted."""
        self.heard_at = time.monotonic()
        async for part in response.aiter_bytes():
            self.heard_at = time.monotonic()
            yield part

    def fault(self, error: RequestError, hint: str, where: str = "") -> EndpointError:
        if error.status in (401, 403):
            problem = "requires an API key"
            if self.endpoint.key is not None:
                problem = "refuses this API key"
            hint = f"set {KEY_VARIABLE}, or key_env in its table in config.toml"
            return EndpointError(f"{self.endpoint.name} {problem}", hint)
        if error.status == NO_CREDIT_STATUS:
            hint = "check the credit of your account there"
        return EndpointError(f"{self.endpoint.name}: {where}{error}", hint)

    async def aclose(self) -> None:
        await self._http.aclose()

    @asynccontextmanager
    async def _response(
        self, method: str, path: str, timeout_s: float | None, body: JsonObject | None = None, query: str = ""
    ) -> AsyncGenerator[httpx2.Response, None]:
        """Send a request, and raise the error of a failure; the content of a success is not read yet."""
        import httpx2

        query = "&".join(filter(None, (self._query, query)))
        url = f"{self._base_url}{path}?{query}".removesuffix("?")
        content = None if body is None else json.dumps(body)
        try:
            async with asyncio.timeout(timeout_s), self._http.stream(method, url, content=content) as response:
                if not response.is_success:
                    raise await self._failure(response)
                yield response
        except ExchangeError as error:
            error.reason = foreign_line(self._without_secrets(error.reason))
            raise
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise EndpointError(f"{self.endpoint.name}: not the URL of a server", "check the URL") from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise self._no_connection(error) from error
        except httpx2.ProxyError as error:
            raise LostServerError(f"the proxy fails: {error}", was_sent=False) from error
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise LostServerError("no reply in time") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise LostServerError("connection lost") from error

    def _no_connection(self, error: httpx2.TransportError) -> Exception:
        """The error in the words of TLS or the system."""
        for cause in _causes(error):
            if isinstance(cause, ssl.SSLCertVerificationError):
                problem = f"{self.endpoint.name}: untrusted certificate: {cause.verify_message}"
                hint = "check the URL, or set SSL_CERT_FILE, or ca_file in its table in config.toml"
                return EndpointError(problem, hint)
            if isinstance(cause, ssl.SSLError):
                return LostServerError(str(cause), was_sent=False)
            if isinstance(cause, OSError) and (cause.errno or 0) > 0:
                return LostServerError(os.strerror(cause.errno or 0), was_sent=False)
        return LostServerError(str(error) or "no connection in time", was_sent=False)

    async def _failure(self, response: httpx2.Response) -> Exception:
        if response.has_redirect_location:
            location = foreign_line(self._without_secrets(response.headers["Location"]))
            problem = f"{self.endpoint.name} redirects to {location}"
            return EndpointError(problem, "if you trust it, use that URL as --endpoint")
        message: Any = None
        with suppress(TimeoutError, LostServerError):
            async with asyncio.timeout(MESSAGE_S):
                body = await read_body(response.aiter_bytes())
            message = body.decode(errors="replace")
            with suppress(ValueError, RecursionError):
                message = json.loads(body)
        return failure(response.status_code, message, response.headers.get("Retry-After", ""))

    def _without_secrets(self, text: str) -> str:
        """A text of the server, which may repeat what it was sent."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


async def read_body(parts: AsyncIterator[bytes]) -> bytes:
    body = bytearray()
    async for part in parts:
        body += part
        require_size(body)
    return bytes(body)


async def read_lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of events: text in JSON may have other line separators."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        require_size(rest)
        for line in lines:
            yield line.strip()
    yield rest.strip()


def require_size(body: bytes | bytearray) -> None:
    if len(body) > MAX_BYTES:
        raise UnreadableReplyError(f"the reply is too large: more than {format_size(MAX_BYTES)}")


def parse_json(body: bytes) -> Any:
    """The value of a body. Raises UnreadableReplyError with the words of one that is not JSON."""
    if not body.strip():
        raise UnreadableReplyError("the server sent an empty reply")
    try:
        return json.loads(body, strict=False)  # some servers do not escape control characters
    except (ValueError, RecursionError) as error:
        raise UnreadableReplyError(f"the reply is not JSON: {body[:SHOWN].decode(errors='replace')}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        if isinstance(error, BaseExceptionGroup):  # one for each address of a host
            error = error.exceptions[0]
        else:
            error = error.__cause__ or error.__context__


def _certificates(endpoint: Endpoint) -> ssl.SSLContext | bool:
    """The trusted authorities, and the client's certificate. Raises ValueError for a file that cannot be read."""
    import httpx2

    if endpoint.is_loopback and endpoint.url.startswith("http:"):
        return False  # loading them takes longer than a request
    file = endpoint.ca_file
    try:
        certificates = ssl.create_default_context(cafile=file) if file else httpx2.create_ssl_context()
        if file := endpoint.client_cert:
            certificates.load_cert_chain(file)
    except OSError as error:
        raise ValueError(f"{file or 'certificates'}: {error.strerror or error}") from error
    return certificates
