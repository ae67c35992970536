"""llama-server and vLLM, which take token ids: the same replies from both as from a model on this machine."""

from dataclasses import replace
from typing import Any

import pytest
from model_servers import ModelServer
from remote_engines import (
    connected,
    events_of,
    local_replies,
    replies_of,
    request_of,
    serving,
    serving_kind,
    summaries,
    summary,
    unicode_model,
)
from scripted_backend import DEAD_END, END, FIRST_WORD, MARK, Model, ScriptedBackend, random_model, replies
from server_kinds import KINDS, LlamaServer, VllmServer
from thinkers import ENDING, LIMIT, answering_late, budget, reply_around, speaker, thinking

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EndpointError, GrammarError
from cerebrum_cli.core.events import FinishEvent, RefusedEvent, SequenceId
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.kind import ReplyChunk
from cerebrum_cli.servers.token_replies import TokenSample

every_kind = pytest.mark.parametrize("kind", KINDS)
whole_and_streamed = pytest.mark.parametrize("stream", [False, True])


def local(model: Model, *given: Request) -> dict[Any, tuple[Any, ...]]:
    return summaries(local_replies(model, *given, context_size=300))


def assert_as_local(kind: type[ModelServer], model: Model, *given: Request) -> list[Any]:
    """Check that servers of a kind reply as a model here does; return what the first was asked."""
    with serving_kind(kind, model, context_size=300) as servers, connected(*servers) as engine:
        assert summaries(replies_of(engine, *given)) == local(model, *given)
        return servers[0].completions()


@every_kind
@whole_and_streamed
@pytest.mark.parametrize("model", [random_model, unicode_model])
def test_kinds_generate_the_local_tokens_and_texts(kind: type[ModelServer], stream: bool, model: Model) -> None:
    stops = ((), ("aé", "cab"), ("🙂 ", "日"), ("é日a", "b"))
    requests = [request_of(f"Q{at}", seed=at, stream=stream, temperature=0.7, stop=stops[at % 4]) for at in range(12)]
    with serving_kind(kind, model, 2) as servers, connected(*servers) as engine:
        remote = replies_of(engine, *requests)
    expected = local_replies(model, *requests)
    assert [summary(reply) for _, reply in sorted(remote.items())] == list(map(summary, expected.values()))
    # llama-server leaves out ids within characters.
    has_ids = not (kind is LlamaServer and model is unicode_model)
    assert all(reply.finish.has_all_tokens for reply in remote.values() if reply.finish) is has_ids
    assert not has_ids or summaries(remote) == summaries(expected)


def test_vote_larger_than_a_llama_server_takes_several_requests() -> None:
    request = request_of("Q", n=7)
    with serving(unicode_model, slots=3) as servers, connected(*servers) as engine:
        remote = replies_of(engine, request)
        assert [asked.body["n_cmpl"] for asked in servers[0].completions()] == [3, 3, 1]
    assert [summary(reply) for _, reply in sorted(remote.items())] == [
        summary(reply) for reply in local_replies(unicode_model, request).values()
    ]


@every_kind
@whole_and_streamed
def test_kinds_show_the_special_tokens_that_local_replies_show(kind: type[ModelServer], stream: bool) -> None:
    model = replies({"Q": [MARK, 97, MARK, 98]})
    requests = [
        request_of("Q", stream=stream, is_visible=visible.__contains__) for visible in (frozenset({MARK}), frozenset())
    ]
    assert_as_local(kind, model, *requests)


def test_vllm_is_left_at_an_end_token_that_it_does_not_know() -> None:
    class Unaware(VllmServer):
        """Gemma's and Qwen's files name two end tokens, of which generation_config.json may have one."""

        def complete(self, body: Any) -> Any:
            return super().complete({**body, "ignore_eos": True})

    text = (*b"ab", END, *b"more" * 20)
    with serving_kind(Unaware, lambda held, seed: text[len(held) - 1]) as servers, connected(*servers) as engine:
        [reply] = replies_of(engine, request_of("Q")).values()
    assert (reply.text, reply.reason, reply.ids) == ("ab", "stop", [*b"ab"])


