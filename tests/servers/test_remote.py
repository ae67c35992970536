"""Generation on llama-servers: the same events as from a model on this machine, and what happens when servers fail."""

import re
import resource
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from asking import collect_replies
from model_servers import Refused
from remote_engines import (
    QUICK,
    connected,
    events_of,
    local_replies,
    notices,
    outcome,
    remote_engine,
    replies_of,
    request_of,
    serving,
    summaries,
    unicode_model,
)
from scripted_backend import endless, random_model
from server_kinds import LlamaServer
from waiting import TIMEOUT_S, wait_until

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import (
    FinishEvent,
    FinishReason,
    NoticeEvent,
    RefusedEvent,
    SequenceId,
    TokenEvent,
)
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.formats.reply_text import ReplyText
from cerebrum_cli.servers import client
from cerebrum_cli.servers.endpoint import ServerTimeouts
from cerebrum_cli.servers.remote_engine import raise_open_files

REQUESTS = tuple(request_of(f"Q{at}", seed=100 * at, temperature=0.8) for at in range(20))
STORY = endless({"Q": "once upon a time "})


def test_remote_logprobs_belong_to_the_tokens_whose_text_was_complete() -> None:
    request = request_of("Q", n=2, logprobs=True)
    with (
        serving(unicode_model) as servers,
        connected(*servers) as engine,
        closing(engine.complete([request])) as events,
    ):
        found = [
            each
            for event in events
            if isinstance(event, TokenEvent)
            for each in zip(event.tokens, event.logprobs, strict=True)
        ]
    assert any(logprob is None for _, logprob in found)
    assert all(logprob in (None, -token / 1000) for token, logprob in found)
    assert sum(logprob is not None for _, logprob in found) > len(found) / 3


def test_remote_vote_larger_than_a_server_takes_several_requests() -> None:
    request = request_of("Q", n=7)
    with serving(unicode_model, slots=3) as servers, connected(*servers) as engine:
        remote = replies_of(engine, request)
        assert [asked.body["n_cmpl"] for asked in servers[0].completions()] == [3, 3, 1]
    assert summaries(remote) == summaries(local_replies(unicode_model, request))


def test_remote_abort_closes_the_connection() -> None:
    with serving(random_model) as [server], connected(server) as engine:
        stuck = server.arm(hang_after=0)
        with closing(engine.complete([request_of("stuck")])) as events:
            assert stuck.is_hanging.wait(TIMEOUT_S)
            events.abort(0)
            assert collect_replies(events)[SequenceId(0)].reason == "cancelled"
        server.wait_for(lambda: server.completions()[0].is_left)


def test_remote_cancel_keeps_what_has_arrived() -> None:
    with serving(STORY) as servers, connected(*servers) as engine:
        stuck = servers[0].arm(hang_after=6)  # objects; the first are of the prompt's progress
        seen: list[TokenEvent] = []
        with closing(engine.complete([request_of("Q", stream=True)])) as events:
            for event in events:
                if isinstance(event, TokenEvent):
                    seen.append(event)
                    if len(seen) == 4:
                        assert stuck.is_hanging.wait(TIMEOUT_S)
                        engine.cancel()
        servers[0].wait_for(lambda: servers[0].completions()[0].is_left)
    assert isinstance(event, FinishEvent)
    assert (event.reason, event.completion_tokens, event.has_all_tokens) == ("cancelled", len(seen), True)
    assert "once upon a time".startswith("".join(each.text for each in seen))


def test_remote_requests_after_a_cancel_are_not_sent() -> None:
    with serving(random_model) as [server], connected(server) as engine:
        scope = engine.cancel_scope
        engine.cancel()
        with closing(engine.complete([request_of("Q")], scope)) as events:
            assert list(events) == []
        with closing(engine.complete([request_of("Q", max_n=2)])) as events:
            replies = collect_replies(events)
            engine.cancel()
            events.add_samples(0, 1)
            [late] = collect_replies(events).values()
        assert [reply.reason for reply in replies.values()] == ["stop"] and late.reason == "cancelled"
        assert len(server.completions()) == 1


def test_remote_source_is_read_ahead() -> None:
    given = iter(REQUESTS)
    with serving(STORY) as [server], connected(server) as engine:
        stuck = server.arm(hang_after=0, times=None)
        with closing(engine.complete(given)):
            assert len(REQUESTS) - len(list(given)) == 2 * server.slots
            assert stuck.is_hanging.wait(TIMEOUT_S)


class BrokenControl:
    def intervene(self, text: ReplyText, tokens: Sequence[int]) -> FinishReason | None:
        raise RuntimeError("a bug")


def test_remote_bug_ends_the_only_row_with_its_error() -> None:
    with (
        serving(STORY) as servers,
        connected(*servers) as engine,
        pytest.raises(RuntimeError, match="a bug"),
    ):
        events_of(engine, request_of("Q", controls=(BrokenControl,)))


