"""Generation on llama-servers: the same events as from a model on this machine, and what happens when servers fail."""

import resource
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from asking import collect_replies
from model_servers import Refused
from remote_engines import (
    connected,
    events_of,
    local_replies,
    outcome,
    remote_engine,
    replies_of,
    request_of,
    serving,
    set_patience,
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
from cerebrum_cli.servers.remote_engine import raise_open_files


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    set_patience(monkeypatch)


REQUESTS = tuple(request_of(f"Q{at}", seed=100 * at, temperature=0.8) for at in range(20))
STORY = endless({"Q": "once upon a time "})


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
    assert refused[0].error.message.startswith("this request failed 3 times, last on server ")
    texts = [outcome(events)[SequenceId(at)][0] for at in range(20) if at != 5]
    assert texts == [reply.text for reply in local_replies(unicode_model, *good).values()]
    assert sum(each.count(tuple(bad.prompt_tokens)) for each in prompts) >= 3


@pytest.mark.slow
def test_remote_server_that_is_killed_twice_answers_each_row_once() -> None:
    def kill_twice(server: LlamaServer) -> None:
        for _ in range(2):
            held = server.arm(hang_after=0, times=None, let_through=15)
            assert held.is_hanging.wait(TIMEOUT_S)
            server.kill()
            server.disarm()
            server.start()

    requests = [request_of(f"Q{at}") for at in range(60)]
    with serving(unicode_model, slots=4) as [server], connected(server) as engine, ThreadPoolExecutor() as meanwhile:
        killing = meanwhile.submit(kill_twice, server)
        events = events_of(engine, *requests)
        killing.result(TIMEOUT_S)
    ends = [event.sequence for event in events if isinstance(event, FinishEvent | RefusedEvent)]
    assert sorted(ends) == [SequenceId(at) for at in range(60)]
    texts = {id: reply.text for id, reply in local_replies(unicode_model, *requests).items()}
    assert {id: values[0] for id, values in outcome(events).items()} == texts


def test_remote_start_waits_for_a_server_that_loads_its_model() -> None:
    with serving(random_model) as [server]:
        server.is_loading = True
        with closing(remote_engine(server)) as engine:
            loading = iter(engine.load())
            assert next(loading) == NoticeEvent(f"{server.url} is unavailable: Loading model", "retrying")
            server.is_loading = False
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
    assert outcome(events) == summaries(local_replies(random_model, *REQUESTS))


@pytest.mark.parametrize("fault", [{"status": 503}, {"hang_after": 0}])
def test_remote_server_that_never_loads_holds_up_no_other(
    fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_patience(monkeypatch, JOIN_S=10.0 if "status" in fault else 0.05)
    with serving(random_model, 2) as [first, loading]:
        loading.arm(path="/v1/models", times=None, **fault)
        with closing(remote_engine(first, loading)) as engine:
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
def test_remote_close_leaves_nothing_behind(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_patience(monkeypatch, RETRY_S=(1000.0,))
    with serving(random_model) as [server]:
        is_connecting = moment == "connecting"
        armed = server.arm(path="/props", hang_after=0) if is_connecting else None
        engine = remote_engine(server)
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
        raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] in (hard, 10_240)  # where that is unlimited
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