def test_vllm_must_send_token_ids() -> None:
    with serving_kind(VllmServer, unicode_model) as [server], connected(server) as engine:
        server.hides_ids = True
        with pytest.raises(EndpointError, match="does not send token ids"):
            events_of(engine, request_of("Q"))


# Controls, and grammars and stop strings that apply once the answer starts.

IT_IS = "It is {seed}. That was easy, and it needed no long thought at all, as you can see."
LONG = reply_around("<think>\nI can see {seed}!", ENDING, "It is {seed}. So there.")
SPOKEN = {
    "ended": LONG,
    "short": "<think>Is it? Yes, it is: easy.</think>\n\n it? {seed} it is, and no more.",
    "no reasoning": IT_IS,
    "all reasoning": "<think>I can see that it is {seed}, so I say it.",
    "long sentence": reply_around("<think>" + "and so on " * 3, ENDING, "It is {seed}."),
    "loop": "over " * 60,
}
ANSWERED = {  # at most as long as the grammar allows
    "ended": reply_around("<think>\nI can see {seed}!", ENDING, "{seed}"),
    "short": "<think>I can see that it is {seed}, so I say it.</think>\n\n{seed}",
    "no reasoning": "{seed} is it",
    "all reasoning": SPOKEN["all reasoning"],
    "blank": f"{SPOKEN['all reasoning']}</think>\n\n",
}
UNLIMITED: dict[str, Any] = {"max_tokens": None, "temperature": 1.0, "loop_check": True}


def speaking(text: str) -> Model:
    """A model that gives a reply with its seed."""
    return speaker(lambda seed: text.format(seed=seed))


def requests_to_go(stream: bool, limit: int | None, **more: Any) -> list[Request]:
    controls = () if limit is None else (budget(limit),)
    values = {**UNLIMITED, "controls": controls, "seed": 3, "stream": stream, **more}
    samples: dict[str, Any] = {} if stream else {"n": 3, "max_n": 3}
    return [request_of("go", **values, **samples), request_of("go", **values)]


def answering(stream: bool = False, limit: int | None = None, **more: Any) -> Request:
    return requests_to_go(stream, limit, **{"rules": answering_late(), **more})[0]


@every_kind
@whole_and_streamed
@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("limit", [0, LIMIT])
def test_kinds_obey_controls_and_stop_strings_as_here(
    kind: type[ModelServer], stream: bool, name: str, limit: int
) -> None:
    first, second = requests_to_go(stream, limit, rules=thinking())
    second = replace(second, params=replace(second.params, max_tokens=33))
    assert_as_local(kind, speaking(SPOKEN[name]), first, second, answering(stream, limit, stop=(" it", "easy")))


@every_kind
@whole_and_streamed
@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("limit", [None, LIMIT])
def test_kinds_apply_a_grammar_to_the_answer(
    kind: type[ModelServer], stream: bool, name: str, limit: int | None
) -> None:
    asked = assert_as_local(kind, speaking(ANSWERED[name]), answering(stream, limit, grammar=DEAD_END))
    grammars = [each.body.get("grammar") or each.body.get("structured_outputs") for each in asked]
    in_reasoning = [b"</think>" not in bytes(each.prompt) and name != "no reasoning" for each in asked]
    assert grammars[-1] and not grammars[0]
    assert not any(grammar for grammar, thinks in zip(grammars, in_reasoning, strict=True) if thinks)


@every_kind
@whole_and_streamed
def test_kinds_that_end_a_turn_within_reasoning_are_asked_for_an_answer(kind: type[ModelServer], stream: bool) -> None:
    def model(held: tuple[int, ...], seed: int) -> int:
        reasoning, close, answer = bytes(held[2:]).decode().partition(ENDING)
        rest = "1 2 3"[len(answer) :] if close else "<think>Hm."[len(reasoning) :]
        return ord(rest[0]) if rest else END

    assert_as_local(kind, model, answering(stream, grammar="root ::= .*"))


def test_samples_are_continued_one_by_one_after_their_reasoning() -> None:
    given, _ = requests_to_go(False, LIMIT, rules=thinking())
    first, *others = [each.body for each in assert_as_local(LlamaServer, speaking(LONG), given)]
    assert first["n_cmpl"] == 3
    later = sorted((body["seed"], body["n_cmpl"], len(body["prompt"])) for body in others)
    assert later == [(seed, 1, len(f"go<think>\nI can see 3!{ENDING}")) for seed in (3, 4, 5)]


