"""Servers on loopback that stand in for real ones: an engine generates, and scripted faults strike.

What is not in the modules of their kinds is not imitated: no slots, no other routes, no log.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from threading import Condition, Event
from types import TracebackType
from typing import Any, ClassVar, Self

from loopback import ArmedFault, CountedFault, Loopback, LoopbackHandler, is_left, reset
from scripted_backend import END
from waiting import TIMEOUT_S

from cerebrum_cli.core.errors import CerebrumError, GrammarError
from cerebrum_cli.core.events import FinishEvent, PromptEvent, RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.core.parts import Text
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.sequence import Request

PING = b":\n\n"
END_LOGPROB = -0.5

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
    edit: Edit | None = None
    reset_after: int | None = None
    hang_after: int | None = None
    is_truncated: bool = False  # the connection closes within the first object


class Armed(ArmedFault[Fault]):
    """A fault of a server in place; `is_hanging` is set once a request hangs."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.is_hanging = Event()

    def strike(self, path: str) -> bool:
        return path == self.fault.path and self.strike_next()

    def disarm(self) -> None:
        """Strike no further request, and continue those that hang."""
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
        return tuple(self.body["prompt"] if "prompt" in self.body else self.body["input_ids"])


class ModelServer(ABC):
    """A server whose model is loaded in an engine; its attributes may change while it runs.

    `models` are the ids of `/v1/models`. While `is_loading`, all answers are 503.
    """

    completion_path: ClassVar[str]
    owner: str  # of the models, by which its kind is recognized
    ends_streams: ClassVar[bool] = True  # with [DONE]

    def __init__(self, engine: LocalEngine, *, slots: int = 4) -> None:
        self.engine = engine
        self.slots = slots
        self.models: tuple[str, ...] = ("tiny.gguf",)
        self.context_size: int | None = None  # None: the engine's
        self.key: str | None = None
        self.is_loading = False
        self.has_logprobs = True
        self.asked: list[Asked] = []
        self.connections_made = 0
        self.changed = Condition()
        self._armed: list[Armed] = []
        self._port = 0
        self._listener: _Port | None = None

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
        """Close the port and all connections."""
        if self._listener is None:
            return []
        listener, self._listener = self._listener, None
        listener.stop()
        return listener.bugs

    def disarm(self) -> None:
        """Remove all faults."""
        with self.changed:
            self._armed.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return self._listener.connections if self._listener else 0

    def arm(self, **fault: Any) -> Armed:
        """Put a fault in place."""
        self._armed.append(Armed(Fault(**{"path": self.completion_path, **fault})))
        return self._armed[-1]

    def completions(self) -> list[Asked]:
        """The completions asked for so far."""
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

    @property
    def n_ctx(self) -> int:
        """Tokens in a sequence."""
        return self.context_size or self.engine.context_size

    @property
    def eos(self) -> int:
        """The token that ends the engine's replies."""
        vocabulary = self.engine.vocabulary
        return next((t for t in vocabulary.special_token_ids([vocabulary.special_token_text("eos")])), END)

    def tokenize(self, text: str, with_bos: bool, trusted: bool) -> list[int]:
        """Tokens of a text."""
        vocabulary = self.engine.vocabulary
        tokens = list(vocabulary.tokenize((Text(text, trusted=trusted),)))
        bos = vocabulary.special_token_text("bos")
        return tokens[1:] if bos and not with_bos and tokens[0] in vocabulary.special_token_ids([bos]) else tokens

    def listed(self) -> dict[str, Any]:
        """The answer to /v1/models."""
        return {"object": "list", "data": [self.described(name) for name in self.models]}

    def described(self, name: str) -> dict[str, Any]:
        """A model in that answer."""
        return {
            "id": name,
            "object": "model",
            "created": 1,
            "owned_by": self.owner,
            "root": name,
            "parent": None,
            "max_model_len": self.n_ctx,
        }

    @abstractmethod
    def answer(self, path: str, body: Any) -> Any:
        """The answer to a request for neither health nor completions; None if there is no such path."""

    @abstractmethod
    def refusal(self, status: int, message: str, kind: str = "") -> Any:
        """The body of an answer that is no success."""

    @abstractmethod
    def request_of(self, body: Mapping[str, Any]) -> Request:
        """The request that a body makes of the engine. Raises Refused."""

    @abstractmethod
    def generated(self, index: int, request: Request, body: Mapping[str, Any]) -> Generated:
        """A sample of the engine's that begins."""

    @abstractmethod
    def whole(self, replies: Sequence[Generated]) -> list[dict[str, Any]]:
        """Whole replies, which faults may edit."""

    def joined(self, replies: Sequence[Any]) -> Any:
        """The answer made of whole replies."""
        return replies[0]

    health: ClassVar[bytes] = b""

    def requires_key(self, path: str) -> bool:
        """Whether a path needs the API key."""
        return path != "/health"


