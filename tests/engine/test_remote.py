"""Generation on llama-servers: the same events as from a model on this machine, and what happens when servers fail."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from asking import collect_replies
from model_servers import Armed, Refused
from person import OpenTerminal
from remote_engines import (
    ALERT,
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
from scripted_backend import ScriptedBackend, endless, random_model
from scripted_command import SCRIPTED
from server_kinds import LlamaServer
from waiting import wait_until

from cerebrum_cli.core.errors import EndpointError, EngineError
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    NoticeEvent,
    RefusedEvent,
    SequenceId,
    ServersEvent,
    ServerTokens,
    TokenEvent,
)
from cerebrum_cli.engine.backend import Backend, StopFlag
from cerebrum_cli.engine.control import LoopCheck
from cerebrum_cli.engine.remote.client import Endpoint
from cerebrum_cli.engine.remote.remote_engine import RemoteCompletions, RemoteEngine
from cerebrum_cli.engine.sequence import EXPECTED_REPLY_TOKENS, Request
from cerebrum_cli.terminal.progress import server_rates

REQUESTS = tuple(request_of(f"Q{at}", seed=100 * at, temperature=0.8) for at in range(20))
STORY = endless({"Q": "once upon a time "})
OTHER_MODEL = {"body": b'{"tokens":[1,2,3]}', "path": "/tokenize"}


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


def test_remote_abort_closes_the_connection_and_keeps_others() -> None:
    with serving(random_model) as servers, connected(*servers) as engine:
        stuck = servers[0].arm(hang_after=0)
        with closing(engine.complete([request_of("stuck")])) as events:
            assert stuck.is_hanging.wait(10)
            with closing(engine.complete([request_of("Q", max_tokens=3)])) as others:
                events.abort(0)
                replies = [collect_replies(each)[SequenceId(0)] for each in (events, others)]
        servers[0].wait_for(lambda: [asked.is_left for asked in servers[0].completions()] == [True, False])
    assert [reply.reason for reply in replies] == ["cancelled", "length"]


def test_remote_cancel_keeps_what_has_arrived() -> None:
    with serving(STORY) as servers, connected(*servers) as engine:
        stuck = servers[0].arm(hang_after=6)  # objects; the first are of the prompt's progress
        seen: list[TokenEvent] = []
        with closing(engine.complete([request_of("Q", stream=True)])) as events:
            for event in events:
                if isinstance(event, TokenEvent):
                    seen.append(event)
                    if len(seen) == 4:
                        assert stuck.is_hanging.wait(10)
                        engine.cancel()
        servers[0].wait_for(lambda: servers[0].completions()[0].is_left)
    assert isinstance(event, FinishEvent)
    assert (event.reason, event.completion_tokens, event.has_all_tokens) == ("cancelled", len(seen), True)
    assert "once upon a time".startswith("".join(each.text for each in seen))


def test_remote_requests_after_a_cancel_are_not_sent() -> None:
    with serving(random_model) as [server], connected(server) as engine:
        scope = engine.cancel_scope()
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


def test_remote_reports_what_each_server_generated() -> None:
    with serving(unicode_model, 2) as servers, connected(*servers) as engine:
        events = events_of(engine, *REQUESTS)
        assert not any(isinstance(event, ServersEvent) for event in events_of(engine))
    last = events[-1]
    assert isinstance(last, ServersEvent)
    assert [server.name for server in last.servers] == [server.url for server in servers]
    assert not any(server.is_lost for server in last.servers)
    generated = sum(event.completion_tokens for event in events if isinstance(event, FinishEvent))
    assert sum(server.tokens for server in last.servers) == generated > 0


@pytest.mark.parametrize(("held", "read"), [(4_000_000, 8), (4 * EXPECTED_REPLY_TOKENS, 4), (5500, 6)])
def test_remote_source_is_read_ahead_by_tokens(held: int, read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.engine.remote.remote_engine.HELD_TOKENS", held)
    given = iter(REQUESTS)
    with serving(STORY) as [server], connected(server) as engine:
        stuck = server.arm(hang_after=0, times=None)
        with closing(engine.complete(given)):
            assert len(REQUESTS) - len(list(given)) == read
            assert stuck.is_hanging.wait(10)


# Servers that fail.


@pytest.mark.slow
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "500"}])
def test_remote_busy_server_is_noted_once_after_a_while(headers: dict[str, str]) -> None:
    timeouts = replace(QUICK, busy_notice=0.1, notices=300.0)
    with serving(unicode_model) as [server], connected(server, timeouts=timeouts) as engine:
        server.arm(times=20, status=429, message="no slot", headers=headers)
        with closing(engine.complete([request_of("Q")])) as replies:
            found = [next(event for event in replies if isinstance(event, NoticeEvent))]
            if headers:
                engine.cancel()
            found += [event for event in replies if isinstance(event, NoticeEvent)]
        assert notices(found) == [f"{server.url} is unavailable: no slot"]
        assert not headers or found[0].hint == "retrying in 500 s"
        assert len(server.completions()) == (1 if headers else 21)


def working(server: LlamaServer) -> None:
    """Let a server's page of its slots show that it generates."""
    known, decoded = server.answer, count()

    def answer(path: str, body: Any) -> Any:
        slot = {"is_processing": True, "next_token": [{"n_decoded": next(decoded)}]}
        return [slot] if path == "/slots" else known(path, body)

    server.answer = answer  # type: ignore[method-assign]


