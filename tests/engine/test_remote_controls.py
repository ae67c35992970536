"""Controls of replies that servers and nodes generate: the same replies as here, and what is asked of a server."""

from __future__ import annotations

from typing import Any

import pytest
from concluding import AFTER, BRIDGE, concluding, speaker, thinker
from model_servers import ModelServer
from remote_engines import (
    connected,
    events_of,
    local_replies,
    notices,
    outcome,
    replies_of,
    request_of,
    serving,
    serving_kind,
    summaries,
)
from scripted_backend import Model
from scripted_cluster import Nodes, clustered
from server_kinds import LlamaServer, VllmServer

from cerebrum_cli.engine.loop_check import MIN_TOKENS, LoopCheck
from cerebrum_cli.engine.sequence import Request

CONTROLS = (LoopCheck, concluding())
UNLIMITED: dict[str, Any] = {"max_tokens": None, "temperature": 1.0, "controls": CONTROLS}
MODELS = {
    "concluded": thinker("I see {seed}. "),
    "long sentence": thinker("and so on {seed} "),
    "answered": speaker(lambda seed: f"The answer is {seed}. " + "".join(f"Then {n}. " for n in range(12))),
    "short": speaker(lambda seed: f"It is {seed}"),
    "answered in time": speaker(lambda seed: f"Let me see now {seed}, the answer is {seed}. So there."),
    "loop": speaker(lambda seed: "over " * 60),
}
every_model = pytest.mark.parametrize("name", MODELS)


def requests(**more: Any) -> list[Request]:
    values = UNLIMITED | more
    limited = {**values, "max_tokens": 45}
    if values.get("stream"):
        return [request_of("go", seed=3, **values), request_of("go", seed=3, **limited)]
    return [request_of("go", n=3, max_n=3, seed=3, **values), request_of("go", seed=7, **limited)]


def local(model: Model, *given: Request) -> dict[Any, tuple[Any, ...]]:
    return summaries(local_replies(model, *given, context_size=300))


@every_model
@pytest.mark.parametrize(("kind", "stream"), [(LlamaServer, False), (LlamaServer, True), (VllmServer, True)])
def test_remote_controls_act_as_here(kind: type[ModelServer], name: str, stream: bool) -> None:
    given = requests(stream=stream)
    with serving_kind(kind, MODELS[name], context_size=300) as servers, connected(*servers) as engine:
        assert summaries(replies_of(engine, *given)) == local(MODELS[name], *given)


@every_model
def test_cluster_controls_act_as_here(name: str) -> None:
    given, nodes = requests(), Nodes(MODELS[name], context_size=300)
    with clustered(nodes, nodes.actor(), nodes.actor()) as engine:
        assert summaries(replies_of(engine, *given)) == local(MODELS[name], *given)


def test_remote_conclusion_asks_for_no_more_than_it_needs() -> None:
    request = request_of("go", n=3, max_n=3, seed=3, **UNLIMITED)
    model = MODELS["concluded"]
    with serving(model, context_size=300) as [server], connected(server) as engine:
        replies = replies_of(engine, request)
        bodies = [asked.body for asked in server.completions()]
    assert [(body["n_cmpl"], body["n_predict"], len(body["prompt"])) for body in bodies[:1]] == [(3, AFTER + 16, 2)]
    prompt_length = len("goI see 3. I see 3. I see 3." + BRIDGE)
    later = sorted((body["seed"], body["n_cmpl"], body["n_predict"], len(body["prompt"])) for body in bodies[1:])
    assert later == [(seed, 1, 32, prompt_length) for seed in (3, 4, 5)]
    assert next(iter(replies.values())).text == f"I see 3. I see 3. I see 3.{BRIDGE} 3."


def test_remote_stream_is_left_at_a_repetition() -> None:
    request = request_of("go", stream=True, **UNLIMITED | {"controls": (LoopCheck,)})
    with serving(MODELS["loop"], context_size=300) as [server], connected(server) as engine:
        server.arm(hang_after=MIN_TOKENS + 10)
        [reply] = replies_of(engine, request).values()
        server.wait_for(lambda: server.completions()[0].is_left)
    assert (reply.reason, len(reply.ids)) == ("repetition", MIN_TOKENS)


def test_remote_conclusion_without_all_ids_goes_by_the_text() -> None:
    request = request_of("go", stream=True, seed=3, **UNLIMITED)
    model = thinker("Ich möchte {seed}. ")
    with serving(model, context_size=300) as servers, connected(*servers) as engine:
        events = events_of(engine, request)
    [(text, reason, *_)] = outcome(events).values()
    assert (text, reason) == (f"Ich möchte 3. Ich möchte 3.{BRIDGE} 3.", "stop")
    assert [notice for notice in notices(events) if "did not send all token ids" in notice]


def test_remote_conclusion_survives_the_loss_of_a_server() -> None:
    request = request_of("go", n=3, max_n=3, seed=3, **UNLIMITED)
    model = MODELS["concluded"]
    with serving(model, 2, context_size=300) as servers, connected(*servers) as engine:
        for server in servers:
            server.arm(let_through=1, reset_after=0)
        assert summaries(replies_of(engine, request)) == local(model, request)
