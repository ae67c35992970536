"""Faults of servers, and what users see then: one table for rows, one for streams, one for connecting."""

import json
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from model_servers import Armed, ModelServer
from remote_engines import connected, local_replies, remote_engine, request_of, serving, serving_kind, set_patience
from scripted_backend import endless, random_model
from server_kinds import KINDS, LlamaServer, VllmServer
from waiting import TIMEOUT_S, wait_until

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.remote_engine import RemoteEngine

ROWS = tuple(request_of(f"Q{at}", seed=100 * at, temperature=0.8) for at in range(12))
STORY = endless({"Q": "once upon a time "})
STREAM = request_of("Q", stream=True)
ALL = "12 replies"
SILENCE_S = 0.5


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    set_patience(monkeypatch)


def transcript(
    engine: RemoteEngine, servers: Sequence[ModelServer], requests: Sequence[Request], armed: Armed | None = None
) -> list[str]:
    """What happens to requests, each line once: notices, refusals, the number of right replies, and the error.

    A server that hangs in a fault continues once text has arrived.
    """
    events, lines, replies, error = list[Event](), list[str](), 0, None
    local = local_replies(servers[0].model, *requests)
    try:
        with closing(engine.complete(requests)) as completions:
            for event in completions:
                events.append(event)
                if armed and isinstance(event, TokenEvent):
                    armed.released.set()
    except EndpointError as raised:
        error = raised
    for event in events:
        if isinstance(event, NoticeEvent):
            lines.append(event.message)
        elif isinstance(event, RefusedEvent):
            lines.append(f"{type(event.error).__name__}: {event.error.message}")
            assert event.error.hint
        elif isinstance(event, FinishEvent):
            replies += 1
            assert tokens_of(events, event.sequence) == local[event.sequence].ids
            assert event.reason == local[event.sequence].reason
    if replies and not error:
        lines.append(f"{replies} replies")
    if error:
        shown = requests[0].ask.stream and tokens_of(events, SequenceId(0))
        assert error.hint and (not shown or shown == local[SequenceId(0)].ids[: len(shown)])
        lines.append(f"{'text, then ' if shown else ''}error: {error.message}")
    return [named(line, servers) for line in dict.fromkeys(lines)]


def tokens_of(events: Iterable[Event], id: SequenceId) -> list[int]:
    return [
        token for event in events if isinstance(event, TokenEvent) and event.sequence == id for token in event.tokens
    ]


def named(line: str, servers: Sequence[ModelServer]) -> str:
    for server, name in zip(servers, ("first", "second"), strict=False):
        line = line.replace(server.url, name)
    return line


def unavailable(reason: str) -> list[str]:
    return [f"first is unavailable: {reason}", ALL]


each_kind = pytest.mark.parametrize("kind", KINDS)

# Rows on two servers, of which the first fails three times.

FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "reset before the reply": ({"reset_after": 0}, unavailable("connection lost")),
    "reset within the reply": ({"reset_after": 12}, unavailable("connection lost")),
    "not JSON": ({"body": b"not JSON", "times": 2}, unavailable("the reply is not JSON: not JSON")),
    "another shape": ({"body": b"3", "times": 2}, unavailable("damaged reply")),
    "never JSON": (
        {"body": b"page", "times": None},
        ["first is unavailable: the reply is not JSON: page", "first: the reply is not JSON: page", ALL],
    ),
    "500": ({"status": 500}, unavailable("scripted")),
    "500 with status 200": ({"body": b'{"error":"scripted"}'}, unavailable("scripted")),
    "502, at length": ({"status": 502, "message": "two\nlines" + "x" * 5000}, unavailable(f"two lines{'x' * 191}")),
    "always 500": ({"status": 500, "times": None}, unavailable("scripted")),
    "408": ({"status": 408}, [ALL]),
    "429": ({"status": 429, "headers": {"Retry-After": "0"}}, [ALL]),
    "429 for a day": ({"status": 429, "headers": {"Retry-After": "86400"}, "times": None}, unavailable("scripted")),
    "503 while loading": ({"status": 503}, [ALL]),
    "400 for each row": ({"status": 400, "times": None}, ["first: it refuses every request: scripted", ALL]),
    "401": ({"status": 401, "times": None}, ["first requires an API key", ALL]),
    "404": ({"status": 404, "times": None}, ["first: it refuses every request: scripted", ALL]),
    "302": ({"status": 302, "headers": {"Location": "http://x/"}}, ["first redirects to http://x/", ALL]),
}


