"""Model servers on loopback: recorded answers with a scripted model's tokens in them, and scripted faults.

What is not imitated: slots, other routes, a log.
"""

import json
from abc import ABC, abstractmethod
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from threading import Condition, Event
from types import TracebackType
from typing import Any, ClassVar, Self

from loopback import ArmedFault, CountedFault, Loopback, LoopbackHandler, is_left, reset
from scripted_backend import Model, ScriptedBackend
from waiting import TIMEOUT_S

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.vocabulary import Vocabulary

PING = b":\n\n"

Edit = Callable[[int, dict[str, Any]], Any]
"""Changes an object of a reply; also gets how many there were before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(CountedFault):
    """What goes wrong with requests for a path.

    Counts of `reset_after` and `hang_after` are objects of the reply, of which a whole reply has one; 0 is before the
    headers. A request that hangs continues when it is released.
    """

    path: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "scripted"
    body: bytes | None = None  # instead of the reply
    edit: Edit = lambda _, reply: reply
    reset_after: int | None = None
    hang_after: int | None = None


class Armed(ArmedFault[Fault]):
    """A fault of a server in place; `is_hanging` is set once a request hangs."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.is_hanging = Event()

    def strike(self, path: str) -> bool:
        return path == self.fault.path and self.strike_next()

    def disarm(self) -> None:
        super().disarm()
        self.released.set()


HEALTHY = Armed(Fault(path=""))


@dataclass(slots=True, eq=False)
class Asked:
    """A request that arrived; `is_left` if the client closed the connection before the end of the reply."""

    path: str
    key: str | None
    body: Any
    is_answered: bool = False
    is_left: bool = False

    @property
    def prompt(self) -> tuple[int, ...]:
        return tuple(self.body["prompt"])


class Refused(Exception):
    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        self.status = status
        self.message = message
        self.kind = kind


@dataclass(slots=True)
class Sample:
    """A generated sample, by token: text is held back within a character. `has_ended` is false at a limit."""

    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ends_characters: list[bool] = field(default_factory=list)
    has_ended: bool = False


