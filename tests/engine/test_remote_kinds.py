"""vLLM and SGLang beside llama-server: the same replies from all, and what each is asked."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from asking import collect_replies
from llama_server import LlamaServer
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
    unicode_model,
)
from scripted_backend import END, MARK, random_model, replies
from server_kinds import REQUESTS, STORY, every_kind, other_kinds
from sglang_server import SglangServer
from vllm_server import VllmServer

from cerebrum_cli.core.events import NoticeEvent, TokenEvent
from cerebrum_cli.core.sampling import TokenBias

# The same replies.


@other_kinds
@pytest.mark.parametrize("stream", [False, True])
def test_kinds_generate_the_local_tokens_and_texts(kind: type[ModelServer], stream: bool) -> None:
    stops = ((), ("aé",), ("🙂 ", "日"), ("é日a",))
    requests = [
        request_of(f"Q{at}", seed=at, stream=stream, temperature=0.7, stop=stops[at % 4], logprobs=not stream)
        for at in range(12)
    ]
    with serving_kind(kind, unicode_model, 2) as servers, connected(*servers) as engine:
        remote = replies_of(engine, *requests)
    assert summaries(remote) == summaries(local_replies(unicode_model, *requests))
    assert all(reply.finish and reply.finish.has_all_tokens for reply in remote.values())


@every_kind
def test_kinds_generate_samples_with_the_seeds_of_local_ones(kind: type[ModelServer]) -> None:
    request = request_of("Q", n=4, max_n=7, seed=3, temperature=0.7)
    with serving_kind(kind, unicode_model, 2) as servers, connected(*servers) as engine:
        with closing(engine.complete([request])) as events:
            events.add_samples(0, 3)
            remote = collect_replies(event for event in events if not isinstance(event, NoticeEvent))
        asked = [len(server.completions()) for server in servers]
    assert sorted(asked) == ([0, 7] if kind is SglangServer else [0, 2])
    assert summaries(remote) == summaries(local_replies(unicode_model, request_of("Q", n=7, seed=3)))


@every_kind
@pytest.mark.parametrize("has_logprobs", [True, False])
def test_kinds_give_the_logprobs_of_samples_or_none(kind: type[ModelServer], has_logprobs: bool) -> None:
    request = request_of("Q", n=3, logprobs=True, temperature=0.7)
    with serving_kind(kind, random_model) as servers, connected(*servers) as engine:
        servers[0].has_logprobs = has_logprobs
        found = [event for event in events_of(engine, request) if isinstance(event, TokenEvent)]
    assert {event.sequence.sample for event in found} == {0, 1, 2}
    assert all(event.logprob == (-event.token / 1000 if has_logprobs else None) for event in found if event.token)


@every_kind
@pytest.mark.parametrize("stream", [False, True])
def test_kinds_show_the_special_tokens_that_local_replies_show(kind: type[ModelServer], stream: bool) -> None:
    model = replies({"Q": [MARK, 97, MARK, 98]})
    requests = [request_of("Q", stream=stream, visible_tokens=visible) for visible in (frozenset({MARK}), frozenset())]
    with serving_kind(kind, model) as servers, connected(*servers) as engine:
        remote = replies_of(engine, *requests)
    assert [reply.text for reply in remote.values()] == ["<mark>a<mark>b", "ab"]
    assert [reply.ids for reply in remote.values()] == [[MARK, 97, MARK, 98]] * 2


@every_kind
@pytest.mark.parametrize(("limit", "reason", "tokens"), [(None, "context", 99), (500, "context", 99), (7, "length", 7)])
def test_kinds_end_replies_at_the_limit_or_the_context(
    kind: type[ModelServer], limit: int | None, reason: str, tokens: int
) -> None:
    requests = [request_of("Q", max_tokens=limit, stream=stream) for stream in (False, True)]
    with serving_kind(kind, STORY) as servers, connected(*servers) as engine:
        for reply in replies_of(engine, *requests).values():
            assert (reply.reason, len(reply.ids)) == (reason, tokens)
            assert reply.finish and reply.finish.has_all_tokens


@other_kinds
def test_kinds_reply_that_ran_past_its_end_ends_there(kind: type[ModelServer]) -> None:
    def late(_: int, reply: dict[str, Any]) -> dict[str, Any]:
        """The reply of a server to which the vocabulary's end token is an ordinary one."""
        if "choices" in reply:
            [choice] = reply["choices"]
            choice = {**choice, "finish_reason": "length", "token_ids": [*choice["token_ids"], 97, 98]}
            return {**reply, "choices": [choice], "usage": {**reply["usage"], "completion_tokens": 99}}
        meta = {**reply["meta_info"], "finish_reason": {"type": "length", "length": 99}, "completion_tokens": 99}
        return {**reply, "output_ids": [*reply["output_ids"], 97, 98], "meta_info": meta}

    request = request_of("Q")
    with serving_kind(kind, random_model) as servers, connected(*servers) as engine:
        servers[0].arm(edit=late)
        remote = replies_of(engine, request)
    assert summaries(remote) == summaries(local_replies(random_model, request))
    assert all(reply.reason == "stop" and reply.finish and reply.finish.has_all_tokens for reply in remote.values())


