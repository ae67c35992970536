"""vLLM and SGLang beside llama-server: the same replies from all, what each is asked, and how they refuse and fail."""

import json
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from asking import collect_replies
from model_servers import ModelServer
from remote_engines import (
    connected,
    events_of,
    local_replies,
    notices,
    remote_engine,
    replies_of,
    request_of,
    serving_kind,
    summaries,
    summary,
    unicode_model,
)
from scripted_backend import DEAD_END, END, MARK, Model, random_model, replies
from server_kinds import KINDS, OTHER_KINDS, LlamaServer, OtherServer, SglangServer, VllmServer

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import NoticeEvent, RefusedEvent
from cerebrum_cli.core.sampling import TokenBias
from cerebrum_cli.servers.description import KINDS as SERVER_KINDS
from cerebrum_cli.servers.endpoint import ServerInfo
from cerebrum_cli.servers.kind import ServerKind

LLAMA, VLLM, SGLANG = (SERVER_KINDS[owner] for owner in ("llamacpp", "vllm", "sglang"))

every_kind = pytest.mark.parametrize("kind", KINDS)
other_kinds = pytest.mark.parametrize("kind", OTHER_KINDS)  # than llama-server
both_kinds = pytest.mark.parametrize("kind", [VllmServer, SglangServer])

# The same replies.


@pytest.mark.parametrize("kind", [LlamaServer, *OTHER_KINDS])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [random_model, unicode_model])
def test_kinds_generate_the_local_tokens_and_texts(kind: type[ModelServer], stream: bool, model: Model) -> None:
    stops = ((), ("aé", "cab"), ("🙂 ", "日"), ("é日a", "b"))
    requests = [
        request_of(f"Q{at}", seed=at, stream=stream, temperature=0.7, stop=stops[at % 4], logprobs=not stream)
        for at in range(12)
    ]
    with serving_kind(kind, model, 2) as servers, connected(*servers) as engine:
        remote = replies_of(engine, *requests)
    local = local_replies(model, *requests)
    assert [summary(reply) for _, reply in sorted(remote.items())] == list(map(summary, local.values()))
    # llama-server leaves out ids within characters.
    has_ids = not (kind is LlamaServer and model is unicode_model)
    assert all(reply.finish.has_all_tokens for reply in remote.values() if reply.finish) is has_ids
    assert not has_ids or summaries(remote) == summaries(local)


@every_kind
def test_kinds_generate_samples_of_a_prompt_together(kind: type[ModelServer]) -> None:
    request = request_of("Q", n=4, max_n=7, seed=3, temperature=0.7)
    with serving_kind(kind, unicode_model, 2) as servers, connected(*servers) as engine:
        with closing(engine.complete([request])) as events:
            events.add_samples(0, 3)
            assert len(collect_replies(event for event in events if not isinstance(event, NoticeEvent))) == 7
        bodies = [asked.body for server in servers for asked in server.completions()]
    asked = sorted((body["seed"], body.get("n_cmpl") or body["n"]) for body in bodies if "seed" in body)
    assert asked == ([] if kind is SglangServer else [(3, 4), (7, 3)]) and len(bodies) == (len(asked) or 7)


@every_kind
@pytest.mark.parametrize("stream", [False, True])
def test_kinds_show_the_special_tokens_that_local_replies_show(kind: type[ModelServer], stream: bool) -> None:
    model = replies({"Q": [MARK, 97, MARK, 98]})
    requests = [
        request_of("Q", stream=stream, is_visible=visible.__contains__) for visible in (frozenset({MARK}), frozenset())
    ]
    with serving_kind(kind, model) as servers, connected(*servers) as engine:
        remote = replies_of(engine, *requests)
    assert [reply.text for reply in remote.values()] == ["<mark>a<mark>b", "ab"]
    assert [reply.ids for reply in remote.values()] == [[MARK, 97, MARK, 98]] * 2


