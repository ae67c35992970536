"""What every engine does alike: on a scripted backend, on llama.cpp, and on servers that stand in for real ones."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from asking import Reply, collect_replies, running_engine
from llama_engines import open_engine
from model_servers import ModelServer
from remote_engines import connected, replies_of, serving_kind
from scripted_backend import ScriptedBackend
from server_kinds import LlamaServer, VllmServer
from thinkers import CountingControl

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import FinishEvent, NoticeEvent, PromptEvent, SequenceId, TokenEvent
from cerebrum_cli.core.sampling import SEEDS, SamplingParams
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.requests import Force, Intervention, Request
from cerebrum_cli.library.installed import NANO

SERVERS: dict[str, type[ModelServer]] = {"llama-server": LlamaServer, "vllm": VllmServer}


def drawn(held: tuple[int, ...], seed: int) -> int:
    return b"abc"[crc32(repr((held, seed)).encode()) % 3]


@pytest.fixture(scope="module", params=["scripted", "llama.cpp", *SERVERS])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "scripted":
        with running_engine(ScriptedBackend(drawn, slots=4)) as engine:
            yield engine
    elif request.param == "llama.cpp":
        with open_engine(NANO) as engine:
            yield engine
    else:
        with serving_kind(SERVERS[request.param], drawn) as servers, connected(*servers) as engine:
            yield engine


@pytest.fixture(params=["whole", "streamed"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "streamed")


def request_to(engine: Engine, text: str = "12+30=", *, controls: Any = (), **more: Any) -> Request:
    """A request for 12 tokens after a text."""
    asked = {name: more.pop(name) for name in ("n", "max_n", "stream") if name in more}
    params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0, "seed": 7, **more})
    prompt = tuple(engine.vocabulary.tokenize((Text(text),)))
    return Request(prompt, params, Ask(ignore_eos=True, **asked), controls=controls)


def reply_to(engine: Engine, request: Request) -> Reply:
    [reply] = replies_of(engine, request).values()
    return reply


def test_conformance_reply_has_its_tokens_text_and_counts(engine: Engine, stream: bool) -> None:
    request = request_to(engine, stream=stream)
    with closing(engine.complete([request])) as completions:
        events = [event for event in completions if not isinstance(event, NoticeEvent)]
    first, *tokens, finish = events
    assert isinstance(first, PromptEvent) and first.total == len(request.prompt_tokens)
    assert isinstance(finish, FinishEvent) and finish.reason == "length"
    assert (finish.prompt_tokens, finish.completion_tokens) == (len(request.prompt_tokens), 12)
    assert finish.seed == 7 and finish.has_all_tokens and finish.timings.decode_s >= 0
    ids = [token for event in tokens if isinstance(event, TokenEvent) for token in event.tokens]
    text = "".join(event.text for event in tokens if isinstance(event, TokenEvent))
    assert b"".join(map(engine.vocabulary.piece, ids)).decode() == text and len(ids) == 12
    assert reply_to(engine, request).ids == ids


@pytest.mark.parametrize("seeds", [(7, 8, 9, 10), (SEEDS - 1, 0, 1, 2)])
def test_conformance_samples_have_seeds_that_continue(engine: Engine, stream: bool, seeds: tuple[int, ...]) -> None:
    request = request_to(engine, n=2, max_n=4, temperature=1.0, seed=seeds[0], stream=stream)
    with closing(engine.complete([request])) as completions:
        completions.add_samples(0, 2)
        samples = collect_replies(event for event in completions if not isinstance(event, NoticeEvent))
    for number, seed in enumerate(seeds):
        sample = samples[SequenceId(0, number)]
        alone = replace(request, ask=Ask(ignore_eos=True), params=replace(request.params, seed=seed))
        assert (sample.seed, sample.ids) == (seed, reply_to(engine, alone).ids)


def test_conformance_continues_a_reply_with_the_same_tokens(engine: Engine, stream: bool) -> None:
    request = request_to(engine, stream=stream)
    ids = reply_to(engine, request).ids
    prompt, params = (*request.prompt_tokens, *ids[:5]), replace(request.params, max_tokens=7)
    assert reply_to(engine, replace(request, prompt_tokens=prompt, params=params)).ids == ids[5:]


def test_conformance_reply_ends_before_a_stop_string(engine: Engine, stream: bool) -> None:
    text = reply_to(engine, request_to(engine, stream=stream)).text
    stopped = reply_to(engine, request_to(engine, stream=stream, stop=(text[3:5],)))
    assert stopped.text == text[: text.index(text[3:5])] and stopped.reason == "stop"
    assert stopped.finish and stopped.finish.by_stop_string


@pytest.mark.parametrize("limit", [None, 12])
def test_conformance_reply_ends_with_the_context(engine: Engine, stream: bool, limit: int | None) -> None:
    prompt = request_to(engine).prompt_tokens
    prompt = (*prompt, *[prompt[-1]] * (engine.context_size - len(prompt) - 5))
    full = reply_to(engine, replace(request_to(engine, stream=stream, max_tokens=limit), prompt_tokens=prompt))
    assert (full.reason, len(full.ids)) == ("context", 5)


def after_four(intervention: Intervention) -> CountingControl:
    return CountingControl(lambda count: intervention if count == 4 else None)


def test_conformance_controls_end_a_reply_or_force_tokens(engine: Engine, stream: bool) -> None:
    ids = reply_to(engine, request_to(engine)).ids
    ending = request_to(engine, stream=stream, controls=(lambda: after_four("repetition"),))
    ended = reply_to(engine, ending)
    assert (ended.reason, ended.ids) == ("repetition", ids[:4])
    tokens = tuple(engine.vocabulary.tokenize((Text("12"),)))[-2:]
    forced = reply_to(engine, request_to(engine, stream=stream, controls=(lambda: after_four(Force(tokens)),)))
    assert (forced.reason, forced.ids[: 4 + len(tokens)]) == ("length", [*ids[:4], *tokens])
    assert forced.finish and [part.length for part in forced.finish.forced] == [len(tokens)]


def test_conformance_answers_many_requests_each_once(engine: Engine) -> None:
    requests = [request_to(engine, f"{at}+1=", n=2, max_n=2, temperature=1.0) for at in range(12)]
    together = replies_of(engine, *requests)
    assert sorted(together) == [SequenceId(index, sample) for index in range(12) for sample in range(2)]
    assert all(reply.reason == "length" and len(reply.ids) == 12 for reply in together.values())


def test_conformance_aborts_one_request_and_cancels_all(engine: Engine) -> None:
    endless = request_to(engine, max_tokens=40)
    with closing(engine.complete([endless, endless])) as completions:
        completions.abort(0)
        replies = collect_replies(event for event in completions if not isinstance(event, NoticeEvent))
    assert replies[SequenceId(0)].reason in ("cancelled", "length") and replies[SequenceId(1)].reason == "length"
    scope = engine.cancel_scope
    engine.cancel()
    with closing(engine.complete([endless], scope)) as completions:
        assert all(reply.reason == "cancelled" for reply in collect_replies(completions).values())
    with closing(engine.complete([endless])) as completions:
        next(completions)  # and left
    assert reply_to(engine, request_to(engine)).reason == "length"


def test_conformance_refuses_an_empty_prompt(engine: Engine) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        replies_of(engine, replace(request_to(engine), prompt_tokens=()))