@pytest.mark.slow
def test_remote_server_whose_load_changes_is_waited_for() -> None:
    with serving(unicode_model) as [server], connected(server, timeouts=replace(ALERT, patience=0.1)) as engine:
        working(server)
        stuck = server.arm(hang_after=0)
        with closing(engine.complete([REQUESTS[0]])) as replies:
            server.wait_for(lambda: sum(asked.path == "/slots" for asked in server.asked) >= 6)
            stuck.released.set()
            events = list(replies)
        assert len(server.completions()) == 1
    assert outcome(events) == summaries(local_replies(unicode_model, REQUESTS[0]))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}])
def test_remote_server_that_works_on_its_only_row_is_not_given_up(fault: dict[str, Any]) -> None:
    timeouts = replace(ALERT, patience=0.3, row_timeout=60.0)
    with serving(unicode_model) as [server], connected(server, timeouts=timeouts) as engine:
        working(server)
        server.arm(**fault)
        stuck = server.arm(hang_after=0)
        with closing(engine.complete([REQUESTS[0]])) as replies:
            assert stuck.is_hanging.wait(10)
            polls = sum(asked.path == "/slots" for asked in server.asked)
            server.wait_for(lambda: sum(asked.path == "/slots" for asked in server.asked) >= polls + 20)
            stuck.released.set()
            events = list(replies)
    assert outcome(events) == summaries(local_replies(unicode_model, REQUESTS[0]))


class BrokenControl(LoopCheck):
    def feed(self, tokens: Sequence[int], text: str) -> None:
        raise RuntimeError("a bug")


def test_remote_bug_ends_the_only_row_with_its_error() -> None:
    with (
        serving(STORY) as servers,
        connected(*servers) as engine,
        pytest.raises(RuntimeError, match="a bug"),
    ):
        events_of(engine, request_of("Q", controls=(BrokenControl,)))


@pytest.mark.slow
def test_remote_row_that_takes_too_long_is_asked_again_of_a_server_that_works() -> None:
    with serving(unicode_model) as [server], connected(server, timeouts=replace(ALERT, row_timeout=0.3)) as engine:
        working(server)
        stuck = server.arm(hang_after=0)
        events = events_of(engine, *REQUESTS)
    assert stuck.struck and outcome(events) == summaries(local_replies(unicode_model, *REQUESTS))
    assert notices(events) == []


@pytest.mark.slow
def test_remote_server_whose_load_is_known_only_at_times_is_lost() -> None:
    polls = count()
    with serving(unicode_model) as [server], connected(server, timeouts=replace(ALERT, patience=0.1)) as engine:
        known = server.answer
        server.answer = lambda path, body: (  # type: ignore[method-assign]
            None if path == "/slots" and next(polls) % 2 else known(path, body)
        )
        stuck = server.arm(hang_after=0)
        with closing(engine.complete([REQUESTS[0]])) as replies:
            assert stuck.is_hanging.wait(10)
            server.wait_for(
                lambda: server.completions()[0].is_left or sum(asked.path == "/slots" for asked in server.asked) > 60
            )
            assert server.completions()[0].is_left
            events = list(replies)
    assert outcome(events) == summaries(local_replies(unicode_model, REQUESTS[0]))


@contextmanager
def beside_a_hanging_server() -> Iterator[tuple[LlamaServer, LlamaServer, Armed, RemoteEngine]]:
    """Two servers: the first hangs at every row while its load changes; the other has answered one."""
    timeouts = replace(QUICK, silence=0.3, patience=1000.0)  # which is that before the first reply
    with serving(unicode_model, 2) as [hanging, other]:
        hanging.is_loading = True
        with connected(hanging, other, timeouts=timeouts) as engine:
            events_of(engine, REQUESTS[1])
            working(hanging)
            stuck = hanging.arm(hang_after=0, times=None)
            hanging.is_loading = False
            wait_until(lambda: len(engine.pool.known) == 2)
            yield hanging, other, stuck, engine


