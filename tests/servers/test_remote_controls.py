"""Controls of replies that servers and nodes generate: the same replies as here, and what is asked of a server."""

from typing import Any

import pytest
from model_servers import ModelServer
from remote_engines import (
    connected,
    local_replies,
    replies_of,
    request_of,
    serving_kind,
    summaries,
)
from scripted_backend import DEAD_END, END, FIRST_WORD, Model, ScriptedBackend
from server_kinds import LlamaServer, SglangServer, VllmServer
from thinkers import ENDING, LIMIT, answering_late, budget, reply_around, speaker, thinking

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import SequenceId
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.formats.reply_text import ReplyRules
from cerebrum_cli.servers.faults import RefusedRequestError
from cerebrum_cli.servers.kind import ReplyChunk
from cerebrum_cli.servers.token_replies import TokenSample

REPLIES = {
    "ended": reply_around("<think>\nI can see {seed}!", ENDING, "It is {seed}. So there."),
    "short": "<think>Hm.</think>It is {seed}. That was easy, and it needed no long thought.",
    "no reasoning": "It is {seed}. That was easy, and it needed no long thought at all, as you can see.",
    "long sentence": reply_around("<think>" + "and so on " * 3, ENDING, "It is {seed}."),
    "loop": "over " * 60,
}


def speaking(text: str) -> Model:
    """A model that gives a reply with its seed."""
    return speaker(lambda seed: text.format(seed=seed))


MODELS = {name: speaking(text) for name, text in REPLIES.items()}
UNLIMITED: dict[str, Any] = {"max_tokens": None, "temperature": 1.0}
every_model = pytest.mark.parametrize("name", MODELS)


def requests(limit: int = LIMIT, **more: Any) -> list[Request]:
    values = {**UNLIMITED, "loop_check": True, "controls": (budget(limit),), "rules": thinking(), **more}
    limited = {**values, "max_tokens": 33}
    if values.get("stream"):
        return [request_of("go", seed=3, **values), request_of("go", seed=3, **limited)]
    return [request_of("go", n=3, max_n=3, seed=3, **values), request_of("go", seed=7, **limited)]


def local(model: Model, *given: Request) -> dict[Any, tuple[Any, ...]]:
    return summaries(local_replies(model, *given, context_size=300))


@every_model
@pytest.mark.parametrize(("kind", "stream"), [(LlamaServer, False), (LlamaServer, True), (VllmServer, True)])
@pytest.mark.parametrize("limit", [0, LIMIT])
def test_remote_controls_act_as_here(kind: type[ModelServer], name: str, stream: bool, limit: int) -> None:
    given = requests(limit, stream=stream)
    with serving_kind(kind, MODELS[name], context_size=300) as servers, connected(*servers) as engine:
        assert summaries(replies_of(engine, *given)) == local(MODELS[name], *given)


def test_remote_samples_are_continued_one_by_one_after_their_reasoning() -> None:
    given, _ = requests()
    with serving_kind(LlamaServer, MODELS["ended"], context_size=300) as [server], connected(server) as engine:
        replies = replies_of(engine, given)
        first, *others = (asked.body for asked in server.completions())
    assert first["n_cmpl"] == 3
    prompt_length = len(f"go<think>\nI can see 3!{ENDING}")
    later = sorted((body["seed"], body["n_cmpl"], len(body["prompt"])) for body in others)
    assert later == [(seed, 1, prompt_length) for seed in (3, 4, 5)]
    assert next(iter(replies.values())).text == "\nI can see 3!\nIt is 3. So there."


def test_remote_turn_that_fails_ends_those_of_the_other_samples() -> None:
    given, _ = requests()
    with serving_kind(LlamaServer, MODELS["ended"], context_size=300) as [server], connected(server) as engine:
        server.arm(let_through=1, hang_after=0, times=2)
        server.arm(let_through=1, status=429)
        assert summaries(replies_of(engine, given)) == local(MODELS["ended"], given)
        server.wait_for(lambda: sum(asked.is_left for asked in server.completions()) == 2)


# Grammars that apply once the answer starts.

THINKING = "<think>I can see that it is {seed}, so I say it.</think>"
ANSWERED = {
    "ended": reply_around("<think>\nI can see {seed}!", ENDING, "{seed}"),
    "short": THINKING + "\n\n{seed}",
    "no reasoning": "{seed} is it",
    "all reasoning": THINKING.partition("</think>")[0],
    "blank": THINKING + "\n\n",
}
EVERY_KIND = [(LlamaServer, False), (LlamaServer, True), (VllmServer, False), (VllmServer, True), (SglangServer, True)]


def answering(stream: bool = False, limit: int | None = None, **more: Any) -> Request:
    """A request with something that applies once the answer starts, after reasoning that may have a limit."""
    controls = () if limit is None else (budget(limit),)
    values = {"rules": answering_late(), "loop_check": True, "controls": controls, **UNLIMITED, **more}
    return request_of("go", seed=3, stream=stream, **values, **({} if stream else {"n": 3, "max_n": 3}))


def grammar_of(body: Any) -> Any:
    """What a server of any kind is asked to constrain its reply to; nothing if that is false."""
    return (
        body.get("grammar")
        or body.get("structured_outputs", {}).get("grammar")
        or body.get("sampling_params", {}).get("ebnf")
    )