@other_kinds
@pytest.mark.parametrize("stream", [False, True])
def test_kinds_must_send_token_ids(kind: type[OtherServer], stream: bool) -> None:
    with serving_kind(kind, unicode_model) as [server], connected(server) as engine:
        server.hides_ids = True
        with pytest.raises(EndpointError, match="does not send token ids"):
            events_of(engine, request_of("Q", stream=stream))


@both_kinds
def test_kinds_adapter_has_the_context_of_its_base(kind: type[OtherServer]) -> None:
    with serving_kind(kind, random_model) as [server]:
        base = server.listed("tiny.gguf")
        adapter = {**base, "id": "sql", "root": "/srv/sql-lora", "parent": base["id"], "max_model_len": None}
        server.arm(path="/v1/models", body=json.dumps({"object": "list", "data": [base, adapter]}).encode())
        with connected(server, served_model="sql") as engine:
            assert engine.context_size == server.context_size
            assert engine.builds[0]["model"] == "sql-lora on tiny.gguf"
            replies_of(engine, request_of("Q"))
        body = server.completions()[0].body
    assert (body.get("model") or body["lora_path"]) == "sql"


# What they are asked, and what they sample otherwise.


PENALTIES: dict[str, Any] = {"presence_penalty": 0.5, "frequency_penalty": -0.5}
TRUNCATIONS: dict[str, Any] = {"top_k": 5, "top_p": 0.9, "min_p": 0.1}
BIASES = (TokenBias(97, -1.5), TokenBias(98, 100.0))
VALUES: dict[str, Any] = {"temperature": 0.5, **TRUNCATIONS, **PENALTIES}
OTHERS: dict[str, Any] = {"stop": ("x",), "ignore_eos": True, "logprobs": True, "grammar": "root", "max_tokens": None}
EVERY_FIELD = request_of("Q", n=2, seed=7, repeat_penalty=1.1, logit_bias=BIASES, **VALUES, **OTHERS)
OF_OTHER_KINDS = {
    **VALUES,
    "repetition_penalty": 1.1,
    "logit_bias": {"97": -1.5, "98": 100.0},
    "skip_special_tokens": False,
    "ignore_eos": True,
    "stop": ["x"],
    "stop_token_ids": [],
}


def info_of(kind: ServerKind, *, has_seeds: bool = True) -> ServerInfo:
    """A server with a context of 100 tokens."""
    return ServerInfo(
        kind.name, "1", "tiny.gguf", "tiny.gguf", 100, "-c", 4, 4, 4, has_seeds=has_seeds, end_tokens=(END,)
    )


def body_of(kind: ServerKind, *request: Any) -> Any:
    """The body of a request, as a server reads it."""
    return json.loads(json.dumps(kind.completion_body(*request)))


def test_kinds_vllm_is_sent_every_field() -> None:
    assert body_of(VLLM, EVERY_FIELD, info_of(VLLM), 7, 2) == {
        **OF_OTHER_KINDS,
        "model": "tiny.gguf",
        "prompt": [81],
        "max_tokens": 99,
        "n": 2,
        "seed": 7,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": 0,
        "structured_outputs": {"grammar": "root"},
    }
    plain = body_of(VLLM, request_of("Q", top_k=0, top_p=0.0, stream=True), info_of(VLLM), 7, 1)
    assert (plain["top_k"], plain["top_p"], plain["max_tokens"], plain["stop_token_ids"]) == (0, 1e-6, 40, [END])
    assert not plain.keys() & {"logit_bias", "logprobs", "structured_outputs"}