def test_remote_idle_server_takes_a_vote_of_one_that_has_answered_nothing() -> None:
    """A part of the vote waits for the server that hangs."""
    vote = request_of("Q", n=5)
    with beside_a_hanging_server() as (hanging, other, stuck, engine):
        held = other.arm(hang_after=0)
        with closing(engine.complete([request_of("busy", n=4)])) as first, closing(engine.complete([vote])) as replies:
            assert stuck.is_hanging.wait(10)
            held.disarm()
            list(first)
            other.wait_for(lambda: len(other.completions()) == 4)
            stuck.disarm()
            events = list(replies)
        assert all(asked.is_left for asked in hanging.completions())
    assert outcome(events) == summaries(local_replies(unicode_model, vote))
    assert notices(events) == []


def test_remote_server_that_is_back_takes_the_last_row_of_one_that_has_answered_nothing() -> None:
    with beside_a_hanging_server() as (_, other, stuck, engine):
        other.arm(status=500)
        with closing(engine.complete([REQUESTS[1]])) as replies:
            assert stuck.is_hanging.wait(10)
            other.wait_for(lambda: len(other.completions()) == 3)
            stuck.disarm()
            [(text, *_)] = outcome(replies).values()
    assert text == local_replies(unicode_model, REQUESTS[1])[SequenceId(0)].text


@contextmanager
def holding_a_row(
    fault: dict[str, Any], **row: Any
) -> Iterator[tuple[LlamaServer, LlamaServer, Armed, RemoteCompletions]]:
    """Two servers, the first of which holds a row; another has failed there, and it says that it loads its model."""
    timeouts = replace(QUICK, silence=1000.0)
    with serving(unicode_model, 2) as [first, second], connected(first, second, timeouts=timeouts) as engine:
        stuck = first.arm(hang_after=0)
        with closing(engine.complete([request_of("held", **row)])) as replies:
            assert stuck.is_hanging.wait(10)
            first.arm(times=None, **fault)
            armed = first.arm(path="/v1/models", times=None, status=503)
            others = REQUESTS[1:3]
            assert outcome(events_of(engine, *others)) == summaries(local_replies(unicode_model, *others))
            assert len(first.completions()) > 1
            yield first, second, stuck, replies
            armed.disarm()


def test_remote_server_that_rests_is_given_no_more_samples() -> None:
    fault = {"status": 429, "headers": {"Retry-After": "20"}}
    with holding_a_row(fault, max_n=2) as (first, second, stuck, replies):
        asked = len(first.completions())
        stuck.released.set()
        assert len(outcome(replies)) == 1
        replies.add_samples(0, 1)
        assert len(outcome(replies)) == 1
        assert len(first.completions()) == asked and len(second.completions()) == 3


def test_remote_row_of_a_server_that_loads_its_model_is_asked_elsewhere() -> None:
    with holding_a_row({"status": 500}) as (first, second, _, replies):
        first.wait_for(lambda: first.completions()[0].is_left)
        assert len(outcome(replies)) == 1 and len(second.completions()) == 3


def poisoned(server: LlamaServer, request: Request) -> None:
    """Let a server fail at a request, whenever it comes."""
    whole = server.complete

    def complete(body: Mapping[str, Any]) -> Generator[Any, None, None]:
        if tuple(body["prompt"]) == request.prompt_tokens:
            raise Refused(500, "assertion failed")
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
    assert tuple(bad.prompt_tokens) in [each[-1] for each in prompts]  # alone


def test_remote_request_after_a_broken_stream_is_told_that_the_server_is_unavailable() -> None:
    with serving(STORY) as [server], connected(server, timeouts=replace(QUICK, retries=(0.2,))) as engine:
        server.arm(reset_after=12)
        with pytest.raises(EndpointError, match="connection lost"):
            events_of(engine, request_of("Q", stream=True))
        with closing(engine.complete([request_of("Q", stream=True, max_tokens=5)])) as events:
            assert notices([next(events)]) == [f"{server.url} is unavailable: connection lost"]
            assert any(isinstance(event, FinishEvent) for event in events)


def test_remote_stream_without_ids_has_its_text_alone() -> None:
    request = request_of("Q", stream=True)
    with serving(random_model) as servers, connected(*servers) as engine:
        servers[0].arm(edit=lambda _, reply: {**reply, "tokens": []})
        [reply] = replies_of(engine, request).values()
    [local] = local_replies(random_model, request).values()
    assert reply.finish and not reply.finish.has_all_tokens
    assert (reply.text, reply.finish.completion_tokens) == (local.text, len(local.ids))


# What ends everything.


def test_remote_server_back_with_other_weights_ends_everything() -> None:
    with serving(random_model) as [server], connected(server) as engine:
        server.arm(status=500)
        server.size = 2000
        with pytest.raises(EndpointError) as raised:
            events_of(engine, *REQUESTS)
    was, now = (f"tiny.gguf ({size} bytes) on llama-server" for size in (1000, 2000))
    assert raised.value.message == f"{server.url} serves {now} instead of {was}"


