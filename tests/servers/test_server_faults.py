"""Faults of servers, and what users see then: one table for replies, one for streams, one for connecting."""

import json
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from model_servers import Armed, ModelServer
from remote_engines import QUICK, connected, local_replies, remote_engine, request_of, serving_kind
from scripted_backend import END, endless, random_model
from server_kinds import KINDS, LlamaServer, SglangServer, VllmServer
from waiting import TIMEOUT_S, wait_until

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers import client
from cerebrum_cli.servers.description import KINDS as SERVER_KINDS
from cerebrum_cli.servers.endpoint import ServerTimeouts
from cerebrum_cli.servers.remote_engine import RemoteEngine

ROWS = tuple(request_of(f"Q{at}", seed=100 * at, temperature=0.8, grammar="root ::= .*") for at in range(20))
FEW = ROWS[:12]
STORY = endless({"Q": "once upon a time "})
STREAM = request_of("Q", stream=True, grammar="root ::= .*")
LOST, DAMAGED, SILENT = (f"first is unavailable: {why}" for why in ("connection lost", "damaged reply", "silence"))
NO_JSON = "first is unavailable: the reply is not JSON"
ALL = "12 replies"


@pytest.fixture(autouse=True)
def kept_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep connections, and ask again where one breaks, however long the machine takes."""
    monkeypatch.setattr(client, "IDLE_S", 600.0)
    monkeypatch.setattr(client, "RESEND_S", 600.0)


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
        if isinstance(event, NoticeEvent) and not event.message.endswith(" is available again"):
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
    """A line without what differs between runs."""
    for server, name in zip(servers, ("first", "second"), strict=False):
        line = line.replace(server.url, name)
    return re.sub(r"no reply (within|for) [\d.]+ s", "silence", line)


each_kind = pytest.mark.parametrize("kind", KINDS)

# Whole replies to 12 requests, on two servers of which the first fails.


class Killed(dict[str, Any]):
    """The process is gone."""


FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no connection": (Killed(), ["first is unavailable: Connection refused", ALL]),
    "reset before the reply": ({"reset_after": 0}, [LOST, ALL]),
    "reset within the reply": ({"is_truncated": True}, [LOST, ALL]),
    "not JSON": ({"body": b"not JSON"}, [f"{NO_JSON}: not JSON", ALL]),
    "truncated JSON": ({"body": b'{"index":0,'}, [f'{NO_JSON}: {{"index":0,', ALL]),
    "another type": (
        {"body": b"<html><title>Bad Gateway</title>", "headers": {"Content-Type": "text/html"}},
        [f"{NO_JSON}: Bad Gateway", ALL],
    ),
    "another shape": ({"body": b"3"}, [DAMAGED, ALL]),
    "401": ({"status": 401}, ["first requires an API key", ALL]),
    "403": ({"status": 403}, ["first requires an API key", ALL]),
    "302": ({"status": 302, "headers": {"Location": "http://x/"}}, ["first redirects to http://x/", ALL]),
    "404 of a gateway": ({"status": 404, "times": None}, ["first is unavailable: scripted", ALL]),
    "422 for a setting": ({"status": 422, "times": None}, ["first: scripted", ALL]),
    "408": ({"status": 408}, [ALL]),
    "429": ({"status": 429}, [ALL]),
    "429 for a day": (
        {"status": 429, "headers": {"Retry-After": "86400"}, "times": None},
        ["first is unavailable: scripted", ALL],
    ),
    "503 while loading": ({"status": 503}, [ALL]),
    "429 until a date": ({"status": 429, "headers": {"Retry-After": "Sat, 01 Jan 2000 00:00:00 GMT"}}, [ALL]),
    "500": ({"status": 500}, ["first is unavailable: scripted", ALL]),
    "500 with status 200": ({"body": b'{"error":"scripted"}'}, ["first is unavailable: scripted", ALL]),
    "429 with status 200": ({"body": b'{"error":{"message":"scripted","code":429}}'}, [ALL]),
    "502, at length": (
        {"status": 502, "message": "two\nlines" + "x" * 5000},
        [f"first is unavailable: two lines{'x' * 191}", ALL],
    ),
    "never 500": ({"status": 500, "times": None}, ["first is unavailable: scripted", ALL]),
    "never 503": ({"status": 503, "times": None}, [ALL]),
}


@each_kind
@pytest.mark.parametrize("name", FAULTS)
def test_server_fault_costs_no_row(kind: type[ModelServer], name: str) -> None:
    fault, expected = FAULTS[name]
    with serving_kind(kind, random_model, 2) as servers, connected(*servers) as engine:
        if isinstance(fault, Killed):
            servers[0].kill()
        else:
            armed = servers[0].arm(**{"times": 3, **fault})
        assert transcript(engine, servers, FEW) == expected
        seeds = [asked.body.get("seed") for server in servers for asked in server.completions()]
        assert isinstance(fault, Killed) or (armed.struck and len(seeds) >= len(FEW) + armed.struck)
        assert kind is SglangServer or set(seeds) == {request.params.seed for request in FEW}


ABORTED = {"output_ids": [], "meta_info": {"completion_tokens": 0, "finish_reason": {"type": "abort"}}}


def vllm_choice(**values: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": "", "token_ids": [], "finish_reason": "stop", **values}
    return {"body": json.dumps({"choices": [choice]}).encode()}


DAMAGE: list[tuple[type[ModelServer], dict[str, Any], str | None]] = [
    (LlamaServer, {"edit": lambda _, reply: {**reply, "tokens": [None] * len(reply["tokens"])}}, "damaged reply"),
    (LlamaServer, {"edit": lambda _, reply: {**reply, "tokens": [10**6] * len(reply["tokens"])}}, "damaged reply"),
    (VllmServer, {"edit": lambda _, reply: {**reply, "choices": []}}, "the reply has 0 samples instead of 1"),
    (VllmServer, vllm_choice(token_ids=["x"]), "damaged reply"),
    (VllmServer, vllm_choice(finish_reason="abort"), None),  # of one row
    (SglangServer, {"body": b"{}"}, "damaged reply"),
    (SglangServer, {"body": json.dumps(ABORTED).encode()}, "the server aborted the reply"),
]


@pytest.mark.parametrize(("kind", "fault", "reason"), DAMAGE)
def test_server_reply_of_another_shape_costs_no_row(
    kind: type[ModelServer], fault: dict[str, Any], reason: str | None
) -> None:
    with serving_kind(kind, random_model, 2) as servers, connected(*servers) as engine:
        servers[0].arm(times=2, **fault)
        expected = [f"first is unavailable: {reason}", ALL] if reason else [ALL]
        assert transcript(engine, servers, FEW) == expected


def test_server_that_aborts_a_row_three_times_refuses_it() -> None:
    with serving_kind(VllmServer, random_model) as servers, connected(*servers) as engine:
        servers[0].arm(times=3, **vllm_choice(finish_reason="repetition"))
        problem = "this request failed 3 times, last on server 1: the reply ended with repetition"
        assert transcript(engine, servers, ROWS[:1]) == [f"EndpointError: {problem}"]
        assert transcript(engine, servers, FEW) == [ALL]


def test_server_reply_without_a_stated_end_is_kept() -> None:
    with serving_kind(VllmServer, STORY) as servers, connected(*servers) as engine:
        servers[0].arm(times=2, **vllm_choice(token_ids=list(b"once"), finish_reason=None))
        for _ in range(2):  # with one notice
            events = list(engine.complete([replace(STREAM, ask=replace(STREAM.ask, stream=False))]))
            [finish] = [event for event in events if isinstance(event, FinishEvent)]
            assert (finish.reason, tokens_of(events, SequenceId(0))) == ("stop", list(b"once"))
            notices = [event.message for event in events if isinstance(event, NoticeEvent)]
            assert len(notices) == (not _) and all(
                "gave no known reason for ending a reply" in each for each in notices
            )


@contextmanager
def impatient(servers: Sequence[ModelServer]) -> Iterator[RemoteEngine]:
    """Connect, with a short time limit for the first server alone: a loaded machine must not exceed the second's."""
    with connected(*servers, timeouts=replace(QUICK, row_timeout=0.2)) as engine:
        engine.pool.known[1].timeouts = QUICK
        yield engine


