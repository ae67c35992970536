"""Reasoning and answers of servers arrive as they were sent, whatever they mention, streamed and whole."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chat_replies import stream_of, whole
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from installations import model_on
from model_servers import ModelServer
from remote_engines import connected, events_of, request_of, serving_kind
from scripted_backend import END
from scripted_command import run_here
from server_kinds import LlamaServer, LmStudioServer, OllamaServer, SglangDeltas, SglangServer, VllmServer
from templates import chosen_format
from thinkers import speaker, thinking

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import TokenEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.formats.choice import SERVER
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Outcome, Reply, Row

REASONING = "The tag </think> ends it, as in:\n\n<think>\na\n</think>\n\nSo <|channel|>final<|message|> is another."
ANSWER = "It ends with </think>, after <think>.\n\n<response>"
ASKED = Ask(Conversation().user("How does reasoning end?"), Settings(loop_check=False))


class LlamaChat(LmStudioServer):
    """llama-server's chat completions, behind a gateway that passes nothing else."""

    owner = "llamacpp"


class VllmChat(OllamaServer):
    owner = "vllm"


class SglangChat(LmStudioServer):
    owner = "sglang"


MESSAGE_KINDS = (OllamaServer, LmStudioServer, LlamaChat, VllmChat, SglangChat)
TOKEN_KINDS = (LlamaServer, VllmServer, SglangServer, SglangDeltas)


@pytest.fixture(params=MESSAGE_KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[OllamaServer]:
    with serving_kind(request.param, lambda held, seed: END, context_size=5000) as [server]:
        yield server


@pytest.fixture
def model(server: OllamaServer) -> Iterator[Model]:
    with connected(server, messages=True) as engine:
        yield model_on(engine, chosen_format(SERVER))


def deltas(server: OllamaServer, reasoning: str, answer: str, places: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The parts of a message, cut at some places of its text."""
    parts = []
    for key, text in ((server.reasoning_key, reasoning), ("content", answer)):
        edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
        parts += [{key: text[start:end]} for start, end in pairwise(edges)]
    return parts


def arm(server: OllamaServer, reasoning: str, answer: str, *, stream: bool, places: Sequence[int] = ()) -> None:
    """Let the next reply be a message with reasoning apart."""
    server.disarm()
    if stream:
        server.arm(body=stream_of(*deltas(server, reasoning, answer, places), finish="stop"))
    else:
        server.arm(body=whole("stop", content=answer, **{server.reasoning_key: reasoning}))


def reply_of(model: Model, *, stream: bool) -> Reply:
    if stream:
        return model.respond(ASKED).wait()
    [reply] = [event.result for event in run_rows(model, [Row(0, ASKED)]) if isinstance(event, Outcome)]
    assert isinstance(reply, Reply)
    return reply


FRAGMENTS = (
    *("<think>", "</think>", "`</think>`", "<th", "ink>", "</", "\n</think>\n\n", "[/THINK]", "<|channel|>", "<|end|>"),
    *("final<|message|>", "<response>", "</response>", "\n\n", "\n", " ", "It is 4. ", "é", "🙂"),
)
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=9)), max_size=12).map("".join)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    reasoning=texts.filter(len),
    answer=texts,
    places=st.lists(st.integers(0, 200), max_size=6),
    stream=st.booleans(),
)
@example(reasoning=REASONING, answer=ANSWER, places=[*range(len(REASONING))], stream=True)
@example(reasoning="\n ", answer=" x", places=[], stream=True)
def test_any_reasoning_and_any_answer_arrive_as_they_were_sent(
    model: Model, server: OllamaServer, reasoning: str, answer: str, places: list[int], stream: bool
) -> None:
    arm(server, reasoning, answer, stream=stream, places=places)
    reply = reply_of(model, stream=stream)
    assert ((reply.reasoning or "").strip(), reply.text.strip()) == (reasoning.strip(), answer.strip())


@pytest.mark.parametrize("stream", [False, True])
def test_separate_reasoning_may_mention_its_markup(model: Model, server: OllamaServer, stream: bool) -> None:
    arm(server, f"\n{REASONING}\n", ANSWER, stream=stream, places=range(0, 200, 7))
    reply = reply_of(model, stream=stream)
    assert (reply.reasoning, reply.text) == (REASONING, ANSWER)
    assert (reply.finish_reason, reply.finish.in_reasoning) == ("stop", False)


@pytest.mark.parametrize("stream", [False, True])
def test_reply_of_separate_reasoning_alone_has_no_answer(model: Model, server: OllamaServer, stream: bool) -> None:
    arm(server, REASONING, "", stream=stream)
    reply = reply_of(model, stream=stream)
    assert (reply.reasoning, reply.text, reply.finish.in_reasoning) == (REASONING, "", False)


def test_separate_reasoning_in_turns_is_reasoning(model: Model, server: OllamaServer) -> None:
    parts = [*deltas(server, "Hm. ", "It is </th"), *deltas(server, "</think>", "ink>4.")]
    server.arm(body=stream_of({"content": "<th"}, *parts, finish="stop"))
    reply = reply_of(model, stream=True)
    assert (reply.reasoning, reply.text) == ("Hm. </think>", "<thIt is </think>4.")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nIt is `</think>`.", "Hm.", "It is `</think>`."),
        ("Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("<think> is a tag.", None, "<think> is a tag."),
    ],
)
def test_reasoning_within_the_text_of_a_message_is_separated(
    model: Model, server: OllamaServer, stream: bool, text: str, reasoning: str | None, answer: str
) -> None:
    arm(server, "", text, stream=stream, places=range(0, 50, 3))
    reply = reply_of(model, stream=stream)
    assert (reply.reasoning, reply.text) == (reasoning, answer)


def test_separate_reasoning_is_printed_and_stored_as_it_was_sent(
    server: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("questions.txt").write_text("How does reasoning end?\n")
    commands = (("ask", "How?", "--json"), True), (("ask", "How?", "--json", "--votes", "1"), False)
    for command, stream in (*commands, (("batch", "questions.txt", "-o", "-"), False)):
        arm(server, REASONING, ANSWER, stream=stream)
        done = run_here({"reply": ""}, tmp_path, *command, "--endpoint", server.url)
        found = json.loads(done.out)
        assert (found["reasoning"], found["text"]) == (REASONING, ANSWER), done.err


@pytest.mark.parametrize("kind", TOKEN_KINDS)
@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_of_servers_of_tokens_ends_with_its_markup(kind: type[ModelServer], stream: bool) -> None:
    model = speaker(lambda seed: f"<think>Hm: <think>.</think>{ANSWER}")
    given = request_of("go", stream=stream, max_tokens=None, rules=thinking(trims=True))
    with serving_kind(kind, model, context_size=300) as servers, connected(*servers) as engine:
        events = [event for event in events_of(engine, given) if isinstance(event, TokenEvent)]
    assert text_of(events, "thinking") == "Hm: <think>."
    assert text_of(events, "answer") == ANSWER


def text_of(events: Sequence[TokenEvent], channel: str) -> str:
    return "".join(event.text for event in events if event.channel == channel)