@pytest.mark.parametrize("has_seeds", [True, False])
def test_kinds_sglang_is_sent_every_field(has_seeds: bool) -> None:
    assert body_of(SGLANG, EVERY_FIELD, info_of(SGLANG, has_seeds=has_seeds), 7, 1) == {
        "input_ids": [81],
        "stream": True,
        "return_logprob": True,
        "sampling_params": {
            **OF_OTHER_KINDS,
            "max_new_tokens": None,
            "ebnf": "root",
            **({"sampling_seed": 7} if has_seeds else {}),
        },
    }
    plain = body_of(SGLANG, request_of("Q", top_k=0, top_p=0.0), info_of(SGLANG), 7, 1)["sampling_params"]
    assert (plain["top_k"], plain["top_p"], plain["max_new_tokens"], plain["stop_token_ids"]) == (-1, 1e-6, 40, [END])


def test_kinds_llama_server_is_sent_every_sampler() -> None:
    params: dict[str, Any] = {
        **PENALTIES,
        **TRUNCATIONS,
        "repeat_penalty": 1.1,
        "top_n_sigma": 1.5,
        "typical_p": 0.9,
        "dry_multiplier": 0.8,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 50,
    }
    drawn = request_of("Q", temperature=1.0, dry_sequence_breaker=("x",), logit_bias=BIASES, stop=("y",), **params)
    body = body_of(LLAMA, drawn, info_of(LLAMA), 7, 2)
    assert {key: body[key] for key in params} == params
    assert (body["n_cmpl"], body["seed"], body["n_predict"], body["stop"]) == (2, 7, 40, ["y"])
    assert (body["dry_sequence_breakers"], body["logit_bias"]) == (["x"], [[97, -1.5], [98, 100.0]])
    greedy = request_of("Q", dry_sequence_breaker=("none",), **params | {"dry_penalty_last_n": 10**9})
    body = body_of(LLAMA, greedy, info_of(LLAMA), 7, 1)
    assert (body["dry_sequence_breakers"], body["dry_penalty_last_n"], body["logit_bias"]) == ([""], 100, [])
    assert body["typical_p"] == 1.0  # it might drop the likeliest token, which temperature 0 stands for


@pytest.mark.parametrize("kind", [VLLM, SGLANG])
def test_kinds_ignore_what_only_llama_cpp_has(kind: ServerKind) -> None:
    params = {**PENALTIES, "repeat_penalty": 1.1, "dry_multiplier": 0.8, "top_n_sigma": 1.5, "typical_p": 0.9}
    request = request_of("Q", temperature=0.7, **params)
    assert sorted(kind.ignored(request, info_of(kind))) == ["dry_multiplier", "top_n_sigma", "typical_p"]
    assert kind.ignored(request_of("Q", temperature=0.7), info_of(kind)) == []
    assert kind.ignored(request_of("Q", temperature=1.0), info_of(kind, has_seeds=False)) == ["seed"]
    assert LLAMA.ignored(request, info_of(LLAMA)) == []


@both_kinds
def test_kinds_are_noted_once_for_what_differs(kind: type[OtherServer]) -> None:
    requests = [request_of(f"Q{at}", dry_multiplier=0.8) for at in range(12)]
    with serving_kind(kind, random_model, 2) as servers, closing(remote_engine(*servers)) as engine:
        assert notices(list(engine.load())) == []
        assert len(notices(events_of(engine, *requests))) == 1
        assert notices(events_of(engine, *requests)) == []


@pytest.mark.parametrize("stream", [False, True])
def test_kinds_reply_that_ignores_the_grammar_is_refused(stream: bool) -> None:
    requests = [request_of(f"Q{at}", grammar=DEAD_END, stream=stream) for at in range(6)]
    with serving_kind(VllmServer, random_model) as [server], connected(server) as engine:
        events = events_of(engine, *requests)
    local = local_replies(
        random_model, *(replace(request, ask=replace(request.ask, grammar=None)) for request in requests)
    )
    refused = {event.sequence: event.error for event in events if isinstance(event, RefusedEvent)}
    assert list(refused) and sorted(refused) == [id for id, reply in sorted(local.items()) if len(reply.ids) > 12]
    assert all("does not match the grammar" in error.message and error.hint for error in refused.values())
