"""The content of a web address: one request without credentials, with limits on time, size and redirects.

A page outside of the local network cannot redirect into it, where a request may do harm or give secrets to a model.
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
    # A library for a proxy may be missing; values are of ports, of host names and of the addresses of proxies.
    except (httpx2.HTTPError, httpx2.InvalidURL, ImportError, OSError, ValueError, OverflowError) as error:
        raise UsageError(f"{address}: {str(error).partition(chr(10))[0]}", DOWNLOAD) from error


async def fetch_within_limits(address: str) -> WebPage:
    import httpx2

    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    client = httpx2.AsyncClient(headers=HEADERS, cookies=no_cookies, timeout=None)
    async with asyncio.timeout(TIMEOUT_S), client:
        request = client.build_request("GET", address)
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
            if await is_local(target.url.host) and not await is_local(request.url.host):
                hint = f"to read that page, give its address: {target.url}"
                raise UsageError(f"{address} redirects into the local network", hint)
            request = target
    raise httpx2.TooManyRedirects("Exceeded maximum allowed redirects.")


async def is_local(host: str) -> bool:
    """Whether a host is this machine, or in a network that the internet does not reach, such as a private one."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:  # only a proxy may know the name
        return False
    return any(not _unmapped(ip_address(address[0])).is_global for *_, address in found)


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
