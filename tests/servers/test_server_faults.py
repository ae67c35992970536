"""Faults of servers, and what users see then; the tables of faults are in data."""

import json
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from threading import Thread
from typing import Any

import pytest
from cases import rows
from model_servers import Armed, ModelServer
from remote_engines import connected, local_replies, remote_engine, request_of, serving, serving_kind, set_patience
from scripted_backend import endless, random_model
from server_kinds import KINDS, LlamaServer, VllmServer
from waiting import TIMEOUT_S, wait_until

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.remote_engine import RemoteEngine

FAULTS = rows("server_faults")
BY_NAME: dict[str, type[ModelServer]] = {"llama-server": LlamaServer, "vLLM": VllmServer}
ROWS = tuple(request_of(f"Q{at}", seed=100 * at, temperature=0.8) for at in range(12))
STORY = endless({"Q": "once upon a time "})
STREAM = request_of("Q", stream=True)
ASKED = {"rows": ROWS, "row": ROWS[:1], "stream": [STREAM]}
ALL, ONE = "12 replies", "1 replies"
SILENCE_S = 0.5

each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    set_patience(monkeypatch)


def arm(server: ModelServer, fault: Mapping[str, Any]) -> Armed:
    """Arm a fault of the tables: `change` is of a whole reply, `event` in place of one of a stream, by its number."""
    values = dict(fault)
    if "body" in values:
        values["body"] = written(values["body"])
    if change := values.pop("change", None):
        values["edit"] = lambda _, reply: {**reply, **change}
    if event := values.pop("event", None):
        number, sent = event
        values["edit"] = lambda at, chunk: (sent.encode() if isinstance(sent, str) else sent) if at == number else chunk
    return server.arm(**values)


def written(body: Any) -> bytes:
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


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
    tokens: dict[SequenceId, list[int]] = {}
    for event in events:
        if isinstance(event, NoticeEvent):
            lines.append(event.message)
        elif isinstance(event, RefusedEvent):
            lines.append(f"{type(event.error).__name__}: {event.error.message}")
            assert event.error.hint
        elif isinstance(event, TokenEvent):
            tokens.setdefault(event.sequence, []).extend(event.tokens)
        elif isinstance(event, FinishEvent):
            replies += 1
            expected = local[event.sequence]
            assert (tokens.get(event.sequence, []), event.reason) == (expected.ids, expected.reason)
    if replies and not error:
        lines.append(f"{replies} replies")
    if error:
        shown = tokens.get(SequenceId(0), []) if requests[0].ask.stream else []
        assert error.hint and shown == local[SequenceId(0)].ids[: len(shown)]
        lines.append(f"{'text, then ' if shown else ''}error: {error.message}")
    return [named(line, servers) for line in dict.fromkeys(lines)]


def named(line: str, servers: Sequence[ModelServer]) -> str:
    for server, name in zip(servers, ("first", "second"), strict=False):
        line = line.replace(server.url, name)
    return line


def unavailable(reason: str) -> list[str]:
    return [f"first is unavailable: {reason}", ALL]


# Rows on two servers, of which the first fails twice: one row may be lost both times.


def release_later(held: Armed, refusing: Armed) -> None:
    wait_until(lambda: refusing.struck >= 5)
    held.disarm()


@pytest.mark.parametrize("name", FAULTS["rows"])
def test_server_fault_costs_no_row(name: str) -> None:
    fault, expected = FAULTS["rows"][name]
    with serving(random_model, 2) as servers, connected(*servers) as engine:
        armed = arm(servers[0], {"times": 2, **fault})
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


@pytest.mark.parametrize("name", FAULTS["shapes"])
def test_server_reply_of_another_shape_costs_no_row(name: str) -> None:
    kind, fault, reason = FAULTS["shapes"][name]
    with serving_kind(BY_NAME[kind], random_model, 2) as servers, connected(*servers) as engine:
        arm(servers[0], {"times": 2, **fault})
        assert transcript(engine, servers, ROWS) == unavailable(reason)


@each_kind
@pytest.mark.parametrize("moment", [0, 1])
def test_server_that_hangs_costs_no_row(kind: type[ModelServer], moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_patience(monkeypatch, SILENCE_S=SILENCE_S)
    with serving_kind(kind, random_model, 2) as servers, connected(*servers) as engine:
        hanging = servers[0].arm(times=None, hang_after=moment)
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
    ("asked", "expected"),
    [("rows", unavailable(f"silent for {SILENCE_S} s")), ("stream", [f"error: first: silent for {SILENCE_S} s"])],
)
def test_server_that_hangs_alone_has_failed_after_a_longer_silence(
    asked: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_patience(monkeypatch, LONG_SILENCE_S=SILENCE_S)
    with serving(random_model) as servers, connected(*servers) as engine:
        servers[0].arm(hang_after=0, times=2)
        assert transcript(engine, servers, ASKED[asked]) == expected


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


# A stream on two servers of which the first fails, within the text at its twelfth object.


@each_kind
@pytest.mark.parametrize("name", FAULTS["streams"])
def test_server_fault_in_a_stream(kind: type[ModelServer], name: str) -> None:
    fault, expected = FAULTS["streams"][name]
    with serving_kind(kind, STORY, 2) as servers, connected(*servers) as engine:
        armed = arm(servers[0], fault)
        assert transcript(engine, servers, [STREAM], armed) == expected
        asked = sum(len(server.completions()) for server in servers)
        assert (armed.struck, asked) == (1, 2 if expected[-1] == ONE else 1)
        assert transcript(engine, servers, [STREAM])[-1] == ONE


# The only server.


@pytest.mark.parametrize("name", FAULTS["only"])
def test_server_fault_of_the_only_one(name: str) -> None:
    asked, fault, expected = FAULTS["only"][name]
    with serving(STORY if asked == "stream" else random_model) as servers, connected(*servers) as engine:
        arm(servers[0], fault)
        assert transcript(engine, servers, ASKED[asked]) == expected


@pytest.mark.parametrize("name", FAULTS["refusals"])
@pytest.mark.parametrize("stream", [False, True])
def test_server_refuses_a_request(stream: bool, name: str) -> None:
    kind, body, refused = FAULTS["refusals"][name]
    with serving_kind(BY_NAME[kind], STORY) as servers, connected(*servers) as engine:
        servers[0].arm(status=400, body=written(body))
        assert transcript(engine, servers, [request_of("Q", stream=stream, grammar="root ::= .*")]) == [refused]


def test_servers_are_given_up_after_a_time_without_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(random_model) as servers, connected(*servers) as engine:
        set_patience(monkeypatch, GIVE_UP_S=1.0)
        servers[0].arm(status=503, times=None)
        assert transcript(engine, servers, ROWS) == ["error: no server answers (first: scripted)"]


@pytest.mark.parametrize(("fault", "message"), FAULTS["connecting"])
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
            arm(server, fault)
        with closing(remote_engine(server, **options)) as engine, pytest.raises(EndpointError) as raised:
            list(engine.load())
    assert engine.has_failed and raised.value.hint and "wrong-key" not in repr(raised.value)
    assert named(raised.value.message, [server]) == message
