"""The content of a web address: one request without credentials, with limits on time, size and redirects.

A page outside of the local network cannot redirect into it, where a request may do harm or give secrets to a model: the
address of a host is checked, and again once it is connected to, because a name may have another address each time.
"""

from __future__ import annotations

import asyncio
import socket
import zlib
from contextlib import aclosing
from gzip import BadGzipFile, GzipFile
from http.cookiejar import CookieJar, DefaultCookiePolicy
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import format_size
from cerebrum_cli.core.version import __version__

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S = 30.0  # for a page with its redirects
MAX_PAGE_BYTES = 50_000_000
MAX_REDIRECTS = 5
MAX_PORT = 65535
HEADERS = {
    "User-Agent": f"cerebrum/{__version__}",
    "Accept": "text/html, text/*, application/pdf, */*;q=0.1",
    "Accept-Encoding": "gzip, deflate",  # without those whose libraries may be missing, such as br
}
MEDIA_TYPES = {"text/html": ".html", "application/xhtml+xml": ".html", "application/pdf": ".pdf"}
PROXY_HINT = "check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
DOWNLOAD = "check the address and the network, or download it, and give the file"


class WebPage(NamedTuple):
    """Content, its media type with a charset, and the suffix of a file with such content, empty for plain text."""

    data: bytes
    content_type: str
    suffix: str


def fetch(address: str) -> WebPage:
    """Request a page. Raises UsageError."""
    import httpx2

    try:
        if httpx2.URL(address).userinfo:
            raise UsageError("a web address contains a user name or password", "remove them: none are sent")
        return asyncio.run(fetch_within_limits(address))
    except TimeoutError as error:
        raise UsageError(f"{address}: not complete within {TIMEOUT_S:g} s", DOWNLOAD) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:  # the last of a host name
        raise UsageError(f"{address}: {first_line(error)}", DOWNLOAD) from error
    except ExceptionGroup as error:  # of the attempts to connect
        if error.split(OverflowError)[1]:
            raise
        raise UsageError(f"cannot use the proxy: port numbers end at {MAX_PORT}", PROXY_HINT) from error


async def fetch_within_limits(address: str) -> WebPage:
    import httpx2

    guard = LocalNetworkGuard(address, httpx2.URL(address))
    async with asyncio.timeout(TIMEOUT_S), open_client() as client:
        request = client.build_request("GET", address, extensions={"trace": guard.trace})
        for _ in range(MAX_REDIRECTS + 1):
            if (request.url.port or 0) > MAX_PORT:
                raise httpx2.InvalidURL(f"port numbers end at {MAX_PORT}")
            response = await client.send(request, stream=True)
            async with aclosing(response):
                if response.next_request is None:
                    return await _page(address, response)
            target = response.next_request  # the content of a redirect is not read: it may be huge
            if target.url.userinfo:
                raise UsageError(
                    f"{address} redirects to an address with a user name or password", "give an address without them"
                )
            await guard.follow(target.url)
            request = target
    raise httpx2.TooManyRedirects("Exceeded maximum allowed redirects.")


def open_client() -> httpx2.AsyncClient:
    import httpx2

    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    try:
        return httpx2.AsyncClient(headers=HEADERS, cookies=no_cookies, timeout=None)
    except (ImportError, ValueError) as error:  # of a proxy of another kind, or whose library is missing
        raise UsageError(f"cannot use the proxy: {first_line(error)}", PROXY_HINT) from error


class LocalNetworkGuard:
    """Refuses a redirect from the internet into the local network; both methods raise UsageError."""

    def __init__(self, address: str, url: httpx2.URL) -> None:
        self._address = address
        self._url = url  # of the current request
        self._is_local: bool | None = None  # unknown until it is connected to, or where a proxy is
        self._may_be_local = True  # as the user may give any address
        self._connects_to = ""  # the host, or a proxy

    async def follow(self, target: httpx2.URL) -> None:
        """Go on to the target of a redirect."""
        if self._is_local is None:
            self._is_local = await is_local(self._url.host)
        self._may_be_local = self._is_local
        self._url = target
        self._is_local = await is_local(target.host)
        self._require_allowed()

    async def trace(self, event: str, info: JsonDict) -> None:
        """Check where a new connection leads before anything is sent; one to a proxy may lead anywhere."""
        if event == "connection.connect_tcp.started":
            self._connects_to = info["host"]
        elif event == "connection.connect_tcp.complete" and self._connects_to == self._url.raw_host.decode():
            stream = info["return_value"]
            self._is_local = is_local_address(stream.get_extra_info("server_addr")[0])
            try:
                self._require_allowed()
            except UsageError:
                await stream.aclose()
                raise

    def _require_allowed(self) -> None:
        if self._is_local and not self._may_be_local:
            hint = f"to read that page, give its address: {self._url}"
            raise UsageError(f"{self._address} redirects into the local network", hint)


async def is_local(host: str) -> bool:
    """Whether a host is this machine, or in a network that the internet does not reach, such as a private one."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:  # only a proxy may know the name
        return False
    return any(is_local_address(str(address[0])) for *_, address in found)


def is_local_address(address: str) -> bool:
    return not _unmapped(ip_address(address)).is_global


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return (address.version == 6 and address.ipv4_mapped) or address


async def _page(address: str, response: httpx2.Response) -> WebPage:
    response.raise_for_status()
    data = bytearray()
    async for part in response.aiter_raw():
        data += part
        if len(data) > MAX_PAGE_BYTES:
            raise too_large(address)
    content = uncompressed(bytes(data), response.headers.get("Content-Encoding", ""), address)
    return WebPage(content, response.headers.get("Content-Type", ""), suffix_of(content[:5], response))


def uncompressed(data: bytes, encoding: str, address: str) -> bytes:
    """The content that a server has sent in an encoding. Raises UsageError, also for more than a page may have."""
    encoding = encoding.strip().lower()
    try:
        match encoding:
            case "" | "identity":
                return data
            case "gzip" | "x-gzip":
                content = GzipFile(fileobj=BytesIO(data)).read(MAX_PAGE_BYTES + 1)
            case "deflate":
                content = inflated(data)
            case _:
                raise UsageError(f"{address}: compressed by {encoding}, which was not requested", DOWNLOAD)
    except (zlib.error, EOFError, BadGzipFile) as error:
        raise UsageError(f"{address}: its content is not valid {encoding}", DOWNLOAD) from error
    if len(content) > MAX_PAGE_BYTES:
        raise too_large(address)
    return content


def inflated(data: bytes) -> bytes:
    """What "deflate" has compressed: a zlib stream, or one without a header, which some servers send."""
    is_zlib = len(data) > 1 and data[0] & 15 == zlib.DEFLATED and int.from_bytes(data[:2]) % 31 == 0
    stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    content = stream.decompress(data, MAX_PAGE_BYTES + 1)
    if not stream.eof and len(content) <= MAX_PAGE_BYTES:
        raise EOFError
    return content


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def too_large(address: str) -> UsageError:
    return UsageError(f"{address} is larger than {format_size(MAX_PAGE_BYTES)}", DOWNLOAD)


def suffix_of(beginning: bytes, response: httpx2.Response) -> str:
    """The suffix for a content, by its media type, or by the address if that does not determine it."""
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if beginning == b"%PDF-":
        return ".pdf"
    if media_type in MEDIA_TYPES or media_type.startswith("text/"):
        return MEDIA_TYPES.get(media_type, "")
    return Path(response.url.path).suffix