@each_kind
def test_server_that_exceeds_the_time_of_a_row_costs_no_row(kind: type[ModelServer]) -> None:
    with serving_kind(kind, random_model, 2) as servers, impatient(servers) as engine:
        servers[0].arm(hang_after=0, times=None)
        assert transcript(engine, servers, FEW) == [SILENT, ALL]
        servers[0].wait_for(lambda: all(asked.is_left for asked in servers[0].completions()))


def test_server_that_comes_back_with_another_model_is_noted() -> None:
    with serving_kind(LlamaServer, random_model, 2) as [first, second], connected(first, second) as engine:
        first.models = ("other.gguf",)
        first.arm(is_truncated=True)
        held = second.arm(hang_after=0)
        with ThreadPoolExecutor() as meanwhile:
            asking = meanwhile.submit(transcript, engine, (first, second), ROWS)
            first.wait_for(lambda: [asked.path for asked in first.asked].count("/tokenize") > 3)
            held.released.set()
            lines = asking.result(TIMEOUT_S)
    assert lines[0] == LOST and lines[-1] == f"{len(ROWS)} replies"
    assert [line for line in lines if line.startswith("first serves other.gguf ")] == lines[1:-1]


def test_rows_that_exceed_the_time_on_each_server_are_refused_soon() -> None:
    """Servers that answer what they are, but no row in time, are not left alone for long."""
    timeouts = replace(QUICK, row_timeout=0.05, retries=(0.02, 60.0))
    with serving_kind(LlamaServer, random_model, 2) as servers, connected(*servers, timeouts=timeouts) as engine:
        for server in servers:
            server.arm(hang_after=0, times=None)
        refusals = [event.error for event in engine.complete(FEW[:4]) if isinstance(event, RefusedEvent)]
    assert len(refusals) == 4
    assert all(error.message.startswith("this request failed 3 times, last on ") for error in refusals)