@pytest.mark.parametrize(("kind", "stream"), EVERY_KIND)
@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("limit", [None, LIMIT])
def test_remote_grammar_applies_to_the_answer(
    kind: type[ModelServer], stream: bool, name: str, limit: int | None
) -> None:
    model = speaking(ANSWERED[name])
    given = answering(stream, limit, grammar=DEAD_END)
    with serving_kind(kind, model, context_size=300) as [server], connected(server) as engine:
        assert summaries(replies_of(engine, given)) == local(model, given)
        asked = [(bytes(each.prompt).decode(), grammar_of(each.body)) for each in server.completions()]
    before = [grammar for prompt, grammar in asked if "</think>" not in prompt and name != "no reasoning"]
    assert not (asked[0][1] or any(before))
    assert asked[-1][1]


@pytest.mark.parametrize(("kind", "stream"), EVERY_KIND)
def test_remote_turn_that_ends_within_reasoning_is_followed_by_an_answer(kind: type[ModelServer], stream: bool) -> None:
    def model(held: tuple[int, ...], seed: int) -> int:
        reasoning, close, answer = bytes(held[2:]).decode().partition(ENDING)
        rest = "1 2 3"[len(answer) :] if close else "<think>Hm."[len(reasoning) :]
        return ord(rest[0]) if rest else END

    given = answering(stream, grammar="root ::= .*")
    with serving_kind(kind, model, context_size=300) as [server], connected(server) as engine:
        replies = replies_of(engine, given)
        assert {reply.text for reply in replies.values()} == {"Hm.\n1 2 3"}
        assert summaries(replies) == local(model, given)


def test_remote_answer_in_the_token_that_ends_reasoning_is_refused() -> None:
    words = (b">{",)
    text = [*b"<think>Hm.</think", FIRST_WORD, *b"}"]
    vocabulary = ScriptedBackend(lambda held, seed: END, words=words)
    sample = TokenSample(SequenceId(0, 0), answering(stream=True, grammar=DEAD_END), 3, 300, vocabulary=vocabulary)
    with pytest.raises(RefusedRequestError) as caught:
        list(sample.add(ReplyChunk(tuple(text))))
    assert caught.value.error.message.startswith("the answer begins in the token that ends the reasoning")


def test_remote_reply_without_all_ids_is_continued_after_its_special_tokens(chatml: LlamaBackend) -> None:
    [think], [close] = chatml.special_token_ids(["<think>"]), chatml.special_token_ids(["</think>"])
    request = answering(stream=True, grammar=DEAD_END, is_visible=frozenset({think, close}).__contains__)
    sample = TokenSample(SequenceId(0, 0), request, 3, 300, vocabulary=chatml)
    sample.take_turn()
    reasoning = chatml.tokenize((Text("é."),))
    parts = ((think, 1, ""), (reasoning[1], 3, "é"), (reasoning[2], 4, "."), (close, 5, ""), (ord("{"), 6, "{"))
    for token, total, text in parts:
        list(sample.add(ReplyChunk((token,), total=total, text=text)))
    assert sample.needs_turn
    turn = sample.take_turn()
    assert tuple(turn.prompt_tokens) == (*request.prompt_tokens, think, *reasoning, close)
    assert (turn.ask.grammar, turn.rules) == (request.ask.grammar, ReplyRules())


# Stop strings, which count only once the answer starts.


@pytest.mark.parametrize(("kind", "stream"), EVERY_KIND)
@pytest.mark.parametrize("name", ["short", "no reasoning", "all reasoning"])
@pytest.mark.parametrize("limit", [None, LIMIT])
def test_remote_stop_strings_count_in_the_answer(
    kind: type[ModelServer], stream: bool, name: str, limit: int | None
) -> None:
    texts = {**REPLIES, "short": "<think>Is it? Yes, it is: easy.</think>\n\n it? {seed} it is, and no more."}
    model = speaking(texts.get(name, ANSWERED["all reasoning"]))
    given = answering(stream, limit, stop=(" it", "easy"))
    with serving_kind(kind, model, context_size=300) as [server], connected(server) as engine:
        assert summaries(replies_of(engine, given)) == local(model, given)
        assert not any(asked.body.get("sampling_params", asked.body)["stop"] for asked in server.completions())


def test_remote_stream_is_left_at_a_stop_string_of_the_answer() -> None:
    model = speaking("<think>It is.</think>It is " + "so " * 60)
    with serving_kind(LlamaServer, model, context_size=300) as [server], connected(server) as engine:
        server.arm(hang_after=60)
        [reply] = replies_of(engine, answering(stream=True, stop=("so so",))).values()
        server.wait_for(lambda: server.completions()[0].is_left)
    assert (reply.text, reply.reason) == ("It is.It is ", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_remote_stop_strings_end_an_answer_under_a_grammar(stream: bool) -> None:
    model = speaking("<think>1 2 3</think>\n\n1 2 3")
    given = answering(stream, grammar="root ::= .*", stop=(" 3",))
    with serving_kind(LlamaServer, model, context_size=300) as [server], connected(server) as engine:
        replies = replies_of(engine, given)
        assert {reply.text for reply in replies.values()} == {"1 2 31 2"}
        assert [bool(asked.body["stop"]) for asked in server.completions()][-1]
