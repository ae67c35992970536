"""vLLM and SGLang that refuse or fail: odd replies, what is asked again, what is lost, and what ends everything."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from model_servers import ModelServer
from remote_engines import (
    QUICK,
    connected,
    events_of,
    local_replies,
    outcome,
    remote_engine,
    replies_of,
    request_of,
    serving_kind,
    summaries,
    unicode_model,
)
from scripted_backend import DEAD_END, random_model
from server_kinds import OTHER_KINDS, REQUESTS, STORY, every_kind, other_kinds
from sglang_server import SglangServer
from vllm_server import VllmServer

from cerebrum_cli.core.errors import EndpointError, GrammarError, PromptTooLong
from cerebrum_cli.core.events import RefusedEvent

# Replies that are not what was asked for.


@other_kinds
@pytest.mark.parametrize("stream", [False, True])
def test_kinds_reply_without_ids_is_text(kind: Any, stream: bool) -> None:
    request = request_of("Q", n=1 if stream else 2, stream=stream, temperature=0.7)
    with serving_kind(kind, unicode_model) as [server], connected(server) as engine:
        server.hides_ids = True
        remote = replies_of(engine, request)
    local = local_replies(unicode_model, request)
    assert [reply.text for reply in remote.values()] == [reply.text for reply in local.values()]
    assert [reply.reason for reply in remote.values()] == [reply.reason for reply in local.values()]
    assert not any(reply.finish and reply.finish.has_all_tokens for reply in remote.values())


@pytest.mark.parametrize("max_tokens", [3, 40])
def test_kinds_samples_without_ids_keep_their_count_and_reason(max_tokens: int) -> None:
    request = request_of("Q", n=3, temperature=0.7, max_tokens=max_tokens)
    with serving_kind(VllmServer, unicode_model) as [server], connected(server) as engine:
        server.hides_ids = True
        remote = replies_of(engine, request)
    local = local_replies(unicode_model, request)
    assert [reply.reason for reply in remote.values()] == [reply.reason for reply in local.values()]
    counted, exact = (
        [each.finish.completion_tokens for each in found.values() if each.finish] for found in (remote, local)
    )
    assert sum(counted) == sum(exact) and all(counted)


@pytest.mark.parametrize("kind", [VllmServer, SglangServer])
def test_kinds_adapter_has_the_context_of_its_base(kind: type[ModelServer]) -> None:
    with serving_kind(kind, random_model) as [server]:
        base = server.listed()["data"][0]
        adapter = {**base, "id": "sql", "root": "/srv/sql-lora", "parent": base["id"], "max_model_len": None}
        server.arm(path="/v1/models", body=json.dumps({"object": "list", "data": [base, adapter]}).encode())
        server.models = (*server.models, "sql")
        with connected(server, served_model="sql") as engine:
            assert engine.context_size == server.n_ctx
            assert engine.builds[0]["model"] == "sql-lora on tiny.gguf"
            replies_of(engine, REQUESTS[0])
        body = server.completions()[0].body
    assert (body.get("model") or body["lora_path"]) == "sql"


@pytest.mark.parametrize("stream", [False, True])
def test_kinds_reply_that_ignores_the_grammar_is_refused(stream: bool) -> None:
    requests = [request_of(f"Q{at}", grammar=DEAD_END, stream=stream) for at in range(6)]
    with serving_kind(VllmServer, random_model) as [server], connected(server) as engine:
        server.ignores_grammar = True
        events = events_of(engine, *requests)
    local = local_replies(random_model, *(replace(request, grammar=None) for request in requests))
    refused = {event.sequence: event.error for event in events if isinstance(event, RefusedEvent)}
    assert list(refused) and sorted(refused) == [id for id, reply in sorted(local.items()) if len(reply.ids) > 12]
    assert all("does not match the grammar" in error.message and error.hint for error in refused.values())


@every_kind
def test_kinds_refuse_a_request_and_answer_the_others(kind: type[ModelServer]) -> None:
    good, grammar = request_of("Q"), request_of("Q", grammar="bad")
    too_long = [request_of("Q" * length, stream=stream) for length in (50, 60) for stream in (False, True)]
    with serving_kind(kind, random_model) as servers:
        servers[0].context_size = 50
        with connected(*servers) as engine:
            events = events_of(engine, good, grammar, *too_long)
    errors = {event.sequence.request: event.error for event in events if isinstance(event, RefusedEvent)}
    assert [type(errors[at]) for at in sorted(errors)] == [GrammarError, *[PromptTooLong] * 4]
    assert all(errors[at].message.startswith("the server: ") and errors[at].hint for at in range(2, 6))
    assert outcome(events) == summaries(local_replies(random_model, good))


# Servers that fail.


@other_kinds
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 503},
        {"status": 500},
        {"reset_after": 0},
        {"reset_after": 1},
        {"is_truncated": True},
        {"body": b"not JSON"},
        {"body": b"[]"},
        {"body": b"null"},
        {"body": b"{}"},
        {"body": b'{"choices":[]}'},
        {"body": b'{"choices":[{"index":0,"text":"","token_ids":["x"],"finish_reason":"stop"}]}'},
        {"body": b'{"choices":[{"index":0,"text":"","token_ids":[],"finish_reason":"abort"}]}'},
        {"body": b'{"output_ids":[],"meta_info":{"completion_tokens":0}}'},
        {"body": b'{"output_ids":[],"meta_info":{"completion_tokens":0,"finish_reason":{"type":"abort"}}}'},
        {"body": b'{"output_ids":[],"meta_info":{"completion_tokens":0,"finish_reason":"stop"}}'},
    ],
)
def test_kinds_request_of_a_failing_server_is_asked_again(kind: type[ModelServer], fault: dict[str, Any]) -> None:
    patience = replace(QUICK, busy=1000.0) if "headers" in fault else QUICK
    with serving_kind(kind, random_model, 2) as servers, connected(*servers, patience=patience) as engine:
        armed = servers[0].arm(times=3, **fault)
        events = events_of(engine, *REQUESTS)
        asked = [asked.prompt for server in servers for asked in server.completions()]
    assert armed.struck and len(asked) == len(REQUESTS) + armed.struck and len(set(asked)) == len(REQUESTS)
    assert outcome(events) == summaries(local_replies(random_model, *REQUESTS))


def error_event(code: int) -> dict[str, Any]:
    """An error in the middle of a stream, as both kinds send it."""
    return {"error": {"message": "scripted", "type": "Error", "param": None, "code": code}}


def abort_event(code: int) -> dict[str, Any]:
    """A request that SGLang's scheduler gives up."""
    finish = {"type": "abort", "message": "scripted", "status_code": code, "err_type": None}
    meta = {"finish_reason": finish, "prompt_tokens": 1, "completion_tokens": 0}
    return {"text": "", "output_ids": [], "meta_info": meta}