# A server that takes requests and sends nothing.

IMPATIENT = replace(QUICK, silent_row=0.1)
PROMPT_OF = {request.params.seed: request.prompt_tokens for request in FEW}


@each_kind
@pytest.mark.parametrize("fault", [{"hang_after": 0}, {"hang_after": 1}, {"hang_after": 0, "let_through": 1}])
@pytest.mark.parametrize("silent", [1, 2])
def test_silent_servers_beside_a_healthy_one_cost_no_row(
    kind: type[ModelServer], fault: dict[str, Any], silent: int
) -> None:
    with serving_kind(kind, random_model, silent + 1) as servers, connected(*servers, timeouts=IMPATIENT) as engine:
        for server in servers[:silent]:
            server.arm(times=None, **fault)
        lines = transcript(engine, servers, FEW)  # each reply is reported once
        assert lines[-1] == ALL and all("is unavailable: silence" in line for line in lines[:-1])
        asked = [asked for server in servers for asked in server.completions()]
        assert len(asked) > len(FEW)
        assert kind is SglangServer or all(PROMPT_OF[each.body["seed"]] == each.prompt for each in asked)


def test_silent_server_has_one_row_until_it_answers() -> None:
    timeouts = replace(QUICK, silent_row=0.3)
    with serving_kind(LlamaServer, random_model, 2) as servers, connected(*servers, timeouts=timeouts) as engine:
        silent = servers[0].arm(hang_after=0, times=None)
        assert transcript(engine, servers, FEW)[-1] == ALL
        wait_until(lambda: not engine.pool.known[0].running)
        assert transcript(engine, servers, FEW) == [ALL]
        assert len(servers[0].completions()) <= servers[0].slots + 1
        wait_until(lambda: not engine.pool.known[0].running)
        silent.disarm()
        wait_until(lambda: engine.pool.known[0].is_reached)
        assert transcript(engine, servers, ROWS) == ["20 replies"]
        assert not engine.pool.known[0].failures