# What they are asked.


EVERY_FIELD: dict[str, Any] = {
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.1,
    "repeat_penalty": 1.1,
    "stop": ("x",),
    "seed": 7,
    "logprobs": True,
    "ignore_eos": True,
    "grammar": "root",
    "max_tokens": None,
}
COMMON = {"temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "skip_special_tokens": False}
OFF = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True, "stop": ["x"]}


def test_kinds_vllm_is_sent_every_field() -> None:
    request = request_of("Q", n=2, **EVERY_FIELD)
    with serving_kind(VllmServer, STORY) as [server], connected(server) as engine:
        events_of(engine, request, request_of("Q", top_k=0, top_p=0.0))
        first, second = sorted((asked.body for asked in server.completions()), key=lambda body: -body["n"])
    assert first == {
        **COMMON,
        **OFF,
        "model": "tiny.gguf",
        "prompt": [81],
        "max_tokens": 99,
        "n": 2,
        "seed": 7,
        "top_k": 5,
        "min_tokens": 0,
        "stop_token_ids": [],
        "return_token_ids": True,
        "stream": False,
        "logprobs": 0,
        "structured_outputs": {"grammar": "root"},
    }
    assert (second["top_k"], second["top_p"], second["max_tokens"]) == (0, 1e-6, 40)
    assert second["stop_token_ids"] == [END]


@pytest.mark.parametrize("is_deterministic", [True, False])
def test_kinds_sglang_is_sent_every_field(is_deterministic: bool) -> None:
    request = request_of("Q", **EVERY_FIELD)
    with serving_kind(SglangServer, STORY) as [server]:
        server.is_deterministic = is_deterministic
        with connected(server) as engine:
            events_of(engine, request)
            events_of(engine, request_of("Q", top_k=0, top_p=0.0))
            first, second = (asked.body for asked in server.completions())
    assert first == {
        "input_ids": [81],
        "stream": False,
        "return_logprob": True,
        "sampling_params": {
            **COMMON,
            **OFF,
            "max_new_tokens": None,
            "n": 1,
            "top_k": 5,
            "stop_token_ids": [],
            "min_new_tokens": 0,
            "ebnf": "root",
            **({"sampling_seed": 7} if is_deterministic else {}),
        },
    }
    sampling = second["sampling_params"]
    assert (sampling["top_k"], sampling["top_p"], sampling["max_new_tokens"]) == (-1, 1e-6, 40)
    assert sampling["stop_token_ids"] == [END]


@other_kinds
def test_kinds_are_sent_penalties_and_logit_biases(kind: type[ModelServer]) -> None:
    biases = (TokenBias(97, -1.5), TokenBias(98, 100.0))
    with serving_kind(kind, STORY) as [server], connected(server) as engine:
        events_of(engine, request_of("Q", presence_penalty=0.5, frequency_penalty=-0.5, logit_bias=biases))
        [asked] = server.completions()
    sent = asked.body.get("sampling_params", asked.body)
    assert (sent["presence_penalty"], sent["frequency_penalty"]) == (0.5, -0.5)
    assert sent["logit_bias"] == {"97": -1.5, "98": 100.0}