def test_remote_servers_of_different_weights_are_refused_at_the_start_and_left_out_later() -> None:
    one, two = (f"tiny.gguf ({size} bytes)" for size in (1000, 2000))
    with serving(random_model, 2) as [first, second]:
        second.size = 2000
        with closing(remote_engine(first, second)) as engine, pytest.raises(EndpointError) as raised:
            list(engine.load())
        assert set(re.findall(r"tiny.gguf \(\d+ bytes\)", raised.value.message)) == {one, two}
        second.size = 1000
        with connected(first, second) as engine:
            second.size = 2000
            second.arm(status=500, times=None, let_through=2)
            events = events_of(engine, *REQUESTS)
            told = [each for each in notices(events) if "serves" in each]
            assert len(told) <= 1 and len(second.completions()) <= 3 + second.slots
    assert outcome(events) == summaries(local_replies(random_model, *REQUESTS))


def test_remote_server_is_used_again_once_it_has_its_own_model() -> None:
    with serving(random_model) as [server], connected(server) as engine:
        server.arm(status=500)
        other = server.arm(times=None, **OTHER_MODEL)
        with pytest.raises(EndpointError, match="whose vocabulary differs from that of the local model"):
            events_of(engine, *REQUESTS)
        other.disarm()

        def answers() -> bool:
            with suppress(EndpointError):
                return outcome(events_of(engine, REQUESTS[0])) == summaries(local_replies(random_model, REQUESTS[0]))
            return False

        wait_until(answers)


def test_remote_served_model_is_chosen_by_name() -> None:
    with serving(random_model) as [server]:
        server.models = ("a.gguf", "b.gguf")
        with connected(server, served_model="b.gguf") as engine:
            replies_of(engine, REQUESTS[0])
        assert server.completions()[0].body["model"] == "b.gguf"


# Connecting and closing.


@pytest.mark.parametrize("is_loading", [False, True])
def test_remote_start_waits_for_a_server(is_loading: bool) -> None:
    reason = "Loading model" if is_loading else "Connection refused"
    with serving(random_model) as [server]:
        server.is_loading = is_loading
        if not is_loading:
            server.kill()
        with closing(remote_engine(server, timeouts=replace(QUICK, waits_at_start=not is_loading))) as engine:
            loading = iter(engine.load())
            assert next(loading) == NoticeEvent(f"{server.url} is unavailable: {reason}", "giving up in 600 s")
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
                assert stuck.is_hanging.wait(10)
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


def test_remote_cancel_before_connecting_is_not_lost() -> None:
    may_open = threading.Event()

    def open_slowly(emit: Callable[[Event], None], stop: StopFlag) -> Backend:
        may_open.wait()
        return ScriptedBackend(random_model).open(emit, stop)

    with serving(random_model) as [server]:
        engine = RemoteEngine(open_slowly, [Endpoint(server.url, server.url)])
        engine.cancel()
        may_open.set()
        with closing(engine), pytest.raises(EngineError, match="loading interrupted"):
            list(engine.load())


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


# What the progress of a batch shows of servers.


def test_server_rates_name_lost_servers() -> None:
    servers = [ServerTokens("https://gpu1:8080", 100, True), ServerTokens("https://gpu2:8080", 200, False)]
    assert server_rates(servers, 10.0) == "gpu1:8080 lost, gpu2:8080 20.0"


def slow_model(held: tuple[int, ...], seed: int) -> int:
    """Repeat a letter endlessly, 50 times a second."""
    time.sleep(0.02)
    return ord("a")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_batch_bar_shows_the_rate_of_each_server(
    open_terminal: OpenTerminal, chatml_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("".join(f"question {row}\n" for row in range(40)))
    command = [sys.executable, SCRIPTED, json.dumps({"reply": ""}), "batch", "in.txt", "-o", "out.jsonl", "-n", "20"]
    address = r"127\.0\.0\.1:\d+"
    with serving(slow_model, 2, context_size=1000) as servers:
        endpoints = [part for server in servers for part in ("--endpoint", server.url)]
        person = open_terminal(*command, "-m", chatml_model, *endpoints, size=(120, 24))
        person.wait_for("tokens/s (127.0.0.1:")
        bar = person.screen.lines[0]
        rates = rf"\d+\.\d tokens/s \({address} \d+\.\d, {address} \d+\.\d\)"
        assert re.search(rf"━ \d+ truncated {rates} 0:\d\d left$", bar)
        assert person.end() == 0
        totals = rf"40 of 40 done, 40 truncated, 800 tokens in (\S+) s \((\S+) t/s: {address} (\S+), {address} (\S+)\)"
        found = re.fullmatch(totals, "".join(person.screen.lines))
        assert found
        _, total, *each = map(float, found.groups())
        assert sum(each) == pytest.approx(total, abs=0.2)