def test_silence_that_is_usual_for_a_server_is_no_loss() -> None:
    with serving_kind(LlamaServer, random_model, 2) as servers, connected(*servers) as engine:
        whole = servers[0].complete

        def complete(body: Mapping[str, Any]) -> Generator[Any, None, None]:
            time.sleep(0.3)
            yield from whole(body)

        servers[0].complete = complete  # type: ignore[method-assign]
        for timeouts in (QUICK, IMPATIENT):
            engine.pool._timeouts = timeouts
            assert transcript(engine, servers, FEW) == [ALL]


def test_silent_server_with_more_slots_costs_no_sample_of_a_vote() -> None:
    with serving_kind(LlamaServer, random_model, 2) as servers:
        servers[0].slots = 7
        with connected(*servers, timeouts=IMPATIENT) as engine:
            assert transcript(engine, servers, FEW) == [ALL]
            servers[0].arm(hang_after=0, times=None)
            assert transcript(engine, servers, [request_of("Q", n=7)])[-1] == "7 replies"
            assert [each.body["n_cmpl"] for each in servers[1].completions()[-2:]] == [4, 3]


def error_event(kind: type[ModelServer], code: int) -> dict[str, Any]:
    """An error in a stream; of SGLang, a request that its scheduler gives up."""
    if kind is not SglangServer:
        return {"error": {"message": "scripted", "type": "Error", "param": None, "code": code}}
    finish = {"type": "abort", "message": "scripted", "status_code": code, "err_type": None}
    meta = {"finish_reason": finish, "prompt_tokens": 1, "completion_tokens": 0}
    return {"text": "", "output_ids": [], "meta_info": meta}


def at_token(count: int, event: Any) -> dict[str, Any]:
    return {"edit": lambda at, chunk: event if at == count else chunk}


