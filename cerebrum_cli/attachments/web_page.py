"""The content of a web address: one request without credentials, with limits on time and size."""

from __future__ import annotations

import asyncio
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
HEADERS = {"User-Agent": f"cerebrum/{__version__}", "Accept": "text/html, text/*, application/pdf, */*;q=0.1"}
SUFFIXES = {"text/html": ".html", "application/xhtml+xml": ".html", "application/pdf": ".pdf", "text/plain": ""}
DOWNLOAD = "check the address and the network, or download it, and give the file"


class WebPage(NamedTuple):
    """A content, in UTF-8 if the server states the charset, and the suffix of a file with such content."""

    data: bytes
    suffix: str


def fetch(address: str) -> WebPage:
    """Request a page. Raises UsageError."""
    import httpx2

    try:
        if httpx2.URL(address).userinfo:
            raise UsageError("a web address contains a user name or password", "remove them: none are sent")
        response, data = asyncio.run(_response(address))
    except TimeoutError as error:
        raise UsageError(f"{address}: not complete within {TIMEOUT_S:g} s", DOWNLOAD) from error
    except ExceptionGroup as error:  # of the attempts to connect
        raise UsageError(f"{address}: {error.exceptions[0]}", DOWNLOAD) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, ImportError) as error:  # the last two of a proxy
        problem = str(error).partition("\n")[0]
        raise UsageError(f"{address}: {problem}", DOWNLOAD) from error
    if response.charset_encoding:
        data = data.decode(response.encoding or "utf-8", "replace").encode()
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return WebPage(data, SUFFIXES.get(media_type, Path(response.url.path).suffix))


async def _response(address: str) -> tuple[httpx2.Response, bytes]:
    import httpx2

    data = bytearray()
    async with (
        asyncio.timeout(TIMEOUT_S),
        httpx2.AsyncClient(headers=HEADERS, follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=None) as client,
        client.stream("GET", address) as response,
    ):
        response.raise_for_status()
        async for part in response.aiter_bytes():
            data += part
            if len(data) > MAX_PAGE_BYTES:
                raise UsageError(f"{address} is larger than {format_size(MAX_PAGE_BYTES)}", DOWNLOAD)
    return response, bytes(data)
