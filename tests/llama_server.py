"""llama-server on loopback, as its build b1-0c1e570 answers: an engine generates, and scripted faults strike.

What is not in `_completion` or the answers below is not imitated: no slots, no other routes, no log.
"""

from __future__ import annotations

import json
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Condition, Event
from types import TracebackType
from typing import Any

from loopback import Loopback, is_left, reset
from scripted_backend import END
from waiting import TIMEOUT_S

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import FinishEvent, PromptEvent, SequenceId, TokenEvent
from cerebrum_cli.core.parts import Text
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.sequence import Request

BUILD = "b1-0c1e570"
PING = b":\n\n"
LOADING = {"message": "Loading model", "type": "unavailable_error", "code": 503}
INVALID_KEY = {"message": "Invalid API Key", "type": "authentication_error", "code": 401}
NOT_FOUND = {"message": "File Not Found", "type": "not_found_error", "code": 404}
FINISH = {"length": "limit", "context": "limit", "stop": "eos"}

Edit = Callable[[int, dict[str, Any]], Any]
"""Changes an object of a reply; also gets how many there were before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with the next `times` requests for a path, those let through first not counted.

    Counts of `reset_after` and `hang_after` are objects of the reply, of which a whole reply has one; 0 is before the
    headers. A request that hangs continues when it is released.
    """

    path: str = "/completion"
    times: int | None = 1  # None: until disarmed
    let_through: int = 0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "scripted"
    body: bytes | None = None  # instead of the reply
    edit: Edit | None = None
    reset_after: int | None = None
    hang_after: int | None = None
    is_truncated: bool = False  # the connection closes within the first object