class Generated(ABC):
    """One sample of a completion: what has been generated of it."""

    def __init__(self, site: ModelServer, request: Request) -> None:
        self.site = site
        self.request = request
        self.text = ""
        self.tokens: list[int] = []
        self.logprobs: list[float | None] = []
        self.finish: FinishEvent | None = None

    def add(self, event: TokenEvent | FinishEvent) -> None:
        """Add a token and its text, or the end token of a reply that ends with it."""
        if isinstance(event, TokenEvent):
            self.text += event.text
            if event.token is not None:
                self.tokens.append(event.token)
                self.logprobs.append(event.logprob)
            return
        self.finish = event
        if event.reason == "stop" and not event.by_stop_string:
            self.tokens.append(self.site.eos)
            self.logprobs.append(END_LOGPROB)

    @abstractmethod
    def chunks(self, event: PromptEvent | TokenEvent | FinishEvent) -> Iterator[dict[str, Any]]:
        """Yield the objects of a stream that an event makes."""


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, kind: str = "", headers: Mapping[str, str] = {}) -> None:
        self.status = status
        self.message = message
        self.kind = kind
        self.headers = headers


class _Port(Loopback):
    def __init__(self, site: ModelServer, port: int) -> None:
        super().__init__(_Exchange, port)
        self.site = site


class _Exchange(LoopbackHandler):
    """One connection: requests, each noted, struck by its fault if there is one, and answered."""

    server: _Port

    def setup(self) -> None:
        super().setup()
        self.server.site.connections_made += 1

    def do_GET(self) -> None:
        site = self.server.site
        length = int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(length)
        if len(data) < length:  # the client has left
            self.close_connection = True
            return
        body = json.loads(data) if length else None
        asked = Asked(self.path.partition("?")[0], self.headers.get("Authorization"), body)
        armed = site.add(asked)
        try:
            self._answer(asked, armed)
            site.note(asked, is_answered=True)
        except Refused as refused:
            body = site.refusal(refused.status, refused.message, refused.kind)
            self._send_json(body, refused.status, refused.headers)
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
        if fault.status is not None:
            raise Refused(fault.status, fault.message, "scripted", fault.headers)
        if fault.body is not None:
            self._send(fault.body)
        elif site.is_loading:
            raise Refused(503, "Loading model", "unavailable_error", {"Connection": "close"})
        elif asked.path == "/health":
            self._send(site.health)
        elif site.key is not None and asked.key != f"Bearer {site.key}" and site.requires_key(asked.path):
            raise Refused(401, "Invalid API Key", "authentication_error")
        elif asked.path == "/v1/models":
            self._send_json(site.listed())
        elif asked.path == site.completion_path:
            self._complete(asked.body, armed)
        elif answer := site.answer(asked.path, asked.body):
            self._send_json(answer)
        else:
            raise Refused(404, "File Not Found", "not_found_error")

    def _complete(self, body: Mapping[str, Any], armed: Armed) -> None:
        """Answer with completions: as a stream of objects, or as one."""
        site = self.server.site
        request = site.request_of(body)
        edit = armed.fault.edit or (lambda _, reply: reply)
        replies: dict[SequenceId, Generated] = {}
        count = 0
        with closing(site.engine.complete([request])) as completions:
            for event in _raising_refusals(completions):
                if is_left(self.connection):
                    raise ConnectionAbortedError
                if event.sequence not in replies:
                    replies[event.sequence] = site.generated(event.sequence.sample, request, body)
                for chunk in replies[event.sequence].chunks(event):
                    if request.stream:
                        self._send_chunk(edit(count, chunk), count, armed)
                        count += 1
        if request.stream:
            if site.ends_streams:
                self._write_part(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
            return
        whole = site.whole([replies[SequenceId(0, at)] for at in range(request.n)])
        self._send_json(site.joined([edit(at, each) for at, each in enumerate(whole)]), armed=armed)

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
        if fault.is_truncated:
            self._write_part(data[: len(data) // 2])
            raise ConnectionAbortedError
        self._write_part(data)

    def _write_part(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _send_json(
        self, value: Any, status: int = 200, headers: Mapping[str, str] = {}, armed: Armed = HEALTHY
    ) -> None:
        if armed.fault.hang_after == 1:
            self._hang(armed)
        self._send(dump(value), status, headers, armed.fault.is_truncated or armed.fault.reset_after == 1)

    def _send(
        self, data: bytes, status: int = 200, headers: Mapping[str, str] = {}, is_truncated: bool = False
    ) -> None:
        length = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(data))}
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


def _raising_refusals(events: Iterator[Any]) -> Iterator[PromptEvent | TokenEvent | FinishEvent]:
    """Yield the events of samples; raise Refused for one that fails."""
    try:
        for event in events:
            if isinstance(event, RefusedEvent):
                raise event.error
            if isinstance(event, PromptEvent | TokenEvent | FinishEvent):
                yield event
    except GrammarError as error:
        raise Refused(400, "Failed to initialize samplers: failed to parse grammar") from error
    except CerebrumError as error:
        raise Refused(400, error.message) from error


def dump(value: Any) -> bytes:
    """JSON as the servers write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