def release_later(held: Armed, refusing: Armed) -> None:
    wait_until(lambda: refusing.struck >= 5)
    held.disarm()


@pytest.mark.parametrize("name", FAULTS)
def test_server_fault_costs_no_row(name: str) -> None:
    fault, expected = FAULTS[name]
    with serving(random_model, 2) as servers, connected(*servers) as engine:
        armed = servers[0].arm(**{"times": 3, **fault})
        if "refuses every request" in expected[0]:  # five of them, before the other server has replied to all
            held = servers[1].arm(hang_after=0, times=None)
            Thread(target=release_later, args=(held, armed), daemon=True).start()
        assert transcript(engine, servers, ROWS) == expected
        seeds = [asked.body["seed"] for server in servers for asked in server.completions()]
        assert armed.struck and len(seeds) >= len(ROWS) + armed.struck
        assert set(seeds) == {request.params.seed for request in ROWS}


def test_server_that_is_gone_costs_no_row() -> None:
    with serving(random_model, 2) as servers, connected(*servers) as engine:
        servers[0].kill()
        assert transcript(engine, servers, ROWS) == unavailable("Connection refused")


@each_kind
@pytest.mark.parametrize("fault", [{"hang_after": 0}, {"hang_after": 1}])
def test_server_that_hangs_costs_no_row(
    kind: type[ModelServer], fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_patience(monkeypatch, SILENCE_S=SILENCE_S)
    with serving_kind(kind, random_model, 2) as servers, connected(*servers) as engine:
        hanging = servers[0].arm(times=None, **fault)
        assert transcript(engine, servers, ROWS) == unavailable(f"silent for {SILENCE_S} s")
        assert hanging.struck <= servers[0].slots + 2  # then it gets one row at a time
        servers[0].wait_for(lambda: all(asked.is_left for asked in servers[0].completions()))


@pytest.mark.parametrize("count", [1, 2])
def test_server_may_be_silent_for_longer_while_no_other_sends_anything(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ollama is while it loads a model."""
    set_patience(monkeypatch, SILENCE_S=0.05)
    with serving(random_model, count) as servers, connected(*servers) as engine:
        loading = [server.arm(hang_after=0, times=None) for server in servers]
        completions = engine.complete(ROWS)
        for armed in loading:
            assert armed.is_hanging.wait(TIMEOUT_S)
        time.sleep(0.3)
        set_patience(monkeypatch)
        for server, armed in zip(servers, loading, strict=True):
            assert [asked.path for asked in server.asked].count("/v1/models") == 1  # it was not lost
            server.disarm()
            armed.disarm()
        events = [event for event in completions if isinstance(event, NoticeEvent | FinishEvent)]
    assert [type(event) for event in events] == [FinishEvent] * len(ROWS)


@pytest.mark.parametrize(
    ("requests", "expected"),
    [(ROWS, unavailable(f"silent for {SILENCE_S} s")), ((STREAM,), [f"error: first: silent for {SILENCE_S} s"])],
)
def test_server_that_hangs_alone_has_failed_after_a_longer_silence(
    requests: Sequence[Request], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_patience(monkeypatch, LONG_SILENCE_S=SILENCE_S)
    with serving(random_model) as servers, connected(*servers) as engine:
        servers[0].arm(hang_after=0, times=2)
        assert transcript(engine, servers, requests) == expected


def test_server_may_take_long_for_one_reply_while_it_sends_others(monkeypatch: pytest.MonkeyPatch) -> None:
    set_patience(monkeypatch, LONG_SILENCE_S=SILENCE_S)
    with serving(STORY) as servers, connected(*servers) as engine:
        whole = servers[0].complete

        def slow(body: Mapping[str, Any]) -> Generator[Any, None, None]:
            for chunk in whole(body):
                time.sleep(0.02 if chunk else 0)  # a part of the text, of which there are 40
                yield chunk

        servers[0].complete = slow  # type: ignore[method-assign]
        held = servers[0].arm(hang_after=0)
        completions = engine.complete([request_of("Q", seed=seed) for seed in range(4)])
        ends = (event for event in completions if isinstance(event, FinishEvent | NoticeEvent))
        ended = [next(ends) for _ in range(3)]
        held.released.set()
        ended += ends
    assert [type(event) for event in ended] == [FinishEvent] * 4 and held.struck == 1


def test_server_that_comes_back_with_another_model_is_left_out() -> None:
    with serving(random_model, 2) as servers, connected(*servers) as engine:
        servers[0].models = ("other.gguf",)
        servers[0].arm(reset_after=0)
        held = servers[1].arm(hang_after=0)
        notices = []
        for event in engine.complete(ROWS):
            if isinstance(event, NoticeEvent):
                notices.append(named(event.message, servers))
                if len(notices) == 2:
                    held.released.set()
    assert notices[0] == "first is unavailable: connection lost"
    assert notices[1].startswith("first serves other.gguf (1000 bytes) on llama-server instead of tiny.gguf")


# What only one kind sends.


def vllm_choice(**values: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": "", "token_ids": [], "finish_reason": "stop", **values}
    return {"body": json.dumps({"choices": [choice]}).encode()}


NO_SUCH_TOKENS = {"edit": lambda _, reply: {**reply, "tokens": [10**6], "tokens_predicted": 1, "content": "x"}}
DAMAGE: list[tuple[type[ModelServer], dict[str, Any], str]] = [
    (LlamaServer, NO_SUCH_TOKENS, "damaged reply"),
    (LlamaServer, {"edit": lambda _, reply: {**reply, "tokens": "x"}}, "damaged reply"),
    (VllmServer, vllm_choice(finish_reason=None), "the reply is incomplete"),
    (VllmServer, vllm_choice(token_ids=["x"]), "damaged reply"),
    (VllmServer, vllm_choice(finish_reason="abort"), "the reply ended with abort"),
    (VllmServer, vllm_choice(token_ids=[104], logprobs={"top_logprobs": [{"token_id:104": 800.0}]}), "damaged reply"),
]


@pytest.mark.parametrize(("kind", "fault", "reason"), DAMAGE)
def test_server_reply_of_another_shape_costs_no_row(kind: type[ModelServer], fault: Any, reason: str) -> None:
    with serving_kind(kind, random_model, 2) as servers, connected(*servers) as engine:
        servers[0].arm(times=2, **fault)
        assert transcript(engine, servers, ROWS) == unavailable(reason)


# Streams, on two servers of which the first fails.


def error_event(code: int) -> dict[str, Any]:
    return {"error": {"message": "scripted", "type": "Error", "param": None, "code": code}}


def at_token(count: int, event: Any) -> dict[str, Any]:
    return {"edit": lambda at, chunk: event if at == count else chunk}


WITHIN = 12  # objects of a stream
ONE = "1 replies"
STREAM_FAULTS: dict[str, tuple[Any, list[str]]] = {
    "reset before the first token": ({"reset_after": 0}, ["first is unavailable: connection lost", ONE]),
    "429 before the first token": (429, [ONE]),
    "500 before the first token": (500, ["first is unavailable: scripted", ONE]),
    "reset": ({"hang_after": WITHIN, "reset_after": WITHIN}, ["text, then error: first: connection lost"]),
    "damaged event": (at_token(WITHIN, b"data: {\n\n"), ["text, then error: first: the reply is not JSON: {"]),
    "not an object": (at_token(WITHIN, b"data: 3\n\n"), ["text, then error: first: damaged reply"]),
    "429": (-429, ["text, then error: first: scripted"]),
    "500": (-500, ["text, then error: first: scripted"]),
    "400": (-400, ["EndpointError: server 1: scripted"]),
}


@each_kind
@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_server_fault_in_a_stream(kind: type[ModelServer], name: str) -> None:
    fault, expected = STREAM_FAULTS[name]
    if isinstance(fault, int):
        fault = at_token(0 if fault > 0 else WITHIN, error_event(abs(fault)))
    with serving_kind(kind, STORY, 2) as servers, connected(*servers) as engine:
        armed = servers[0].arm(**fault)
        assert transcript(engine, servers, [STREAM], armed) == expected
        asked = sum(len(server.completions()) for server in servers)
        assert (armed.struck, asked) == (1, 2 if expected[-1] == ONE else 1)
        assert transcript(engine, servers, [STREAM])[-1] == ONE


# The only server.

EVERY = {"status": 422, "times": None}
ANOTHER_VOCABULARY = {"path": "/tokenize", "body": b'{"tokens":[1,2,3]}', "times": None}
DIFFERS = "first serves tiny.gguf, whose vocabulary differs from that of the local model"
FIRST = "first is unavailable: scripted"
QUOTA = b'{"error": {"message": "no quota", "type": null, "code": "insufficient_quota"}}'
NO_CREDIT = {"status": 429, "body": QUOTA, "times": None, "let_through": 6}
REFUSED, PAGE = "EndpointError: server 1: scripted", "the reply is not JSON: page"
FAILED = "EndpointError: this request failed 3 times, last on server 1: scripted"
ONLY: dict[str, tuple[list[str], Sequence[Request], dict[str, Any]]] = {
    "a short outage": ([FIRST, ALL], ROWS, {"status": 500, "times": 2}),
    "a request at which it fails": ([FIRST, FAILED], ROWS[:1], {"status": 500, "times": 3}),
    "a stream at which it fails": (["error: first: scripted"], [STREAM], {"status": 500}),
    "400 for one row": ([REFUSED, "11 replies"], ROWS, {"status": 400, "let_through": 6}),
    "422 for all rows": ([REFUSED, "error: first: it refuses every request: scripted"], ROWS, EVERY),
    "422 for the only stream": ([REFUSED], [STREAM], EVERY),
    "401": (["error: first requires an API key"], ROWS, {"status": 401}),
    "429 for ever": (["error: first: it refuses every request: no quota"], ROWS, NO_CREDIT),
    "never JSON": ([f"first is unavailable: {PAGE}", f"error: first: {PAGE}"], ROWS, {"body": b"page", "times": None}),
    "not JSON, later": ([f"first is unavailable: {PAGE}", ALL], ROWS, {"body": b"page", "times": 4, "let_through": 2}),
    "403 for a row, later": ([REFUSED, "11 replies"], ROWS, {"status": 403, "let_through": 6}),
    "busy": ([ALL], ROWS, {"status": 429, "times": 20}),
    "busy for a stream": ([FAILED], [STREAM], {"status": 429, "times": 3}),
}


@pytest.mark.parametrize("name", ONLY)
def test_server_fault_of_the_only_one(name: str) -> None:
    expected, requests, fault = ONLY[name]
    model = STORY if requests[0].ask.stream else random_model
    with serving(model) as servers, connected(*servers) as engine:
        servers[0].arm(**fault)
        assert transcript(engine, servers, requests) == expected


def test_servers_are_given_up_after_a_time_without_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(random_model) as servers, connected(*servers) as engine:
        set_patience(monkeypatch, GIVE_UP_S=1.0)
        servers[0].arm(status=503, times=None)
        assert transcript(engine, servers, ROWS) == ["error: no server answers (first: scripted)"]


# Requests that a server refuses.

VLLM_TOO_LONG = "This model's maximum context length is 50 tokens. However, your prompt has 60 input tokens"
LLAMA_TOO_LONG = "request (60 tokens) exceeds the available context size (50 tokens), try increasing it"
BAD_GRAMMAR = "Failed to initialize samplers: failed to parse grammar"
REFUSALS: list[tuple[type[ModelServer], dict[str, Any], str]] = [
    (LlamaServer, {"error": {"message": LLAMA_TOO_LONG, "type": "exceed_context_size_error"}}, "PromptTooLong"),
    (LlamaServer, {"error": {"message": BAD_GRAMMAR, "type": "invalid_request_error"}}, "GrammarError"),
    (VllmServer, {"error": {"message": VLLM_TOO_LONG, "type": "BadRequestError", "code": 400}}, "PromptTooLong"),
]


@pytest.mark.parametrize(("kind", "body", "error"), REFUSALS)
def test_server_refuses_a_request_and_answers_the_others(
    kind: type[ModelServer], body: dict[str, Any], error: str
) -> None:
    message = body.get("error", body)["message"]
    refused = f"{error}: {message}" if error == "GrammarError" else f"{error}: server 1: {message}"
    constrained = request_of("Q", stream=True, grammar="root ::= .*")
    with serving_kind(kind, STORY) as servers, connected(*servers) as engine:
        servers[0].arm(status=400, times=2, body=json.dumps(body).encode())
        for stream in (False, True):
            given = replace(constrained, ask=replace(constrained.ask, stream=stream))
            assert transcript(engine, servers, [given]) == [refused]
        assert transcript(engine, servers, [STREAM]) == [ONE]


# Connecting.

OTHER_OWNER = b'{"object":"list","data":[{"id":"x"}]}'
UNREACHED = "no server answers (first: scripted)"
MODELS: dict[str, Any] = {"path": "/v1/models", "times": None}
START_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({**MODELS, "status": 401, "body": b'{"error":"Unauthorized"}'}, "first requires an API key"),
    ({**MODELS, "body": b"[]"}, "first: unexpected response to /v1/models"),
    ({**MODELS, "body": b'{"object":"list","data":[]}'}, "first has no model"),
    ({**MODELS, "body": OTHER_OWNER}, "first takes messages, not token ids"),
    ({**MODELS, "body": b"<html>"}, "no server answers (first: the reply is not JSON: <html>)"),
    ({**MODELS, "status": 404}, "first: /v1/models: scripted"),
    ({**MODELS, "status": 500}, UNREACHED),
    ({"path": "/props", "body": b"{}"}, "first: unexpected response to /props"),
    ({"path": "/tokenize", "body": b"{}"}, "first: /tokenize fails: 'tokens'"),
    (ANOTHER_VOCABULARY, DIFFERS),
    ({"server": {"key": "sesame"}}, "first requires an API key"),
    ({"server": {"key": "sesame"}, "key": "wrong-key"}, "first refuses this API key"),
    ({"server": {"models": ("a", "b")}}, "first serves several models"),
    ({"server": {"models": ("a", "b")}, "endpoint": {"served_model": "c"}}, "first does not serve the model 'c'"),
]


@pytest.mark.parametrize(("fault", "message"), START_FAULTS)
def test_server_that_cannot_be_used_is_refused(
    fault: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = dict(fault)
    if key := fault.pop("key", None):
        monkeypatch.setenv("CEREBRUM_API_KEY", key)
    options = fault.pop("endpoint", {})
    with serving(random_model) as [server]:
        for name, value in fault.pop("server", {}).items():
            setattr(server, name, value)
        if fault:
            server.arm(**fault)
        with closing(remote_engine(server, **options)) as engine, pytest.raises(EndpointError) as raised:
            list(engine.load())
    assert engine.has_failed and raised.value.hint and "wrong-key" not in repr(raised.value)
    assert named(raised.value.message, [server]) == message
