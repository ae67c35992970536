"""Bodies of responses: JSON, or server-sent events as in the HTML standard, up to a size, and the words in others."""

from __future__ import annotations

import json
import re
import zlib
from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
from io import IncrementalNewlineDecoder, StringIO
from typing import Any

from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import format_size
from cerebrum_cli.servers.faults import LostServerError, require_success, stated_failure

QUESTION_BYTES = 2**20  # about a server, its load or the tokens of a text, and of an error
REPLY_BYTES = 32_000_000  # of a reply that does not stream; as text, Python may take 4 times as much
SAMPLES_BYTES = 48_000_000  # of the replies of several samples together
VALUES_BYTES = 300_000_000  # of memory for the values of a reply
SMALL_BYTES = 5_000_000  # of a reply whose values never take more: empty lists take 35 times their text
# Memory for an object, its keys, a list, each of their values, and text (each has two quotes), as measured.
VALUE_BYTES = {b"{": 120, b":": 80, b"[": 70, b",": 45, b'"': 28}
LONG = 40  # bytes of a text whose characters are not taken for those of values
STRING = re.compile(rb"""(?s)"(?:[^"\\]|\\.)*+(?:"|\\?\Z)""")
STREAM_BYTES = 256_000_000  # of all events
EVENT_BYTES = 8_000_000  # llama-server's last event may repeat a long prompt
SHOWN = 2000  # characters of another body, in which its words are looked for
# Content encodings, with the windows by which zlib knows them.
WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
UNPACKED_BYTES = 2**16  # at a time
NOT_UTF_8 = "the reply is not UTF-8"
DONE: JsonDict = {}  # instead of [DONE], the last event of a stream


async def unpacked(body: AsyncIterable[bytes], encoding: str) -> AsyncGenerator[bytes, None]:
    """Yield a body in parts; it may be compressed, although the request asks for no compression."""
    if encoding in ("", "identity"):
        async for part in body:
            yield part
        return
    if encoding not in WINDOWS:
        raise LostServerError(f"the reply is compressed with {encoding}, which was not requested")
    unpacker = None
    try:
        async for part in body:
            data = b""
            while part or len(data) == UNPACKED_BYTES:
                if unpacker and unpacker.eof:
                    part = part.lstrip(b"\0") if encoding != "deflate" else b""  # without padding
                    if not part:
                        break
                    unpacker = None
                unpacker = unpacker or _unpacker(encoding, part[0])
                data = unpacker.decompress(part, UNPACKED_BYTES)
                yield data
                part = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    except zlib.error as error:
        raise LostServerError(f"the reply is not valid {encoding}") from error
    if unpacker and not unpacker.eof:
        raise LostServerError(f"the reply is incomplete: its {encoding} data ends early")


def _unpacker(encoding: str, first_byte: int) -> zlib._Decompress:
    """What unpacks a member, of which gzip may have several."""
    is_raw = encoding == "deflate" and first_byte % 16 != zlib.DEFLATED  # which some servers send
    return zlib.decompressobj(-zlib.MAX_WBITS if is_raw else WINDOWS[encoding])


async def read_body(body: AsyncIterable[bytes], limit: int) -> bytes:
    """All of a body. Raises LostServerError for more bytes than the limit."""
    parts = []
    size = 0
    async for part in body:
        size += len(part)
        require_size(size, limit)
        parts.append(part)
    return b"".join(parts)


def require_size(size: int, limit: int) -> None:
    if size > limit:
        raise LostServerError(f"the reply is too large: more than {format_size(limit)}")


def require_memory(body: bytes | str) -> None:
    """Raise LostServerError for a body that has very many small values."""
    if len(body) < SMALL_BYTES:
        return
    data = body if isinstance(body, bytes) else body.encode(errors="replace")
    expected = _values_bytes(data)
    if expected > VALUES_BYTES:
        strings = (string[0] for string in STRING.finditer(data))
        expected -= sum(_values_bytes(string) for string in strings if len(string) > LONG)
    if expected > VALUES_BYTES:
        size = format_size(VALUES_BYTES)
        raise LostServerError(f"the reply is too large: its values would take more than {size} of memory")


def _values_bytes(data: bytes) -> int:
    return sum(size * data.count(mark) for mark, size in VALUE_BYTES.items())


