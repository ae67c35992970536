"""The address of a server, HTTP to it, and why a request has no reply, by how that is handled.

Only this module imports httpx2 for endpoints. Redirects are not followed: a key never reaches another host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from cerebrum_cli.core.errors import CerebrumError, EndpointError, UsageError
from cerebrum_cli.core.text import one_line, well_formed

if TYPE_CHECKING:
    import httpx2

KEY_VARIABLE = "CEREBRUM_API_KEY"
CONNECT_S = 5.0
WRITE_S = 60.0
IDLE_S = 2.0  # of a connection before it is closed: llama-server closes it after 5, perhaps while a request is sent
MAX_REASON = 200  # characters of a server's message
RETRY_LATER = (408, 429, 503)
URL_EXAMPLE = "write it like http://localhost:8080"
DONE = "[DONE]"  # ends a stream in OpenAI's format


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
    """A connection pool to one server; for one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        import httpx2

        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        self._name = endpoint.name
        self._has_key = endpoint.key is not None
        try:
            self._http = httpx2.AsyncClient(
                base_url=endpoint.url,
                headers=headers,
                timeout=httpx2.Timeout(None, connect=CONNECT_S, write=WRITE_S),
                limits=httpx2.Limits(keepalive_expiry=IDLE_S),
                trust_env=not endpoint.is_loopback,
                verify=httpx2.create_ssl_context() if endpoint.is_encrypted else False,
            )
        except OSError as error:
            problem = f"{endpoint.name}: the certificates cannot be read: {error.strerror or error}"
            raise EndpointError(problem, "check SSL_CERT_FILE and SSL_CERT_DIR") from error
        except (httpx2.InvalidURL, ValueError, ImportError) as error:
            problem = f"{endpoint.name}: {server_text(str(error))}"
            raise EndpointError(problem, "check the URL, and the proxy that HTTP_PROXY or ALL_PROXY names") from error

    async def get(self, path: str, timeout_s: float, **query: str) -> Any:
        """The JSON value at a path."""
        return await self._request("GET", path, timeout_s, params=query)

    async def text(self, path: str, timeout_s: float) -> str:
        """The text at a path, such as a page of metrics."""
        content = await self._request("GET", path, timeout_s, is_json=False)
        return str(content, "utf-8", "replace")

    async def check(self, path: str, timeout_s: float) -> None:
        """Raise unless a path answers with success; its content does not matter."""
        await self._request("GET", path, timeout_s, is_json=False)

    async def post(self, path: str, body: Mapping[str, Any], timeout_s: float | None = None) -> Any:
        """The JSON value that a path answers a JSON body with; without a timeout, however long it takes."""
        return await self._request("POST", path, timeout_s, json=body)

    async def _request(
        self, method: str, path: str, timeout_s: float | None, is_json: bool = True, **content: Any
    ) -> Any:
        import httpx2

        with self._translated():
            timeout = httpx2.Timeout(timeout_s, connect=CONNECT_S, write=WRITE_S)
            async with asyncio.timeout(timeout_s):
                response = await self._http.request(method, path, timeout=timeout, **content)
            self._raise_for_status(response)
            return response.json() if is_json else response.content

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the JSON objects of server-sent events; closing the iterator closes the connection."""
        import httpx2

        with self._translated():
            async with self._http.stream("POST", path, json=body) as response:
                if not response.is_success:
                    await response.aread()
                    self._raise_for_status(response)
                async for event in httpx2.EventSource(response):
                    if event.data != DONE:
                        yield _checked(json.loads(event.data))

    async def aclose(self) -> None:
        await self._http.aclose()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        import httpx2

        try:
            yield
        except httpx2.ConnectTimeout as error:
            raise LostServerError(f"no connection within {CONNECT_S:g} s", was_sent=False) from error
        except httpx2.ConnectError as error:
            raise _connection_error(self._name, error) from error
        except (httpx2.TimeoutException, TimeoutError) as error:
            raise LostServerError("no reply in time") from error
        except (ValueError, RecursionError, httpx2.DecodingError, httpx2.SSEError) as error:
            raise LostServerError("damaged reply") from error
        except httpx2.TransportError as error:
            raise LostServerError("connection lost") from error
        except httpx2.InvalidURL as error:
            raise EndpointError(f"{self._name}: {error}", "check the URL") from error

    def _raise_for_status(self, response: httpx2.Response) -> None:
        status, name = response.status_code, self._name
        if response.is_success:
            return
        if response.is_redirect or response.has_redirect_location:
            target = server_text(response.headers.get("Location", "another address"))
            raise EndpointError(f"{name} redirects to {target}", "if you trust it, give that URL as --endpoint")
        if status in (401, 403):
            problem = "refuses this API key" if self._has_key else "requires an API key"
            raise EndpointError(f"{name} {problem}", f"set {KEY_VARIABLE}, or key_env of its table in config.toml")
        retry_after = response.headers.get("Retry-After", "")
        is_number = retry_after.isascii() and retry_after.isdecimal()
        raise failure(status, _server_message(response), float(retry_after) if is_number else None)


def import_http() -> None:
    """Import all of httpx2 that a client needs, which takes a tenth of a second; what goes wrong is raised later."""
    with contextlib.suppress(Exception):
        import httpx2

        httpx2.AsyncClient(trust_env=False, verify=False)


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


def _server_message(response: httpx2.Response) -> str:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return server_text(str(error)) if error else f"status {response.status_code}"


def server_text(text: str) -> str:
    """A server's text as part of a message."""
    return well_formed(one_line(text))[:MAX_REASON]


def _connection_error(name: str, error: Exception) -> Exception:
    """Why there is no connection: an untrusted certificate, or in the operating system's words if there are any."""
    import ssl

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = f"{name}: untrusted certificate: {cause.verify_message.rstrip('.')}"
            return EndpointError(problem, "check the URL, or name trusted certificates with SSL_CERT_FILE")
        if isinstance(cause, ssl.SSLError):  # its number is not the operating system's
            return LostServerError(f"no encrypted connection: {cause.reason}", was_sent=False)
        if isinstance(cause, OSError) and cause.errno:
            words = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror or str(cause)
            return LostServerError(words, was_sent=False)
        cause = cause.__cause__ or cause.__context__
    return LostServerError(str(error) or "no connection", was_sent=False)
