"""HTTP on loopback for the Hub of `hub_server.py`: a site answers, armed faults strike, a log keeps what was asked."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import Condition
from typing import Any, Literal, Protocol

from loopback import ArmedFault, CountedFault, Loopback, LoopbackHandler, reset

Part = Literal["api", "resolve", "cdn", "other"]
Headers = tuple[tuple[str, str], ...]
Step = tuple[Literal["send", "flip", "hang", "cut"], int, int]

BLOCK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked and what it got so far; `sent` counts the body's bytes as the socket takes them."""

    part: Part
    method: str
    path: str  # with its query, as on the wire
    headers: Headers  # names in lower case
    status: int | None = None
    sent: int = 0

    def header(self, name: str) -> str | None:
        """Return a header's value, whatever the case of its name."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    @property
    def range(self) -> str | None:
        return self.header("range")

    @property
    def authorization(self) -> str | None:
        return self.header("authorization")

    @property
    def token(self) -> str | None:
        return self.authorization and self.authorization.removeprefix("Bearer ")

    def without_range(self) -> Request:
        """Return the request as a server sees it that knows no ranges."""
        return replace(self, headers=tuple(header for header in self.headers if header[0] != "range"))


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer ready to be sent: bytes `start` to `stop` of the body."""

    status: int
    headers: Headers
    body: bytes | Path
    start: int
    stop: int

    @classmethod
    def telling(cls, said: Any, headers: Headers = (), status: int = 200) -> Reply:
        """Return a page of JSON."""
        body = json.dumps(said).encode()
        return cls(status, (("Content-Type", "application/json; charset=utf-8"), *headers), body, 0, len(body))


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is no success, in the Hub's shape: headers say the reason to the client, JSON to a reader."""

    status: int
    message: str
    code: str | None = None
    headers: Headers = ()

    def about(self, subject: str) -> Refusal:
        """Name the repository, the revision or the file that the message leaves open."""
        return replace(self, message=self.message.replace("{}", subject))

    def with_header(self, name: str, value: str) -> Refusal:
        """Add a header, such as `Retry-After` with a number of seconds or an HTTP date."""
        return replace(self, headers=(*self.headers, (name, value)))

    @property
    def reply(self) -> Reply:
        code = () if self.code is None else (("X-Error-Code", self.code),)
        plain = self.message.encode("ascii", "replace").decode()  # all that a header can carry
        headers = (*code, ("X-Error-Message", plain), *self.headers)
        return Reply.telling({"error": self.message}, headers, self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(CountedFault):
    """What goes wrong with requests for a part.

    Bytes of `cut_after` and `hang_after` count from the start of the answer's body, `flip_at` from the file's start.
    A request that hangs goes on when released. Several misfortunes may strike one request.
    """

    part: Part
    path: str = ""  # any part of the request's path and query
    refusal: Refusal | None = None
    cut_after: int | None = None
    reset: bool = False  # how a cut ends: with TCP's RST instead of FIN; what was on its way may be lost
    hang_after: int | None = None
    flip_at: int | None = None
    ignore_range: bool = False
    bytes_per_second: int | None = None

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Yield how bytes `start` to `stop` of a file are sent, one after the other."""
        cut = None if self.cut_after is None else start + self.cut_after
        hang = None if self.hang_after is None else start + self.hang_after
        end = stop if cut is None else min(cut, stop)
        inner = () if self.flip_at is None else (self.flip_at, self.flip_at + 1)
        marks = {mark for mark in (*inner, hang) if mark is not None and start < mark < end}
        for first, last in pairwise(sorted({start, end} | marks)):
            if first == hang:
                yield "hang", first, first
            yield "flip" if first == self.flip_at else "send", first, last
        if hang == end:
            yield "hang", end, end
        if cut is not None:
            yield "cut", end, end


class Armed(ArmedFault[Fault]):
    """A fault of the Hub in place."""

    def strike(self, request: Request) -> bool:
        """Return whether this request is one that the fault is for, and count it."""
        fault = self.fault
        return request.part == fault.part and fault.path in request.path and self.strike_next()

    def release(self) -> None:
        """Let go on what hangs, now and later."""
        self.released.set()


class Log:
    """The requests in the order of their arrival, those under way included."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._count = 0
        self._changed = Condition()

    def add(self, request: Request) -> int:
        """Note a request that arrived; return its number."""
        with self._changed:
            self._count += 1
            self._requests[self._count] = request
            self._changed.notify_all()
            return self._count

    def answered(self, number: int, status: int) -> None:
        """Note the status of an answer that is about to be sent."""
        self._change(number, lambda request: replace(request, status=status))

    def sent(self, number: int, size: int) -> None:
        """Note so many more bytes of a body."""
        self._change(number, lambda request: replace(request, sent=request.sent + size))

    def clear(self) -> None:
        """Forget all requests."""
        with self._changed:
            self._requests.clear()

    def requests(self, part: Part | None = None) -> tuple[Request, ...]:
        """Return the requests for a part, or all."""
        with self._changed:
            noted = tuple(self._requests.values())
        return tuple(each for each in noted if part in (None, each.part))

    def wait_for(self, seen: Callable[[Request], bool], timeout: float = 10.0) -> Request:
        """Wait until some request, perhaps under way, is as `seen` wants it; return the first such."""
        found: list[Request] = []

        def look() -> bool:
            found.extend(filter(seen, self._requests.values()))
            return bool(found)

        with self._changed:
            if not self._changed.wait_for(look, timeout):
                raise TimeoutError(f"no such request within {timeout} s among {[*self._requests.values()]}")
        return found[0]

    def _change(self, number: int, change: Callable[[Request], Request]) -> None:
        with self._changed:
            if number in self._requests:
                self._requests[number] = change(self._requests[number])
                self._changed.notify_all()


class Site(Protocol):
    """What stands behind the ports."""

    @property
    def log(self) -> Log: ...

    def struck(self, request: Request) -> Armed:
        """Return the fault that strikes a request; it may be one that does nothing."""
        ...

    def reply(self, request: Request) -> Reply: ...


class Listener(Loopback):
    """One port of a site."""

    def __init__(self, site: Site, part: Callable[[str], Part]) -> None:
        super().__init__(_Exchange)
        self.site = site
        self.part = part


class _Exchange(LoopbackHandler):
    """One connection: requests, each noted, struck by its fault if there is one, and answered."""

    server: Listener

    def do_GET(self) -> None:
        site, part = self.server.site, self.server.part(self.path)
        headers = tuple((name.lower(), value) for name, value in self.headers.items())
        request = Request(part, self.command, self.path, headers)
        number = site.log.add(request)
        armed = site.struck(request)
        fault = armed.fault
        heard = request.without_range() if fault.ignore_range else request
        reply = fault.refusal.reply if fault.refusal else site.reply(heard)
        site.log.answered(number, reply.status)
        self.write_head(reply.status, (*reply.headers, ("Content-Length", str(reply.stop - reply.start))))
        if self.command != "HEAD":
            self._write_body(reply, armed, number)

    do_HEAD = do_GET

    def _write_body(self, reply: Reply, armed: Armed, number: int) -> None:
        """Send what the fault lets through, from the disk without a copy in memory."""
        fault = armed.fault
        block = max(1, fault.bytes_per_second // 20) if fault.bytes_per_second else BLOCK
        with opened(reply.body) as body:
            for what, start, stop in fault.steps(reply.start, reply.stop):
                if what == "hang":
                    self.hang(armed.released)
                elif what == "cut":
                    self._cut(fault)
                for first in range(start, stop, block):
                    size = min(block, stop - first)
                    self.server.site.log.sent(number, size)
                    self._send(body, first, size, flipped=what == "flip")
                    if fault.bytes_per_second:
                        time.sleep(size / fault.bytes_per_second)

    def _send(self, body: io.BytesIO | io.BufferedReader, first: int, size: int, *, flipped: bool) -> None:
        body.seek(first)
        if flipped:
            self.connection.sendall(bytes(byte ^ 0xFF for byte in body.read(size)))
        else:
            self.connection.sendfile(body, first, size)

    def _cut(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.reset:
            reset(self.connection)


def opened(source: bytes | Path) -> io.BytesIO | io.BufferedReader:
    """Return a file that may be read, sought in, and closed."""
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