def parse_json(body: bytes | str) -> Any:
    """The value of a body. Raises LostServerError with the words of one that is not JSON."""
    if not body.strip():
        raise LostServerError("the server sent an empty reply")
    require_memory(body)
    try:
        text = body if isinstance(body, str) else body.decode(json.detect_encoding(body))
        beginning = body[:SHOWN]
        del body  # which may be large
        return json.loads(text, strict=False)  # some servers do not escape control characters
    except UnicodeDecodeError as error:
        raise LostServerError(NOT_UTF_8) from error
    except (ValueError, RecursionError) as error:
        raise LostServerError(f"the reply is not JSON: {words_of(beginning)}") from error


def words_of(body: bytes | str) -> str:
    """What a body says that is not JSON: the title of a web page, or its text without tags."""
    shown = body[:SHOWN]
    text = shown if isinstance(shown, str) else shown.decode(errors="replace")
    title = re.search(r"<title[^>]*>([^<]+)", text, re.IGNORECASE)
    if title:
        return title[1]
    return re.sub(r"<[^>]*>", " ", text).strip() or text


def error_body(body: bytes | str) -> Any:
    """The value of an error's body, or the words of one that is not JSON; None of an empty one."""
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return words_of(body)


async def read_events(body: AsyncIterable[bytes]) -> AsyncGenerator[Any, None]:
    """Yield the values of a stream's events; of a server that does not stream, its whole reply.

    Raises LostServerError for a body of another kind, and the error that an event states.
    """
    reader = EventReader()
    async for part in body:
        for event in reader.feed(part):
            yield event
    for event in reader.end():
        yield event


class EventReader:
    """Reads events from a body that comes in parts, whichever they are."""

    def __init__(self) -> None:
        # It drops a byte order mark, and makes one kind of line ends of all three.
        self._decoder = IncrementalNewlineDecoder(getincrementaldecoder("utf-8-sig")(), translate=True)
        self._size = 0
        self._has_begun = self._is_json = False
        self._parts: list[str] = []  # of JSON
        self._line = StringIO()  # which may go on
        self._name = ""  # of the event that has begun, with its data
        self._data: list[str] = []
        self._data_size = 0
        self._other = ""  # what it says besides events
        self._has_events = False

    def feed(self, part: bytes) -> Iterator[Any]:
        self._size += len(part)
        require_size(self._size, STREAM_BYTES)
        yield from self._read(part)

    def end(self) -> Iterator[Any]:
        """Yield the last event, after which a blank line may be missing. Raises LostServerError without any event."""
        yield from self._read(b"", is_last=True)
        if self._is_json:
            yield require_success(parse_json("".join(self._parts)))
            return
        yield from self._take_line(self._line.getvalue())
        yield from self._take_event()
        if self._other and not self._has_events:
            raise LostServerError(f"the reply is not a stream of events: {words_of(self._other)}")

    def _read(self, part: bytes, is_last: bool = False) -> Iterator[Any]:
        try:
            text: str = self._decoder.decode(part, is_last)
        except UnicodeDecodeError as error:
            raise LostServerError(NOT_UTF_8) from error
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
            self._is_json = text.startswith(("{", "["))
        if self._is_json:
            require_size(self._size, REPLY_BYTES)
            self._parts.append(text)
            return
        *lines, rest = text.split("\n")
        if lines:
            lines[0] = self._line.getvalue() + lines[0]
            self._line = StringIO()
        self._line.write(rest)
        require_size(self._line.tell() + self._data_size, EVENT_BYTES)
        for line in lines:
            yield from self._take_line(line)

    def _take_line(self, line: str) -> Iterator[Any]:
        field, _, value = line.partition(":")
        if not line:
            yield from self._take_event()
        elif field == "data":
            self._data.append(value.strip())
            self._data_size += len(self._data[-1])
        elif field == "event":
            self._name = value.strip()
        elif field not in ("", "id", "retry"):  # a line without a field is a comment
            self._other = f"{self._other}{line}\n"[:SHOWN]

    def _take_event(self) -> Iterator[Any]:
        """Yield what the event is that a blank line ends."""
        name, data = self._name, self._data
        self._name, self._data, self._data_size = "", [], 0
        if name == "error":
            raise stated_failure(error_body("\n".join(data)))
        for value in _values(data):
            if value is not None:  # which keeps the connection open
                self._has_events = True
                yield require_success(value)


def _values(data: Sequence[str]) -> list[Any]:
    """The values of an event: one, or several of a server that omits the blank lines between events."""
    try:
        return [_value("\n".join(data))]
    except LostServerError:
        if len(data) == 1:
            raise
        return list(map(_value, data))


def _value(text: str) -> Any:
    if text == "[DONE]":
        return DONE
    if not text or text.startswith(":"):  # such as `data: : PING`
        return None
    return parse_json(text)
