"""Generation on the nodes of a cluster: the same events as here, also when nodes are lost."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
from remote_engines import (
    HASTY,
    events_of,
    local_replies,
    notices,
    outcome,
    replies_of,
    request_of,
    summaries,
    unicode_model,
)
from scripted_backend import DEAD_END, endless, random_model
from scripted_cluster import Nodes, clustered
from waiting import wait_until

from cerebrum_cli.core.errors import EndpointError, EngineError, GrammarError, ModelNotFound
from cerebrum_cli.core.events import FinishEvent, NoticeEvent, RefusedEvent, TokenEvent
from cerebrum_cli.engine.cluster.cluster_engine import NodeInfo, Worker
from cerebrum_cli.engine.sequence import Request

REQUESTS = tuple(request_of(f"Q{at}", seed=100 * at, temperature=0.8) for at in range(20))
STORY = endless({"Q": "once upon a time "})


def test_cluster_replies_equal_local_ones() -> None:
    requests = [
        request_of(f"Q{at}", n=at % 3 + 1, seed=at, temperature=0.7, logprobs=at % 2 == 0, stop=("aé", "🙂 ")[: at % 3])
        for at in range(12)
    ]
    nodes = Nodes(unicode_model)
    with clustered(nodes, nodes.actor(), nodes.actor()) as engine:
        remote = replies_of(engine, *requests)
    local = local_replies(unicode_model, *requests)
    assert summaries(remote) == summaries(local)
    assert any(reply.finish and reply.finish.by_stop_string for reply in remote.values())


def test_cluster_requests_of_a_lost_node_are_answered_elsewhere() -> None:
    nodes = Nodes(unicode_model)
    lost, other = nodes.actor(hangs=True, restarts=False), nodes.actor()
    with clustered(nodes, lost, other) as engine, closing(engine.complete(REQUESTS)) as replies:
        wait_until(lambda: len(lost.asked) == nodes.slots + 2)
        lost.kill()
        events = list(replies)
    assert outcome(events) == summaries(local_replies(unicode_model, *REQUESTS))
    assert "is unavailable: its process has ended" in notices(events)[0]


def test_cluster_node_that_starts_again_is_used_again() -> None:
    nodes = Nodes(unicode_model)
    actor = nodes.actor(hangs=True)
    with clustered(nodes, actor) as engine, closing(engine.complete(REQUESTS)) as replies:
        wait_until(lambda: bool(actor.asked))
        actor.hangs = False
        actor.kill()
        events = list(replies)
    assert actor.starts == 2
    assert outcome(events) == summaries(local_replies(unicode_model, *REQUESTS))


def test_cluster_request_that_kills_three_workers_is_the_only_one_refused() -> None:
    def is_bad(request: Request) -> bool:
        return bytes(request.prompt_tokens) == b"Q3"

    nodes = Nodes(unicode_model)
    with clustered(nodes, nodes.actor(dies_of=is_bad), nodes.actor(dies_of=is_bad)) as engine:
        events = events_of(engine, *REQUESTS)
    [refused] = [event for event in events if isinstance(event, RefusedEvent)]
    assert refused.sequence.request == 3
    assert refused.error.message.startswith("3 nodes failed on this request; the last, node ")
    local = summaries(local_replies(unicode_model, *REQUESTS))
    assert outcome(events) == {id: reply for id, reply in local.items() if id.request != 3}


@pytest.mark.slow
def test_cluster_all_nodes_gone_ends_with_an_error() -> None:
    nodes = Nodes(unicode_model)
    actors = [nodes.actor(hangs=True, restarts=False) for _ in range(2)]
    with clustered(nodes, *actors, timeouts=HASTY) as engine, closing(engine.complete(REQUESTS)) as replies:
        wait_until(lambda: all(actor.asked for actor in actors))
        for actor in actors:
            actor.kill()
        with pytest.raises(
            EndpointError, match=r"no node answers \(node 1 .*: its process has ended; node 2 "
        ) as raised:
            list(replies)
        assert raised.value.hint == "check the cluster with ray status, then run the same command again"


def test_cluster_refused_request_is_not_asked_again() -> None:
    nodes = Nodes(STORY)
    actor = nodes.actor()
    with clustered(nodes, actor) as engine:
        events = events_of(engine, request_of("Q", grammar=DEAD_END, max_tokens=30), request_of("Q"))
    [refused] = [event for event in events if isinstance(event, RefusedEvent)]
    assert isinstance(refused.error, GrammarError) and refused.sequence.request == 0
    assert actor.asked == ["Q", "Q"] and len(outcome(events)) == 1


def test_cluster_advice_fits_nodes() -> None:
    nodes = Nodes(STORY, context_size=50)
    with clustered(nodes, nodes.actor()) as engine:
        assert engine.larger_context == "raise --ctx"
        [refused] = [e for e in events_of(engine, request_of("Q" * 60)) if isinstance(e, RefusedEvent)]
        with pytest.raises(EngineError) as raised:
            engine.score([])
    assert (refused.error.hint, raised.value.hint) == ("shorten it, or raise --ctx", "omit --ray")


def test_cluster_cancel_stops_the_workers() -> None:
    nodes = Nodes(STORY, slots=2, context_size=100_000)
    actors = [nodes.actor(), nodes.actor()]
    with clustered(nodes, *actors) as engine:
        with closing(engine.complete([request_of("Q", max_tokens=None, n=2) for _ in range(2)])) as events:
            wait_until(lambda: all(actor.asked for actor in actors))
            engine.cancel()
            finishes = [event for event in events if isinstance(event, FinishEvent)]
        assert [event.reason for event in finishes] == ["cancelled"] * 4
        wait_until(lambda: all(actor.cancelled for actor in actors))
        wait_until(lambda: outcome(events_of(engine, request_of("Q"))) != {})


def test_cluster_without_the_model_on_a_node_is_an_error() -> None:
    nodes = Nodes(random_model)
    error = ModelNotFound("starter is not installed on this node", "cerebrum pull starter there")
    with clustered(nodes, nodes.actor(), nodes.actor(error=error), loads=False) as engine:
        with pytest.raises(EndpointError) as raised:
            list(engine.load())
        with pytest.raises(EngineError):
            engine.complete(REQUESTS)
    assert (raised.value.message, raised.value.hint) == (f"node 2: {error.message}", error.hint)


def test_cluster_node_of_another_version_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(worker: Worker) -> NodeInfo | None:
        info = original(worker)
        return replace(info, version="99") if isinstance(info, NodeInfo) else None

    original = Worker.describe
    monkeypatch.setattr(Worker, "describe", describe)
    nodes = Nodes(random_model)
    with clustered(nodes, nodes.actor(), loads=False) as engine, pytest.raises(EndpointError, match="has version 99"):
        list(engine.load())


def test_cluster_nodes_that_differ_are_reported_and_recorded() -> None:
    nodes = Nodes(random_model)
    with clustered(nodes, nodes.actor("old"), nodes.actor("new"), nodes.actor("old"), loads=False) as engine:
        [notice] = [event for event in engine.load() if isinstance(event, NoticeEvent)]
        assert engine.builds == [
            {"kind": "ray", "build": "1", "processor": "old"},
            {"kind": "ray", "build": "1", "processor": "new"},
        ]
        assert any(isinstance(event, TokenEvent) for event in events_of(engine, request_of("Q")))
    assert notice.message.startswith("the nodes differ, so answers may depend on the node (node 1 (")