class ModelServer(ABC):
    """A server of one kind; with a `key`, it requires that. Its attributes may change while it runs."""

    completion_path: ClassVar[str]
    owner: str  # of the models, by which its kind is recognized

    def __init__(
        self, model: Model, *, slots: int = 4, context_size: int = 100, vocabulary: Vocabulary | None = None
    ) -> None:
        self.model = model
        self.slots = slots
        self.context_size = context_size
        self.vocabulary = vocabulary or ScriptedBackend(model)
        self.models: tuple[str, ...] = ("tiny.gguf",)
        self.key: str | None = None
        self.openings: dict[str, float] = {}  # the likeliest first tokens, each a byte of text, with log probabilities
        self.is_loading = False  # all answers are 503
        self.asked: list[Asked] = []
        self.changed = Condition()
        self._armed: list[Armed] = []
        self._port = 0
        self._listener: _Port | None = None

    @abstractmethod
    def listed(self, name: str) -> dict[str, Any]:
        """A model in /v1/models."""

    @abstractmethod
    def answer(self, path: str, body: Any) -> Any:
        """The answer to a request that only this kind knows, as bytes or for JSON; None if there is no such path."""

    @abstractmethod
    def complete(self, body: Mapping[str, Any]) -> Generator[Any, None, None]:
        """Yield the objects of a stream, or whole replies; None while there is nothing to send. Raises Refused."""

    def generate(
        self, prompt: Sequence[int], seed: int, limit: int | None, ignore_eos: bool = False
    ) -> Generator[None, None, Sample]:
        sample, room = Sample(), self.context_size - len(prompt)
        decoder = getincrementaldecoder("utf-8")("replace")
        limit = room if limit is None else min(room, limit)
        while not sample.has_ended and len(sample.tokens) < limit:
            yield
            token = self.model((*prompt, *sample.tokens), seed)
            sample.tokens.append(token)
            sample.texts.append(decoder.decode(self.vocabulary.piece(token)))
            sample.ends_characters.append(not decoder.getstate()[0])
            sample.has_ended = self.vocabulary.is_eog(token) and not ignore_eos
        return sample

    def tokenize(self, text: str, *, trusted: bool) -> list[int]:
        """Tokens of a text, without BOS."""
        tokens = list(self.vocabulary.tokenize((Text(text, trusted=trusted),)))
        bos = self.vocabulary.special_token_text("bos")
        return tokens[1:] if bos and tokens[0] in self.vocabulary.special_token_ids([bos]) else tokens

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        bugs = self.kill()
        if bugs and error is None:
            raise bugs[0]

    def start(self) -> None:
        """Listen, after a kill on the same port as before."""
        self._listener = _Port(self, self._port)
        self._port = self._listener.server_port
        self._listener.start()

    def kill(self) -> list[BaseException]:
        if self._listener is None:
            return []
        listener, self._listener = self._listener, None
        listener.stop()
        return listener.bugs

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        return self._listener.connections if self._listener else 0

    def arm(self, **fault: Any) -> Armed:
        self._armed.append(Armed(Fault(**{"path": self.completion_path, **fault})))
        return self._armed[-1]

    def disarm(self) -> None:
        with self.changed:
            self._armed.clear()

    def completions(self) -> list[Asked]:
        with self.changed:
            return [asked for asked in self.asked if asked.path == self.completion_path]

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until something holds that a request changes."""
        with self.changed:
            assert self.changed.wait_for(condition, TIMEOUT_S), "timed out"

    def note(self, asked: Asked, **changes: bool) -> None:
        with self.changed:
            for name, value in changes.items():
                setattr(asked, name, value)
            self.changed.notify_all()

    def add(self, asked: Asked) -> Armed:
        """Note a request that arrived, and return the fault that strikes it."""
        with self.changed:
            self.asked.append(asked)
            armed = next((each for each in self._armed if each.strike(asked.path)), HEALTHY)
            self.changed.notify_all()
            return armed


class _Port(Loopback):
    def __init__(self, site: ModelServer, port: int) -> None:
        super().__init__(_Exchange, port)
        self.site = site


class _Exchange(LoopbackHandler):
    """One connection: requests, each noted, struck by its fault if there is one, and answered."""

    server: _Port

    def do_GET(self) -> None:
        site = self.server.site
        length = int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(length)
        if len(data) < length:  # the client has left
            self.close_connection = True
            return
        asked = Asked(self.path.partition("?")[0], self.headers.get("Authorization"), json.loads(data or "null"))
        armed = site.add(asked)
        try:
            try:
                self._answer(asked, armed)
            except Refused as refused:
                error = {"code": refused.status, "message": refused.message, "type": refused.kind}
                self._send(dump({"error": error}), refused.status, armed.fault.headers)
            site.note(asked, is_answered=True)
        except ConnectionError:
            self.close_connection = True
            site.note(asked, is_left=True)

    do_POST = do_GET

    def _answer(self, asked: Asked, armed: Armed) -> None:
        site, fault = self.server.site, armed.fault
        if fault.hang_after == 0:
            self._hang(armed)
        if fault.reset_after == 0:
            self._cut()
        if fault.body is not None:
            self._send(fault.body, fault.status or 200, fault.headers)
        elif fault.status is not None:
            raise Refused(fault.status, fault.message, "scripted")
        elif site.is_loading:
            self.close_connection = True
            raise Refused(503, "Loading model", "unavailable_error")
        elif asked.path == "/health":
            self._send(b'{"status":"ok"}')
        elif site.key is not None and asked.key != f"Bearer {site.key}":
            raise Refused(401, "Invalid API Key", "authentication_error")
        elif asked.path == "/v1/models":
            self._send(dump({"object": "list", "data": [site.listed(name) for name in site.models]}))
        elif asked.path == site.completion_path:
            self._complete(asked.body, armed)
        elif answer := site.answer(asked.path, asked.body):
            self._send(answer if isinstance(answer, bytes) else dump(answer))
        else:
            raise Refused(404, "File Not Found", "not_found_error")

    def _complete(self, body: Mapping[str, Any], armed: Armed) -> None:
        """Answer with completions: as a stream of objects, or as one."""
        sent: list[Any] = []
        with closing(self.server.site.complete(body)) as chunks:
            for chunk in chunks:
                if is_left(self.connection):
                    raise ConnectionAbortedError
                if chunk is None:
                    continue
                sent.append(armed.fault.edit(len(sent), chunk))
                if body["stream"]:
                    self._send_chunk(sent[-1], len(sent) - 1, armed)
        if body["stream"]:
            self.wfile.write(b"0\r\n\r\n")
            return
        if armed.fault.hang_after == 1:
            self._hang(armed)
        self._send(dump(sent if len(sent) > 1 else sent[0]), is_truncated=armed.fault.reset_after == 1)

    def _send_chunk(self, chunk: Any, count: int, armed: Armed) -> None:
        """Send an object of a stream, after what the fault does before it."""
        fault = armed.fault
        if not count:
            self.write_head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
            self._write_part(PING)
        if fault.hang_after == count:
            self._hang(armed)
        if fault.reset_after == count:
            self._cut()
        data = chunk if isinstance(chunk, bytes) else b"data: " + dump(chunk) + b"\n\n"
        self._write_part(data)

    def _write_part(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _send(
        self, data: bytes, status: int = 200, headers: Mapping[str, str] = {}, is_truncated: bool = False
    ) -> None:
        kind = (
            "text/event-stream"
            if data.removeprefix(BOM_UTF8).lstrip().startswith((b"data:", b"event:", b":"))
            else "application/json; charset=utf-8"
        )
        length = {"Content-Type": kind, "Content-Length": str(len(data))}
        self.write_head(status, {**length, **headers}.items())
        self.wfile.write(data[: len(data) // 2] if is_truncated else data)
        if is_truncated:
            raise ConnectionAbortedError

    def _hang(self, armed: Armed) -> None:
        armed.is_hanging.set()
        self.hang(armed.released)

    def _cut(self) -> None:
        with suppress(OSError):
            self.wfile.flush()
        reset(self.connection)
        raise ConnectionResetError


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
