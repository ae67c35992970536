"""Bodies of responses: JSON, server-sent events, and the words in others."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import format_size
from cerebrum_cli.servers.faults import LostServerError, require_success, stated_failure

EVENT_BYTES = 8_000_000  # llama-server's last event repeats the prompt
BODY_BYTES = 32_000_000
SHOWN = 2000  # characters of another body, in which its words are looked for
DONE: JsonDict = {}  # instead of [DONE], the last event of a stream


async def read_body(parts: AsyncIterable[bytes]) -> bytes:
    """All of a body. Raises LostServerError if it is too large."""
    body = b""
    async for part in parts:
        body += part
        require_size(body, BODY_BYTES)
    return body


def require_size(body: bytes, limit: int) -> None:
    if len(body) > limit:
        raise LostServerError(f"the reply is too large: more than {format_size(limit)}")


async def read_lines(parts: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        require_size(rest, EVENT_BYTES)
        for line in lines:
            yield line.strip()
    yield rest.strip()


async def read_events(parts: AsyncIterable[bytes]) -> AsyncGenerator[Any, None]:
    """Yield the values of events, each on one line, as all servers of language models write them.

    Raises LostServerError for one that is not JSON, and the error that an event states.
    """
    is_error = False
    async for line in read_lines(parts):
        field, _, data = line.partition(b":")  # a ping has no field
        data = data.strip()
        if field == b"event":
            is_error = data == b"error"
        elif field == b"data" and is_error:
            raise stated_failure(error_body(data))
        elif field == b"data" and data:
            yield event_value(data)


def event_value(data: bytes) -> Any:
    return DONE if data == b"[DONE]" else require_success(parse_json(data))


def parse_json(body: bytes) -> Any:
    """The value of a body. Raises LostServerError with the words of one that is not JSON."""
    if not body.strip():
        raise LostServerError("the server sent an empty reply")
    try:
        return json.loads(body, strict=False)  # some servers do not escape control characters
    except (ValueError, RecursionError) as error:
        raise LostServerError(f"the reply is not JSON: {words_of(body)}") from error


def error_body(body: bytes) -> Any:
    """The value of an error's body, or the words of one that is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return words_of(body)


def words_of(body: bytes) -> str:
    """What a body says that is not JSON: the title of a web page, or its text without tags."""
    text = body[:SHOWN].decode(errors="replace")
    if title := re.search(r"<title[^>]*>([^<]+)", text, re.IGNORECASE):
        return title[1]
    return re.sub(r"<[^>]*>", " ", text).strip() or text