def test_kinds_llama_server_is_sent_every_sampler() -> None:
    params: dict[str, Any] = {
        "top_n_sigma": 1.5,
        "typical_p": 0.9,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "dry_multiplier": 0.8,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 50,
    }
    biases = (TokenBias(97, -1.5), TokenBias(98, 100.0))
    one = request_of("Q", temperature=1.0, dry_sequence_breaker=("x",), logit_bias=biases, **params)
    two = request_of("Q", dry_sequence_breaker=("none",), **params | {"dry_penalty_last_n": 10**9})
    with serving_kind(LlamaServer, STORY) as [server], connected(server) as engine:
        events_of(engine, one, two)
        first, second = sorted((asked.body for asked in server.completions()), key=lambda body: -body["temperature"])
    assert {key: first[key] for key in params} == params
    assert (first["dry_sequence_breakers"], first["logit_bias"]) == (["x"], [[97, -1.5], [98, 100.0]])
    assert (second["dry_sequence_breakers"], second["dry_penalty_last_n"], second["logit_bias"]) == ([""], 100, [])
    assert second["typical_p"] == 1.0  # it might drop the likeliest token, which temperature 0 stands for


# Notices.


@every_kind
def test_kinds_with_other_weights_are_noted_once(kind: type[ModelServer]) -> None:
    with serving_kind(kind, random_model, 2) as servers, closing(remote_engine(*servers)) as engine:
        found = notices(list(engine.load()))
        events_of(engine, *REQUESTS)
    names = {VllmServer: ["vLLM"], SglangServer: ["SGLang"]}.get(kind, [])
    assert found == [f"{name} serves the model's original weights, not those of the local file" for name in names]


def test_kinds_sglang_with_a_gguf_file_has_no_other_weights() -> None:
    with serving_kind(SglangServer, random_model) as [server]:
        server.load_format = "gguf"
        with closing(remote_engine(server)) as engine:
            assert notices(list(engine.load())) == []


@other_kinds
def test_kinds_note_what_they_sample_otherwise_once(kind: type[ModelServer]) -> None:
    penalties: dict[str, Any] = {"repeat_penalty": 1.2, "presence_penalty": 0.5, "dry_multiplier": 0.8}
    lacking: dict[str, Any] = {"top_n_sigma": 1.5, "typical_p": 0.9}
    requests = [request_of(f"Q{at}", temperature=0.7, **penalties, **lacking) for at in range(3)]
    with serving_kind(kind, random_model) as [server]:
        if isinstance(server, SglangServer):
            server.is_deterministic = False
        with connected(server) as engine:
            found = notices(events_of(engine, *requests))
    name = "vLLM" if kind is VllmServer else "SGLang"
    expected = [
        f"{name} applies the temperature before top-k, top-p and min-p, llama.cpp after them",
        f"{name}'s repeat penalty counts the whole text, not the last 64 tokens",
        f"{name}'s presence and frequency penalties count the reply, not the last 64 tokens",
        *(
            f"{name} does not support {each}: it is ignored"
            for each in ("--dry-multiplier", "--top-n-sigma", "--typical-p")
        ),
        *(["this server ignores seeds, so samples are not reproducible"] if name == "SGLang" else []),
    ]
    assert sorted(found) == sorted(expected)


def test_kinds_llama_server_notes_samplers_that_it_cannot_combine() -> None:
    both: dict[str, Any] = {"temperature": 0.7, "top_n_sigma": 1.5, "typical_p": 0.9}
    with serving_kind(LlamaServer, random_model) as [server], connected(server) as engine:
        assert notices(events_of(engine, request_of("Q", **{**both, "temperature": 0.0}))) == []
        [problem] = notices(events_of(engine, request_of("Q", **both)))
    assert problem == "llama-server does not compute --typical-p correctly after --top-n-sigma"