class Armed:
    """A fault in place: whether it strikes a request, and the gate that those which hang wait at."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.struck = 0
        self.is_hanging = Event()
        self.released = Event()
        self._passed = 0

    def strike(self, path: str) -> bool:
        fault = self.fault
        if path != fault.path or self.struck == fault.times:
            return False
        if self._passed < fault.let_through:
            self._passed += 1
            return False
        self.struck += 1
        return True

    def disarm(self) -> None:
        """Strike no further request."""
        self.fault = Fault(path="")
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


class LlamaServer:
    """A server whose model is loaded in an engine; its attributes may change while it runs.

    `models` are the ids of `/v1/models`. While `is_loading`, all answers are 503.
    """

    def __init__(self, engine: LocalEngine, *, slots: int = 4, n_vocab: int | None = None) -> None:
        self.engine = engine
        self.slots = slots
        self.n_vocab = n_vocab
        self.models: tuple[str, ...] = ("tiny.gguf",)
        self.owner = "llamacpp"
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

    def __enter__(self) -> LlamaServer:
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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return self._listener.connections if self._listener else 0

    def arm(self, **fault: Any) -> Armed:
        """Put a fault in place."""
        self._armed.append(Armed(Fault(**fault)))
        return self._armed[-1]

    def completions(self) -> list[Asked]:
        """The completions asked for so far."""
        with self.changed:
            return [asked for asked in self.asked if asked.path == "/completion"]

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

    def listed(self) -> dict[str, Any]:
        """The answer to /v1/models."""
        size = {} if self.n_vocab is None else {"n_vocab": self.n_vocab}
        meta = {"vocab_type": 2, **size, "n_ctx": self.n_ctx, "n_ctx_train": 8192, "ftype": "Q4_1"}
        return {
            "models": [{"name": name, "model": name, "type": "model"} for name in self.models],
            "object": "list",
            "data": [
                {"id": name, "aliases": [name], "object": "model", "owned_by": self.owner, "meta": meta}
                for name in self.models
            ],
        }

    def props(self) -> dict[str, Any]:
        """The answer to /props, less what the server says of sampling and templates."""
        return {
            "default_generation_settings": {"params": {"seed": 4294967295}, "n_ctx": self.n_ctx},
            "total_slots": self.slots,
            "model_alias": self.models[0],
            "model_path": self.models[0],
            "chat_template": "",
            "build_info": BUILD,
            "is_sleeping": False,
        }


class Refused(Exception):
    """An answer that is no success, as the object `error` of the reply says."""

    def __init__(self, error: Mapping[str, Any], status: int | None = None, headers: Mapping[str, str] = {}) -> None:
        self.status: int = status or error["code"]
        self.error = error
        self.headers = headers


def invalid(message: str, **more: Any) -> Refused:
    """The refusal of a request."""
    return Refused({"code": 400, "message": message, "type": "invalid_request_error", **more})


class _Port(Loopback):
    def __init__(self, site: LlamaServer, port: int) -> None:
        super().__init__(_Exchange, port)
        self.site = site


class _Exchange(BaseHTTPRequestHandler):
    """One connection: requests, each noted, struck by its fault if there is one, and answered."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
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
        except GrammarError:
            error = invalid("Failed to initialize samplers: failed to parse grammar").error
            self._send_json({"error": error}, 400)
            site.note(asked, is_answered=True)
        except Refused as refused:
            self._send_json({"error": refused.error}, refused.status, refused.headers)
            site.note(asked, is_answered=True)
        except ConnectionError:
            self.close_connection = True
            site.note(asked, is_left=True)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing on standard error; requests are in `asked`."""

    def _answer(self, asked: Asked, armed: Armed) -> None:
        site, fault = self.server.site, armed.fault
        if fault.hang_after == 0:
            self._hang(armed)
        if fault.reset_after == 0:
            self._cut()
        if fault.status is not None:
            error = {"message": fault.message, "type": "scripted", "code": fault.status}
            raise Refused(error, fault.status, fault.headers)
        if fault.body is not None:
            self._send(fault.body)
        elif site.is_loading:
            raise Refused(LOADING, headers={"Connection": "close"})
        elif asked.path == "/health":
            self._send_json({"status": "ok"})
        elif site.key is not None and asked.key != f"Bearer {site.key}":
            raise Refused(INVALID_KEY)
        elif asked.path == "/v1/models":
            self._send_json(site.listed())
        elif asked.path == "/props":
            self._send_json(site.props())
        elif asked.path == "/tokenize":
            text = Text(asked.body["content"], trusted=asked.body.get("parse_special", True))
            self._send_json({"tokens": list(site.engine.vocabulary.tokenize((text,)))})
        elif asked.path == "/completion":
            self._complete(asked.body, armed)
        else:
            raise Refused(NOT_FOUND)

    def _complete(self, body: Mapping[str, Any], armed: Armed) -> None:
        """Answer /completion: as a stream of objects, as one, or with several samples as a list."""
        site = self.server.site
        is_stream, samples = bool(body.get("stream")), int(body.get("n_cmpl", 1))
        request = request_of(body, site.slots, site.n_ctx)
        edit = armed.fault.edit or (lambda _, reply: reply)
        with closing(site.engine.complete([request])) as completions:
            replies: dict[SequenceId, Generated] = {}
            count = 0
            for event in completions:
                if is_left(self.connection):
                    raise ConnectionAbortedError
                if not isinstance(event, PromptEvent | TokenEvent | FinishEvent):
                    continue
                reply = replies.setdefault(event.sequence, Generated(event.sequence.sample, site, request))
                for chunk in reply.chunks(event, bool(body.get("return_progress"))):
                    if is_stream:
                        self._send_chunk(edit(count, chunk), count, armed)
                        count += 1
        if is_stream:
            self.wfile.write(b"0\r\n\r\n")
            return
        whole = [edit(at, replies[SequenceId(0, at)].whole(bool(body.get("n_probs")))) for at in range(samples)]
        self._send_json(whole if samples > 1 else whole[0], armed=armed)

    def _send_chunk(self, chunk: Any, count: int, armed: Armed) -> None:
        """Send an object of a stream, after what the fault does before it."""
        fault = armed.fault
        if not count:
            self._head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
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
        self._head(status, {**length, **headers})
        self.wfile.write(data[: len(data) // 2] if is_truncated else data)
        if is_truncated:
            raise ConnectionAbortedError

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _hang(self, armed: Armed) -> None:
        """Wait until the test lets go; if the client leaves before, or the server is killed, so does the connection."""
        armed.is_hanging.set()
        while not armed.released.wait(0.005):
            if is_left(self.connection):
                raise ConnectionAbortedError

    def _cut(self) -> None:
        with suppress(OSError):
            self.wfile.flush()
        reset(self.connection)
        raise ConnectionResetError


class Generated:
    """One sample of a completion as llama-server reports it.

    While its text ends within a character, nothing is sent of a token, in a stream not even its id later.
    """

    def __init__(self, index: int, site: LlamaServer, request: Request) -> None:
        self._index = index
        self._site = site
        self._request = request
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._unsent = ""
        self._tokens: list[int] = []
        self._probabilities: list[dict[str, Any]] = []
        self._finish: FinishEvent | None = None

    def chunks(self, event: PromptEvent | TokenEvent | FinishEvent, with_progress: bool) -> Iterator[dict[str, Any]]:
        """Yield the objects of a stream that an event makes."""
        if isinstance(event, PromptEvent):
            if with_progress:
                progress = {"total": event.total, "cache": 0, "processed": event.evaluated, "time_ms": 1}
                yield {**self._part("", [0]), "prompt_progress": progress}
            return
        if isinstance(event, TokenEvent):
            yield from self._add(event)
            return
        if event.reason == "stop" and not event.by_stop_string:
            end = eos(self._site.engine)
            self._tokens.append(end)
            self._probabilities.append(self._probability(end, b"", -0.5))
            yield self._part("", [end])
        self._finish = event
        yield {**self._part("", []), **self._ending(event)}

    def whole(self, with_probabilities: bool) -> dict[str, Any]:
        """The reply as one object."""
        assert self._finish
        probabilities = {"completion_probabilities": self._probabilities}
        return {
            "index": self._index,
            "content": self._text,
            "tokens": self._tokens,
            **self._ending(self._finish),
            **(probabilities if with_probabilities and self._site.has_logprobs else {}),
        }

    def _add(self, event: TokenEvent) -> Iterator[dict[str, Any]]:
        self._text += event.text
        self._unsent += event.text
        if event.token is None:  # text held back until the end
            yield self._part(self._unsent, [])
            return
        self._tokens.append(event.token)
        piece = self._site.engine.vocabulary.piece(event.token)
        self._decoder.decode(piece)
        if self._decoder.getstate()[0]:
            return
        self._probabilities.append(self._probability(event.token, piece, event.logprob or 0.0))
        yield self._part(self._unsent, [event.token])
        self._unsent = ""

    def _part(self, text: str, tokens: list[int]) -> dict[str, Any]:
        return {
            "index": self._index,
            "content": text,
            "tokens": tokens,
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": len(self._tokens),
            "tokens_evaluated": len(self._request.prompt_tokens),
        }

    def _ending(self, finish: FinishEvent) -> dict[str, Any]:
        times, predicted = finish.timings, len(self._tokens)
        return {
            "stop": True,
            "stop_type": "word" if finish.by_stop_string else FINISH[finish.reason],
            "truncated": False,
            "tokens_predicted": predicted,
            "tokens_evaluated": len(self._request.prompt_tokens),
            "timings": {
                "cache_n": finish.cached_tokens,
                "prompt_n": times.prefill_tokens,
                "prompt_ms": 1000 * times.prefill_s,
                "predicted_n": predicted,
                "predicted_ms": 1000 * times.decode_s,
            },
        }

    def _probability(self, token: int, piece: bytes, logprob: float) -> dict[str, Any]:
        text = piece.decode("utf-8", "replace")
        entry = {"id": token, "token": text, "bytes": list(piece), "logprob": logprob}
        return {**entry, "top_logprobs": [entry]}


def request_of(body: Mapping[str, Any], slots: int, context_size: int) -> Request:
    """The request that a body makes of the engine. Raises Refused."""
    prompt, samples = body["prompt"], int(body.get("n_cmpl", 1))
    if not isinstance(prompt, list):
        raise invalid("the stand-in takes token ids only")
    if not prompt:
        raise invalid('"prompt" must not be empty')
    if not 1 <= samples <= slots:
        raise invalid(f"Field 'n_cmpl': Value must be between 1 <= value <= {slots}, but got {samples}")
    if len(prompt) >= context_size:
        message = f"request ({len(prompt)} tokens) exceeds the available context size ({context_size} tokens)"
        raise invalid(f"{message}, try increasing it", type="exceed_context_size_error")
    limit = body.get("n_predict", -1)
    params = SamplingParams(
        max_tokens=None if limit < 0 else limit,
        temperature=body.get("temperature", 0.8),
        top_k=body.get("top_k", 40),
        top_p=body.get("top_p", 0.95),
        min_p=body.get("min_p", 0.05),
        repeat_penalty=body.get("repeat_penalty", 1.0),
        seed=body.get("seed"),
        stop=tuple(body.get("stop", ())),
    )
    return Request(
        tuple(prompt),
        params,
        body.get("grammar") or None,
        samples,
        logprobs=bool(body.get("n_probs")),
        ignore_eos=bool(body.get("ignore_eos")),
    )


def eos(engine: LocalEngine) -> int:
    """The token that ends the engine's replies."""
    vocabulary = engine.vocabulary
    return next((t for t in vocabulary.special_token_ids([vocabulary.special_token_text("eos")])), END)


def dump(value: Any) -> bytes:
    """JSON as the server writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