def test_remote_server_that_rests_is_given_no_more_samples() -> None:
    with serving(unicode_model, 2) as [first, second], connected(first, second) as engine:
        stuck = first.arm(hang_after=0)
        with closing(engine.complete([request_of("held", max_n=2)])) as replies:
            assert stuck.is_hanging.wait(TIMEOUT_S)
            first.arm(status=429, headers={"Retry-After": "20"})
            assert len(outcome(events_of(engine, *REQUESTS[1:3]))) == 2
            stuck.released.set()
            assert len(outcome(replies)) == 1
            asked = len(first.completions())
            replies.add_samples(0, 1)
            assert len(outcome(replies)) == 1
        assert len(first.completions()) == asked


def test_remote_row_of_a_server_that_loads_its_model_is_asked_elsewhere() -> None:
    with serving(unicode_model, 2) as [first, second], connected(first, second) as engine:
        stuck = first.arm(hang_after=0)
        with closing(engine.complete([request_of("held")])) as replies:
            assert stuck.is_hanging.wait(TIMEOUT_S)
            first.arm(path="/v1/models", times=None, status=503)
            first.arm(status=500)
            assert len(outcome(events_of(engine, *REQUESTS[1:3]))) == 2
            first.wait_for(lambda: first.completions()[0].is_left)
            assert len(outcome(replies)) == 1


def poisoned(server: LlamaServer, request: Request, status: int = 500) -> None:
    """Let a server fail at a request, whenever it comes."""
    whole = server.complete

    def complete(body: Mapping[str, Any]) -> Generator[Any, None, None]:
        if tuple(body["prompt"]) == request.prompt_tokens:
            raise Refused(status, "assertion failed")
        yield from whole(body)

    server.complete = complete  # type: ignore[method-assign]


def test_remote_row_that_kills_servers_is_refused_and_stalls_no_other() -> None:
    bad, good = REQUESTS[5], [request for request in REQUESTS if request is not REQUESTS[5]]
    with serving(unicode_model, 2) as servers, connected(*servers) as engine:
        for server in servers:
            poisoned(server, bad)
        events = events_of(engine, *REQUESTS)
        prompts = [[asked.prompt for asked in server.completions()] for server in servers]
    refused = [event for event in events if isinstance(event, RefusedEvent)]
    assert [event.sequence.request for event in refused] == [5]
    assert re.match("this request failed [3-6] times, last on server ", refused[0].error.message)
    texts = [outcome(events)[SequenceId(at)][0] for at in range(20) if at != 5]
    assert texts == [reply.text for reply in local_replies(unicode_model, *good).values()]
    assert sum(each.count(tuple(bad.prompt_tokens)) for each in prompts) >= 3


@contextmanager
def killed_by(server: LlamaServer, request: Request, kills: list[LlamaServer]) -> Iterator[None]:
    """Let a server end at a request, whenever it comes, and start it again."""
    whole, is_over, dies = server.complete, threading.Event(), threading.Semaphore(0)

    def complete(body: Mapping[str, Any]) -> Generator[Any, None, None]:
        if tuple(body["prompt"]) == request.prompt_tokens:
            kills.append(server)
            dies.release()
            raise ConnectionAbortedError
        yield from whole(body)

    def supervise() -> None:
        while dies.acquire() and not is_over.is_set():
            server.kill()
            server.start()

    server.complete = complete  # type: ignore[method-assign]
    supervisor = threading.Thread(target=supervise, daemon=True)
    supervisor.start()
    yield
    is_over.set()
    dies.release()
    supervisor.join()