EVENTS = [(kind, error_event) for kind in OTHER_KINDS] + [(kind, abort_event) for kind in OTHER_KINDS[1:]]


@pytest.mark.parametrize(("kind", "event"), EVENTS)
@pytest.mark.parametrize("code", [429, 500, 503])
def test_kinds_error_that_begins_a_stream_is_asked_again(kind: type[ModelServer], event: Any, code: int) -> None:
    request = request_of("Q", stream=True)
    with serving_kind(kind, random_model, 2) as servers, connected(*servers) as engine:
        servers[0].arm(edit=lambda at, chunk: event(code))
        events = events_of(engine, request)
        assert sum(len(server.completions()) for server in servers) == 2
    assert outcome(events) == summaries(local_replies(random_model, request))


@pytest.mark.parametrize(("kind", "event"), EVENTS)
@pytest.mark.parametrize("code", [400, 429, 500, 503])
def test_kinds_error_within_a_stream_ends_it(kind: type[ModelServer], event: Any, code: int) -> None:
    with serving_kind(kind, STORY, 2) as servers, connected(*servers) as engine:
        for server in servers:
            server.arm(edit=lambda at, chunk: event(code) if at == 5 else chunk)
        if code == 400:
            found = events_of(engine, request_of("Q", stream=True))
            [refused] = [event for event in found if isinstance(event, RefusedEvent)]
            assert refused.error.message.endswith(": scripted")
        else:
            with pytest.raises(EndpointError, match="scripted"):
                events_of(engine, request_of("Q", stream=True))
        assert sum(len(server.completions()) for server in servers) == 1
        [again] = replies_of(engine, request_of("Q", stream=True, max_tokens=3)).values()
    assert again.text == "onc"


@other_kinds
@pytest.mark.parametrize("stream", [False, True])
def test_kinds_healthy_silence_is_waited_out(kind: type[ModelServer], stream: bool) -> None:
    request = request_of("Q", stream=stream)
    with serving_kind(kind, random_model) as [server], connected(server) as engine:
        stuck = server.arm(hang_after=0)
        with closing(engine.complete([request])) as running:
            server.wait_for(lambda: sum(asked.path == "/health" for asked in server.asked) >= 3)
            stuck.released.set()
            events = list(running)
        assert len(server.completions()) == 1
    assert outcome(events) == summaries(local_replies(random_model, request))


@other_kinds
def test_kinds_silent_server_without_health_is_lost(kind: type[ModelServer]) -> None:
    with serving_kind(kind, random_model, 2) as servers, connected(*servers) as engine:
        servers[0].arm(hang_after=0, times=None)
        servers[0].arm(path="/health", times=None, status=503)
        servers[0].arm(path="/v1/models", times=None, status=500)
        events = events_of(engine, *REQUESTS)
    assert outcome(events) == summaries(local_replies(random_model, *REQUESTS))


# What ends everything.


PATHS = [
    (kind, path)
    for kind in OTHER_KINDS
    for path in ("/v1/models", "/version" if kind is VllmServer else "/server_info", "/tokenize", kind.completion_path)
]


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_kinds_redirect_is_not_followed(kind: type[ModelServer], path: str) -> None:
    with serving_kind(kind, random_model, 2) as [server, other]:
        server.key = other.key = "sesame"
        server.arm(path=path, times=None, status=307, headers={"Location": f"{other.url}{path}"})
        with closing(remote_engine(server, key="sesame")) as engine, pytest.raises(EndpointError, match="redirects to"):
            list(engine.load())
            events_of(engine, *REQUESTS)
        assert other.asked == []


@other_kinds
def test_kinds_key_vocabulary_and_model_are_checked(kind: type[ModelServer]) -> None:
    def error(**options: Any) -> str:
        with closing(remote_engine(server, **options)) as engine, pytest.raises(EndpointError) as raised:
            list(engine.load())
            events_of(engine, *REQUESTS)
        assert raised.value.hint and "\n" not in raised.value.message
        return raised.value.message.removeprefix(server.url)

    with serving_kind(kind, random_model) as [server]:
        server.key = "sesame"
        assert (error(), error(key="wrong")) == (" requires an API key", " refuses this API key")
        server.key = None
        tokenize = server.arm(path="/tokenize", body=b'{"tokens":[1,2,3]}', times=None)
        assert error() == " serves tiny.gguf, whose vocabulary differs from the model's"
        tokenize.disarm()
        server.arm(status=404, message="The model `x` does not exist.")
        assert error() == ": The model `x` does not exist."
        for path in ("/version", "/server_info"):
            server.arm(path=path, body=b"{}", times=None)
        assert error().startswith(": unexpected response to /")