def test_turn_that_fails_ends_those_of_the_other_samples() -> None:
    given, _ = requests_to_go(False, LIMIT, rules=thinking())
    model = speaking(LONG)
    with serving(model, context_size=300) as [server], connected(server) as engine:
        server.arm(let_through=1, hang_after=0, times=2)
        server.arm(let_through=1, status=429, headers={"Retry-After": "0"})
        assert summaries(replies_of(engine, given)) == local(model, given)
        server.wait_for(lambda: sum(asked.is_left for asked in server.completions()[1:4]) == 2)  # of the second turns


def test_stream_is_left_at_a_stop_string() -> None:
    model = speaking("<think>It is.</think>It is " + "so " * 60)
    with serving(model, context_size=300) as [server], connected(server) as engine:
        server.arm(hang_after=60)
        [reply] = replies_of(engine, answering(stream=True, stop=("so so",))).values()
        server.wait_for(lambda: server.completions()[0].is_left)
    assert (reply.text, reply.reason) == ("It is.It is ", "stop")


def test_answer_in_the_token_that_ends_reasoning_is_refused() -> None:
    vocabulary = ScriptedBackend(lambda held, seed: END, words=(b">{",))
    sample = TokenSample(SequenceId(0, 0), answering(stream=True, grammar=DEAD_END), 3, 300, vocabulary=vocabulary)
    with pytest.raises(GrammarError, match="the answer begins in the token that ends the reasoning"):
        sample.add(ReplyChunk((*b"<think>Hm.</think", FIRST_WORD, *b"}")))


def test_reply_without_all_ids_is_continued_after_its_special_tokens(chatml: LlamaBackend) -> None:
    [think], [close] = chatml.special_token_ids(["<think>"]), chatml.special_token_ids(["</think>"])
    request = answering(stream=True, grammar=DEAD_END, is_visible=frozenset({think, close}).__contains__)
    sample = TokenSample(SequenceId(0, 0), request, 3, 300, vocabulary=chatml)
    sample.take_turn()
    reasoning = chatml.tokenize((Text("é."),))
    parts = ((think, 1, ""), (reasoning[1], 3, "é"), (reasoning[2], 4, "."), (close, 5, ""), (ord("{"), 6, "{"))
    for token, total, text in parts:
        sample.add(ReplyChunk((token,), total=total, text=text))
    assert sample.needs_turn
    turn = sample.take_turn()
    assert tuple(turn.prompt_tokens) == (*request.prompt_tokens, think, *reasoning, close)
    assert turn.ask.grammar == request.ask.grammar


@whole_and_streamed
def test_vllm_reply_that_ignores_the_grammar_is_refused(stream: bool) -> None:
    requests = [request_of(f"Q{at}", grammar=DEAD_END, stream=stream) for at in range(6)]
    with serving_kind(VllmServer, random_model) as [server], connected(server) as engine:
        events = events_of(engine, *requests)
    free = [replace(request, ask=replace(request.ask, grammar=None)) for request in requests]
    refused = {event.sequence: event.error for event in events if isinstance(event, RefusedEvent)}
    expected = [id for id, reply in sorted(local_replies(random_model, *free).items()) if len(reply.ids) > 12]
    assert refused and sorted(refused) == expected
    assert all("does not match the grammar" in error.message and error.hint for error in refused.values())


def test_sample_that_does_not_match_the_grammar_costs_no_other() -> None:
    def by_seed(held: tuple[int, ...], seed: int) -> int:
        return END if len(held) > 1 else (b"a" if seed % 2 else b"b")[0]

    with serving(by_seed) as servers, connected(*servers) as engine:
        events = events_of(engine, request_of("Q", n=3, grammar='root ::= "a"'))
    ends = {event.sequence.sample: event for event in events if isinstance(event, FinishEvent | RefusedEvent)}
    assert [type(ends[sample]) for sample in range(3)] == [FinishEvent, RefusedEvent, FinishEvent]
    assert isinstance(ends[1], RefusedEvent) and ends[1].text == "b"