WITHIN = 12  # objects of a stream
NO_SUCH_TOKEN = {"tokens": [-1], "choices": [{"index": 0, "token_ids": [-1]}], "output_ids": [-1]}
NO_TOKEN = {"tokens": [None], "choices": [{"index": 0, "token_ids": [None]}], "output_ids": [None]}
STREAM_FAULTS: dict[str, tuple[Any, list[str]]] = {
    "reset of a kept connection": ({"reset_after": 0}, ["1 replies"]),
    "reset before the first token": ({"is_truncated": True}, [LOST, "1 replies"]),
    "no event": (
        {"body": b"<html>"},
        ["first is unavailable: the reply is not a stream of events: <html>", "1 replies"],
    ),
    "429 before the first token": (429, ["1 replies"]),
    "500 before the first token": (500, ["first is unavailable: scripted", "1 replies"]),
    "reset": ({"hang_after": WITHIN, "reset_after": WITHIN}, ["text, then error: first: connection lost"]),
    "damaged event": (at_token(WITHIN, b"data: {\n\n"), ["text, then error: first: the reply is not JSON: {"]),
    "damaged token": (
        {"edit": lambda at, chunk: {**chunk, **NO_TOKEN} if at == WITHIN else chunk},
        ["text, then error: first: damaged reply"],
    ),
    "token out of range": (
        {"edit": lambda at, chunk: {**chunk, **NO_SUCH_TOKEN} if at == WITHIN else chunk},
        ["text, then error: first: damaged reply"],
    ),
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
        fault = at_token(0 if fault > 0 else WITHIN, error_event(kind, abs(fault)))
    with serving_kind(kind, STORY, 2) as servers, connected(*servers) as engine:
        armed = servers[0].arm(**fault)
        assert transcript(engine, servers, [STREAM], armed) == expected
        asked = sum(len(server.completions()) for server in servers)
        assert (armed.struck, asked) == (1, 2 if expected[-1] == "1 replies" else 1)
        assert transcript(engine, servers, [STREAM])[-1] == "1 replies"


@each_kind
def test_server_that_does_not_stream_is_read(kind: type[ModelServer]) -> None:
    with serving_kind(kind, STORY) as servers, connected(*servers) as engine:
        whole = servers[0].complete
        servers[0].complete = lambda body: whole({**body, "stream": False})  # type: ignore[method-assign]
        assert transcript(engine, servers, [STREAM]) == ["1 replies"]
        answers = [*whole({**servers[0].completions()[-1].body, "stream": False})]
        servers[0].arm(body=json.dumps(answers[-1]).encode())
        assert transcript(engine, servers, [STREAM]) == ["1 replies"]


def test_sample_that_does_not_match_the_grammar_costs_no_other() -> None:
    def by_seed(held: tuple[int, ...], seed: int) -> int:
        return END if len(held) > 1 else (b"a" if seed % 2 else b"b")[0]

    request = request_of("Q", n=3, grammar='root ::= "a"')
    with serving_kind(LlamaServer, by_seed) as servers, connected(*servers) as engine:
        events = list(engine.complete([request]))
    ends = {event.sequence.sample: event for event in events if isinstance(event, FinishEvent | RefusedEvent)}
    assert [type(ends[sample]) for sample in range(3)] == [FinishEvent, RefusedEvent, FinishEvent]
    assert isinstance(ends[1], RefusedEvent) and ends[1].text == "b"
    assert ends[1].error.message == "the reply does not match the grammar: the server did not enforce it"


@each_kind
def test_server_that_is_frozen_before_a_stream_is_left(kind: type[ModelServer]) -> None:
    with serving_kind(kind, STORY, 2) as servers, impatient(servers) as engine:
        servers[0].arm(hang_after=0)
        assert transcript(engine, servers, [STREAM]) == [SILENT, "1 replies"]


# The only server.

ANOTHER_VOCABULARY = {"path": "/tokenize", "body": b'{"tokens":[1,2,3]}', "times": None}
DIFFERS = "first serves tiny.gguf, whose vocabulary differs from that of the local model"
UNAVAILABLE = "first is unavailable: scripted"
NO_SERVER = "error: no server answers (first: scripted)"


def only(
    expected: Sequence[str], *faults: dict[str, Any], requests: Sequence[Request] = ROWS, **timeouts: Any
) -> tuple[Any, ...]:
    """How requests end at a server with these faults, and what differs in its timeouts."""
    return expected, faults, requests, timeouts


def failing(status: int, times: int | None = 300, **more: Any) -> dict[str, Any]:
    return {"status": status, "times": times, **more}


ONLY = {
    "an outage outlived by the last request": only(
        [UNAVAILABLE, "1 replies"], failing(500, 4), requests=ROWS[:1], retries=(0.01,) * 5
    ),
    "a request at which it fails": only(
        [UNAVAILABLE, "EndpointError: this request failed 6 times, last on server 1: scripted"],
        failing(500, 6),
        requests=ROWS[:1],
    ),
    "a silent stream": only(["error: first: silence"], {"hang_after": 0}, requests=[STREAM], row_timeout=0.2),
    "500": only([UNAVAILABLE, NO_SERVER], failing(500)),
    "503": only([NO_SERVER], failing(503), busy=60.0),
    "429": only([NO_SERVER], failing(429, headers={"Retry-After": "0"}), busy=60.0),
    "403": only(["error: first requires an API key"], failing(403, 1)),
    # So few replies cannot separate 17 refusals into runs of less than five.
    "403 once it has answered": only(["error: first requires an API key"], failing(403, None, let_through=3)),
    "422 for one row": only(["EndpointError: server 1: scripted", "19 replies"], failing(422, 1, let_through=12)),
    "422 for all rows": only(["error: first: scripted"], failing(422, None)),
    "422 for the only row": only(
        ["EndpointError: this request failed 3 times, last on server 1: scripted"],
        failing(422, None),
        requests=ROWS[:1],
    ),
    "422 for the only stream": only(["error: first: scripted"], failing(422, None), requests=[STREAM]),
    "500 that is no refusal": only(
        ["first is unavailable: does not support it", "20 replies"],
        failing(500, 1, message="does not support it", let_through=12),
    ),
    "no first reply": only(
        ["error: no reply from any server within 0.3 s"], {"hang_after": 0, "times": None}, patience=0.3
    ),
    "another prompt": only(
        ["error: the server evaluated 9 prompt tokens instead of 2"],
        {"edit": lambda _, reply: {**reply, "tokens_evaluated": 9}},
        requests=ROWS[:1],
    ),
    "another vocabulary later": only(["error: " + DIFFERS], failing(500, 1), ANOTHER_VOCABULARY),
}


@contextmanager
def patience_ends(timeouts: ServerTimeouts, when: Callable[[], bool]) -> Iterator[None]:
    """Let the patience end once a failure is known, however late that is on a loaded machine."""

    def end() -> None:
        wait_until(when)
        object.__setattr__(timeouts, "patience", 0.0)

    thread = Thread(target=end)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def asked_what_it_is(server: ModelServer) -> int:
    """How often a server was asked so; again only after its failure has been handled."""
    with server.changed:
        return sum(asked.path == "/v1/models" for asked in server.asked)


@pytest.mark.parametrize("name", ONLY)
def test_server_fault_of_the_only_one(name: str) -> None:
    expected, faults, requests, changes = ONLY[name]
    model, timeouts = STORY if requests[0].ask.stream else random_model, replace(QUICK, **changes)
    with (
        serving_kind(LlamaServer, model) as servers,
        connected(*servers, timeouts=timeouts) as engine,
        ExitStack() as stack,
    ):
        asked = asked_what_it_is(servers[0])
        for fault in faults:
            servers[0].arm(**fault)
        if name == "500":
            stack.enter_context(patience_ends(timeouts, lambda: asked_what_it_is(servers[0]) > asked))
        elif expected == [NO_SERVER]:  # busy servers have no notice
            stack.enter_context(patience_ends(timeouts, lambda: engine.pool.known[0].problem is not None))
        assert transcript(engine, servers, requests)[-len(expected) :] == expected


# Requests that a server refuses.

VLLM_TOO_LONG = "This model's maximum context length is 50 tokens. However, your prompt has 60 input tokens"
SGLANG_TOO_LONG = "The input (60 tokens) is longer than the model's context length (50 tokens)."
LLAMA_TOO_LONG = "request (60 tokens) exceeds the available context size (50 tokens), try increasing it"
BAD_GRAMMAR = "Failed to initialize samplers: failed to parse grammar"
REFUSALS: list[tuple[type[ModelServer], dict[str, Any], str]] = [
    (LlamaServer, {"error": {"message": LLAMA_TOO_LONG, "type": "exceed_context_size_error"}}, "PromptTooLong"),
    (LlamaServer, {"error": {"message": BAD_GRAMMAR, "type": "invalid_request_error"}}, "GrammarError"),
    (VllmServer, {"error": {"message": VLLM_TOO_LONG, "type": "BadRequestError", "code": 400}}, "PromptTooLong"),
    (VllmServer, {"error": {"message": "max_tokens must be at least 1, got 0."}}, "PromptTooLong"),
    (VllmServer, {"error": {"message": "Invalid grammar specification."}}, "GrammarError"),
    (SglangServer, {"error": {"message": SGLANG_TOO_LONG}}, "PromptTooLong"),
    (SglangServer, {"object": "error", "message": SGLANG_TOO_LONG, "type": "400", "code": 400}, "PromptTooLong"),
    (SglangServer, {"error": {"message": "Failed to compile ebnf grammar: EBNF lexer error"}}, "GrammarError"),
]


@pytest.mark.parametrize(("kind", "body", "error"), REFUSALS)
def test_server_refuses_a_request_and_answers_the_others(
    kind: type[ModelServer], body: dict[str, Any], error: str
) -> None:
    message = body.get("error", body)["message"]
    refused = f"{error}: {message}" if error == "GrammarError" else f"{error}: server 1: {message}"
    with serving_kind(kind, STORY) as servers, connected(*servers) as engine:
        servers[0].arm(status=400, times=2, body=json.dumps(body).encode())
        for stream in (False, True):
            assert transcript(engine, servers, [replace(STREAM, ask=replace(STREAM.ask, stream=stream))]) == [refused]
        assert transcript(engine, servers, [STREAM]) == ["1 replies"]


# Connecting.

OTHER_OWNER = b'{"object":"list","data":[{"id":"x"}]}'
UNREACHED = "no server answers (first: scripted)"
MODELS: dict[str, Any] = {"path": "/v1/models", "times": None}
WAITS = replace(QUICK, waits_at_start=True)
START_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({**MODELS, "status": 401, "body": b'{"error":"Unauthorized"}'}, "first requires an API key"),
    ({**MODELS, "body": b"[]"}, "first: not a language model server"),
    ({**MODELS, "body": b'{"object":"list","data":[]}'}, "first has no model"),
    ({**MODELS, "body": OTHER_OWNER}, "first takes messages, not token ids"),
    ({**MODELS, "body": b"<html>"}, "no server answers (first: the reply is not JSON: <html>)"),
    ({**MODELS, "status": 404}, "no server answers (first: /v1/models: scripted)"),
    ({"path": "description", "body": b"[]"}, "first: unexpected response to /v1/models or description"),
    ({"path": "description", "body": b"{}"}, "first: unexpected response to /v1/models or description"),
    ({"path": "/tokenize", "body": b"[]"}, "first: /tokenize fails: list indices must be integers or slices, not str"),
    ({"path": "/tokenize", "body": b"{}"}, "first: /tokenize fails: 'tokens'"),
    (ANOTHER_VOCABULARY, DIFFERS),
    ({"server": {"key": "sesame"}}, "first requires an API key"),
    ({"server": {"key": "sesame"}, "key": "wrong-key"}, "first refuses this API key"),
    ({"server": {"models": ("a", "b")}}, "first serves several models"),
    ({"server": {"models": ("a", "b")}, "endpoint": {"served_model": "c"}}, "first does not serve the model 'c'"),
    *(
        ({**MODELS, **fault, "timeouts": WAITS}, UNREACHED)
        for fault in ({"status": 503}, {"status": 500}, {"status": 429, "headers": {"Retry-After": "0"}})
    ),
]


@each_kind
@pytest.mark.parametrize(("fault", "message"), START_FAULTS)
def test_server_that_cannot_be_used_is_refused(
    kind: type[ModelServer], fault: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = dict(fault)
    if key := fault.pop("key", None):
        monkeypatch.setenv("CEREBRUM_API_KEY", key)
    options = {"timeouts": replace(fault.pop("timeouts", QUICK)), **fault.pop("endpoint", {})}
    with serving_kind(kind, random_model) as [server]:
        path = SERVER_KINDS[server.owner].description_path
        for name, value in fault.pop("server", {}).items():
            setattr(server, name, value)
        if fault:
            server.arm(**fault | {"path": path if fault["path"] == "description" else fault["path"]})
        ends = patience_ends(options["timeouts"], lambda: asked_what_it_is(server) > 1)
        with (
            ends if options["timeouts"].waits_at_start else nullcontext(),
            closing(remote_engine(server, **options)) as engine,
            pytest.raises(EndpointError) as raised,
        ):
            list(engine.load())
    assert engine.has_failed and raised.value.hint and "wrong-key" not in repr(raised.value)
    assert named(raised.value.message, [server]).replace(path, "description") == message
