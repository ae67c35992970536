"""Generation on servers that imitate llama-server: the same events as from a model on this machine."""

from __future__ import annotations

from contextlib import closing

from asking import collect_replies
from remote_engines import connected, local_replies, replies_of, request_of, serving, summaries, unicode_model
from scripted_backend import endless, random_model

from cerebrum_cli.core.events import FinishEvent, NoticeEvent, SequenceId, TokenEvent

STORY = endless({"Q": "once upon a time "})


def test_remote_logprobs_belong_to_the_tokens_whose_text_was_complete() -> None:
    request = request_of("Q", n=2, logprobs=True)
    with (
        serving(unicode_model) as servers,
        connected(*servers) as engine,
        closing(engine.complete([request])) as events,
    ):
        found = [(event.token, event.logprob) for event in events if isinstance(event, TokenEvent) and event.token]
    assert any(logprob is None for _, logprob in found)
    assert all(logprob in (None, -token / 1000) for token, logprob in found)
    assert sum(logprob is not None for _, logprob in found) > len(found) / 3


def test_remote_vote_larger_than_a_server_takes_several_requests() -> None:
    request = request_of("Q", n=7)
    with serving(unicode_model, slots=3) as servers, connected(*servers) as engine:
        remote = replies_of(engine, request)
        assert [asked.body["n_cmpl"] for asked in servers[0].completions()] == [3, 3, 1]
    assert summaries(remote) == summaries(local_replies(unicode_model, request))


def test_remote_waiting_vote_is_divided_by_the_slots_at_its_start() -> None:
    request = request_of("Q", n=4, seed=5)
    with serving(random_model) as [server], connected(server) as engine:
        stuck = server.arm(hang_after=0)
        with closing(engine.complete([request, request])) as events:
            assert stuck.is_hanging.wait(10)
            server.kill()
            server.slots = 2
            server.start()
            remote = collect_replies(event for event in events if not isinstance(event, NoticeEvent))
        assert [asked.body["n_cmpl"] for asked in server.completions()] == [4, 2, 2, 2, 2]
    assert summaries(remote) == summaries(local_replies(random_model, request, request))


def test_remote_abort_closes_the_connection_and_keeps_others() -> None:
    with serving(random_model) as servers, connected(*servers) as engine:
        stuck = servers[0].arm(hang_after=0)
        with closing(engine.complete([request_of("stuck"), request_of("Q", max_tokens=3)])) as events:
            assert stuck.is_hanging.wait(10)
            events.abort(0)
            replies = collect_replies(events)
        servers[0].wait_for(lambda: [asked.is_left for asked in servers[0].completions()] == [True, False])
    assert [replies[SequenceId(at)].reason for at in (0, 1)] == ["cancelled", "length"]


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
    with serving(random_model) as servers, connected(*servers) as engine:
        scope = engine.cancel_scope()
        engine.cancel()
        with closing(engine.complete([request_of("Q")], scope)) as events:
            assert list(events) == []
        with closing(engine.complete([request_of("Q", max_n=2)])) as events:
            replies = collect_replies(event for event in events)
            engine.cancel()
            events.add_samples(0, 1)
            [late] = collect_replies(events).values()
        assert [reply.reason for reply in replies.values()] == ["stop"] and late.reason == "cancelled"
        assert len(servers[0].completions()) == 1