@pytest.mark.parametrize("count", [1, 3])
def test_remote_row_that_kills_servers_does_so_a_few_times(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RESEND_S", 0.0)  # other servers take longer to restart
    requests = [request_of(f"Q{at}") for at in range(60)]
    kills: list[LlamaServer] = []
    with serving(unicode_model, count, slots=2) as servers, ExitStack() as stack:
        for server in servers:
            stack.enter_context(killed_by(server, requests[40], kills))
        with connected(*servers) as engine:
            events = events_of(engine, *requests)
    [refused] = [event for event in events if isinstance(event, RefusedEvent)]
    assert refused.sequence.request == 40
    assert len(kills) <= 6
    assert outcome(events).keys() == {SequenceId(at) for at in range(60) if at != 40}


def test_remote_row_that_the_only_server_refuses_first_is_the_only_one_without_a_reply() -> None:
    with serving(unicode_model) as [server], connected(server, window=1) as engine:
        poisoned(server, REQUESTS[0], 422)
        events = events_of(engine, *REQUESTS)
        alone = events_of(engine, REQUESTS[0])
    refused = {event.sequence.request: event for event in events if isinstance(event, RefusedEvent)}
    assert [*refused] == [0] and refused[0].error.message == "server 1: assertion failed"
    assert outcome(events).keys() == {SequenceId(at) for at in range(1, 20)}
    assert not notices(events) and isinstance(alone[-1], RefusedEvent)


def test_remote_server_is_tried_less_often_within_a_short_patience() -> None:
    timeouts = ServerTimeouts()
    assert [timeouts.retry_delay(failures) for failures in range(9)] == [1, 2, 4, 8, 15, 30, 60, 60, 60]
    assert ServerTimeouts(patience=0.0).retry_delay(6) == 1


def test_remote_server_that_is_lost_often_has_one_notice_besides_its_recovery() -> None:
    requests = [request_of(f"Q{at}") for at in range(40)]
    with serving(random_model) as [server], connected(server, timeouts=replace(QUICK, notices=300.0)) as engine:
        for count in (5, 20):
            server.arm(reset_after=0, times=8, let_through=count)
        events = events_of(engine, *requests)
    assert notices(events) == [f"{server.url} is unavailable: connection lost", f"{server.url} is available again"]


def test_remote_server_of_different_weights_is_left_out() -> None:
    with serving(random_model, 2) as [first, second], connected(first, second) as engine:
        second.size = 2000
        second.arm(status=500, times=None, let_through=2)
        events = events_of(engine, *REQUESTS)
        told = [each for each in notices(events) if "serves" in each]
        assert len(told) <= 1 and len(second.completions()) <= 3 + second.slots
    assert outcome(events) == summaries(local_replies(random_model, *REQUESTS))


@pytest.mark.parametrize("is_loading", [False, True])
def test_remote_start_waits_for_a_server(is_loading: bool) -> None:
    reason = "Loading model" if is_loading else "Connection refused"
    with serving(random_model) as [server]:
        server.is_loading = is_loading
        if not is_loading:
            server.kill()
        with closing(remote_engine(server, timeouts=replace(QUICK, waits_at_start=not is_loading))) as engine:
            loading = iter(engine.load())
            notice = next(loading)
            assert isinstance(notice, NoticeEvent) and notice.message == f"{server.url} is unavailable: {reason}"
            assert re.fullmatch(r"giving up in [56]\d\d s", notice.hint)
            server.is_loading = False
            if not is_loading:
                server.start()
            list(loading)
            assert len(replies_of(engine, REQUESTS[0])) == 1


def test_remote_server_missing_at_the_start_is_noted_and_joins() -> None:
    with serving(random_model, 2) as [first, missing]:
        missing.kill()
        with closing(remote_engine(first, missing)) as engine:
            [notice] = [event for event in engine.load() if isinstance(event, NoticeEvent)]
            assert notice.message == f"{missing.url} is unavailable: Connection refused"
            stuck = first.arm(hang_after=0, times=None)
            with closing(engine.complete(REQUESTS)) as replies:
                assert stuck.is_hanging.wait(TIMEOUT_S)
                missing.start()
                missing.wait_for(missing.completions)
                stuck.disarm()
                events = list(replies)
    assert notices(events) == [f"{missing.url} is available again"]
    assert outcome(events) == summaries(local_replies(random_model, *REQUESTS))


@pytest.mark.parametrize("fault", [{"status": 503}, {"hang_after": 0}])
def test_remote_server_that_never_loads_holds_up_no_other(fault: dict[str, Any]) -> None:
    timeouts = replace(QUICK, join=10.0 if "status" in fault else 0.05)
    with serving(random_model, 2) as [first, loading]:
        loading.arm(path="/v1/models", times=None, **fault)
        with closing(remote_engine(first, loading, timeouts=timeouts)) as engine:
            [notice] = [event for event in engine.load() if isinstance(event, NoticeEvent)]
            assert outcome(events_of(engine, *REQUESTS)) == summaries(local_replies(random_model, *REQUESTS))
        reason = "scripted" if "status" in fault else "no answer yet"
        assert notice.message == f"{loading.url} is unavailable: {reason}"
        assert loading.completions() == []


@pytest.mark.parametrize("fault", [{"path": "/v1/models", "hang_after": 0}, {"path": "/tokenize", "status": 503}])
def test_remote_cancel_ends_connecting(fault: dict[str, Any]) -> None:
    with serving(random_model) as [server]:
        armed = server.arm(times=None, **fault)
        with closing(remote_engine(server)) as engine:
            server.wait_for(lambda: armed.struck)
            engine.cancel()
            with pytest.raises(EngineError, match="loading interrupted"):
                list(engine.load())
        wait_until(lambda: server.connections == 0)


@pytest.mark.parametrize("moment", ["connecting", "running", "restoring"])
def test_remote_close_leaves_nothing_behind(moment: str) -> None:
    with serving(random_model) as [server]:
        is_connecting = moment == "connecting"
        armed = server.arm(path="/props", hang_after=0) if is_connecting else None
        engine = remote_engine(server, timeouts=replace(QUICK, retries=(1000.0,), patience=1000.0))
        if not armed:
            list(engine.load())
            armed = server.arm(**({"hang_after": 0} if moment == "running" else {"status": 500}))
            engine.complete([request_of("Q")])
        server.wait_for(lambda: armed.struck)
        engine.close()
        wait_until(lambda: server.connections == 0)
        assert not [thread for thread in threading.enumerate() if "servers" in thread.name]
        with pytest.raises(EngineError):
            engine.complete([request_of("Q")])
        engine.close()


def test_open_files_are_limited_by_the_hard_limit_alone() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert raise_open_files() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raise_open_files() in (hard, 10_240)  # where that is unlimited
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
