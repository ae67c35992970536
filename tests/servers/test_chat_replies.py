"""Replies of chat completions: text, reasoning and calls arrive as they were sent, errors in the server's words."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cases import rows
from chat_replies import Piece, piece, stream_of, whole
from command_line import Finished
from hypothesis import HealthCheck, example, given, settings, strategies as st
from installations import model_on
from remote_engines import connected, set_patience
from scripted_command import run_here
from server_kinds import OllamaServer
from templates import chosen_format

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.grammar import schema_grammar
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.tools import Round, ToolCall, ToolSpec
from cerebrum_cli.formats.choice import SERVER
from cerebrum_cli.programs.functions import tools_of
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import Outcome, Row
from cerebrum_cli.replies.reply import Reply

KEY, PASSWORD = "sk-secret-of-the-user", "secret-in-the-query"
SPOKEN = stream_of({"content": "It is "}, {"content": "3."}, finish="stop")
BATCH = ("batch", "questions.txt", "-o", "-")
ASKED = Ask(Conversation().user("1 + 2?"), Settings(loop_check=False))
Run = Callable[..., Finished]
DATA = rows("chat_completions")

whole_and_streamed = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer(lambda held, seed: 0) as server:
        server.models = ("m",)
        yield server


@pytest.fixture
def ask(server: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the server, whose replies all have this body, if one is given."""
    set_patience(monkeypatch)
    monkeypatch.setenv("CEREBRUM_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    Path("questions.txt").write_text("1 + 2?\n")

    def run(body: bytes | None, *command: str, headers: Mapping[str, str] = {}, status: int = 200) -> Finished:
        server.disarm()
        if body is not None:
            server.arm(body=body, headers=headers, status=status, times=None)
        return run_here({"rows": {}, "seeds": [""]}, tmp_path, *command, "--endpoint", f"{server.url}/?key={PASSWORD}")

    return run


@pytest.fixture
def model(server: OllamaServer) -> Iterator[Model]:
    with connected(server, messages=True) as engine:
        yield model_on(engine, chosen_format(SERVER))


def read(model: Model, server: OllamaServer, body: bytes, stream: bool, asked: Ask = ASKED) -> tuple[Reply, str]:
    """The reply of a body, and the notices about it."""
    server.disarm()
    server.arm(body=body)
    if stream:
        reply = model.respond(asked)
        seen: list[Any] = list(reply.events())
    else:
        seen = list(run_rows(model, [Row(0, asked)]))
        reply = result_of(seen)
    return reply, " ".join(": ".join(event) for event in seen if isinstance(event, NoticeEvent))


def result_of(seen: Sequence[Any]) -> Reply:
    [reply] = [event.result for event in seen if isinstance(event, Outcome)]
    assert isinstance(reply, Reply)
    return reply


# What is read.


@pytest.mark.parametrize("name", DATA["streams"])
def test_stream_is_read_however_a_server_writes_it(model: Model, server: OllamaServer, name: str) -> None:
    reply, notices = read(model, server, DATA["streams"][name].encode(), stream=True)
    assert (reply.text, reply.finish_reason, notices) == ("It is 3.", "stop", "")


def test_stream_is_read_though_it_is_compressed(ask: Run) -> None:
    for body, kind in (SPOKEN, "text/event-stream"), (DATA["streams"]["JSON"].encode(), "application/json"):
        headers = {"Content-Encoding": "gzip", "Content-Type": kind}
        done = ask(gzip.compress(body), "ask", "1 + 2?", headers=headers)
        assert (done.code, done.out) == (0, "It is 3.\n"), done.err


def pieces_of(parts: Sequence[Piece], size: int) -> Iterator[Piece]:
    """The parts of a message, with their texts in pieces of some characters."""
    for part in parts:
        for key, value in part.items():
            if isinstance(value, str) and value:
                yield from ({key: value[at : at + size]} for at in range(0, len(value), size))
            else:
                yield {key: value}


@whole_and_streamed
@pytest.mark.parametrize("name", DATA["messages"])
def test_message_is_read_in_one_or_more_pieces(model: Model, server: OllamaServer, name: str, stream: bool) -> None:
    parts, text, reasoning = DATA["messages"][name]
    bodies = [stream_of(*pieces_of(parts, size), finish="stop") for size in (1, 7, 999)]
    for body in (*bodies, whole("stop", **parts[0])) if len(parts) == 1 else bodies:
        reply, _ = read(model, server, body.replace(b"\\t", b"\t"), stream)  # which JSON does not allow
        assert (reply.text, reply.reasoning, reply.finish.calls) == (text, reasoning, ())
        assert (reply.finish_reason, reply.finish.in_reasoning) == ("stop", False)


ENDS = {
    "stop": ("stop", "COMPLETE", "eos_token", "function_call"),
    "context": ("length", "MAX_TOKENS", "max_output_tokens"),  # where the request has no limit
}


@whole_and_streamed
@pytest.mark.parametrize("reason", ENDS)
def test_end_of_a_reply_has_several_names(model: Model, server: OllamaServer, reason: str, stream: bool) -> None:
    for finish in ENDS[reason]:
        body = stream_of({"content": "3."}, finish=finish) if stream else whole(finish, content="3.")
        assert read(model, server, body, stream)[0].finish_reason == reason, finish


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, deadline=None)
@given(places=st.lists(st.integers(0, 400), max_size=8))
def test_stream_is_read_however_the_network_splits_it(model: Model, server: OllamaServer, places: list[int]) -> None:
    text = "Zwölf 🙂\u2028 ist\r\n3."
    body = stream_of(*({"content": character} for character in text), finish="stop").replace(b"\n", b"\r\n")
    edges = sorted({0, len(body), *(place * len(body) // 400 for place in places)})
    server.complete = lambda _: (body[start:end] for start, end in pairwise(edges))  # type: ignore[method-assign, assignment]
    server.disarm()
    assert model.respond(ASKED).wait().text == text


# Reasoning apart from the answer.

[MARKUP], _, _ = DATA["messages"]["reasoning that mentions its markup"]
FRAGMENTS = (
    *("<think>", "</think>", "`</think>`", "<th", "ink>", "</", "\n</think>\n\n", "[/THINK]", "<|channel|>", "<|end|>"),
    *("final<|message|>", "<response>", "</response>", "\n\n", "\n", " ", "It is 4. ", "é", "🙂"),
)
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=9)), max_size=12).map("".join)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    reasoning=texts.filter(len),
    answer=texts,
    size=st.integers(1, 40),
    key=st.sampled_from(("reasoning", "reasoning_content")),
    stream=st.booleans(),
)
@example(reasoning=MARKUP["reasoning"], answer=MARKUP["content"], size=1, key="reasoning", stream=True)
@example(reasoning="\n ", answer=" x", size=9, key="reasoning", stream=True)
def test_any_reasoning_and_any_answer_arrive_as_they_were_sent(
    model: Model, server: OllamaServer, reasoning: str, answer: str, size: int, key: str, stream: bool
) -> None:
    message = {key: reasoning, "content": answer}
    body = stream_of(*pieces_of([message], size), finish="stop") if stream else whole("stop", **message)
    reply, _ = read(model, server, body, stream)
    assert ((reply.reasoning or "").strip(), reply.text.strip()) == (reasoning.strip(), answer.strip())
    assert not reply.finish.in_reasoning


def test_separate_reasoning_is_printed_and_stored_as_it_was_sent(ask: Run) -> None:
    body = whole("stop", **MARKUP)
    for command in (("ask", "How?", "--json"), ("ask", "How?", "--json", "--votes", "1"), BATCH):
        found = json.loads(ask(body, *command).out)
        assert (found["reasoning"], found["text"]) == (MARKUP["reasoning"].strip(), MARKUP["content"])


# What is told.


@pytest.mark.parametrize("name", DATA["errors"])
def test_error_is_told_in_the_words_of_the_server(ask: Run, name: str) -> None:
    stated = DATA["errors"][name]
    body = json.dumps(stated).encode()
    event = b"data: " + body + b"\n\n"
    begun = SPOKEN[: SPOKEN.index(b"data", 1)] + event
    for stream, status in ((body, 400), (body, 500), (body, 200), (event, 200), (begun, 200)):
        done = ask(stream, "ask", "1 + 2?", status=status)
        assert done.code == 1 and done.err.splitlines()[-2].endswith(": GPU on fire"), done.err
        assert done.out == ("It is\n" if b"It is" in stream else "")
    done = ask(body, *BATCH)
    assert (done.code, "GPU on fire" in done.err) == (6, True)


@pytest.mark.parametrize("name", DATA["no replies"])
def test_what_is_no_reply_is_told(ask: Run, name: str) -> None:
    body, problem = DATA["no replies"][name]
    done = ask(body.encode(errors="surrogateescape"), "ask", "1 + 2?")
    assert done.code == 1 and problem in done.err and "Traceback" not in done.err, done.err
    assert done.out == ("It is\n" if name in ("no end", "an error as the end") else "")


def test_text_of_a_reply_that_is_an_error_is_in_the_row(ask: Run) -> None:
    for finish in ("error", "content_filter", "timeout", "insufficient_system_resource"):
        done = ask(whole(finish, content="GPU on fire"), *BATCH)
        row = json.loads(done.out)
        assert (done.code, row["text"], row["final_answer"]) == (6, "GPU on fire", None)
        assert row["error"]["message"].startswith(f"the server ended the reply: {finish}")


def test_secrets_are_not_told(ask: Run) -> None:
    told = f"wrong key {KEY} in Authorization: Bearer {KEY}"
    for body, status in ((f'{{"error": "{told}"}}', 200), (told, 500), (f'{{"detail": "{told}"}}', 400)):
        done = ask(body.encode(), "ask", "1 + 2?", status=status)
        assert "wrong key *** in" in done.err and KEY not in done.err + done.out
    location = {"Location": f"http://other.example/?key={KEY}"}
    assert "redirects to http://other.example/?key=***" in ask(b"", "ask", "x", status=307, headers=location).err
    done = ask(f'{{"error": "no such key: {PASSWORD}"}}'.encode(), "ask", "1 + 2?")
    assert "no such key: ***" in done.err and PASSWORD not in done.err


# Functions.

WEATHER = ToolSpec("weather", "Forecast for a city.", {"type": "object", "properties": {"city": {"type": "string"}}})
COAT = replace(Conversation().user("Do I need a coat?"), tools=(WEATHER,))
OSLO, ROME = (ToolCall("weather", {"city": city}) for city in ("Oslo", "Rome"))
WHOLE_CALLS = [piece('{"city": "Oslo"}', "weather", id="a"), piece('{"city": "Rome"}', "weather", id="b")]


def answer_to(model: Model, server: OllamaServer, body: bytes, conversation: Conversation = COAT) -> Reply:
    return read(model, server, body, True, Ask(conversation, Settings()))[0]


@pytest.mark.parametrize("name", DATA["pieces of calls"])
def test_calls_are_collected_from_a_stream(model: Model, server: OllamaServer, name: str) -> None:
    pieces = DATA["pieces of calls"][name]
    for parts in ([{"tool_calls": [each]} for each in pieces], [{"content": "", "tool_calls": pieces}]):
        reply = answer_to(model, server, stream_of(*parts))
        assert (reply.finish.calls, reply.finish_reason) == ((OSLO, ROME), "stop")
        assert reply.finish.timings.decode_s > 0 and reply.notice() is None


def test_calls_of_a_whole_reply_are_read_with_its_reasoning(model: Model, server: OllamaServer) -> None:
    body = whole(content=None, reasoning="Two cities.", tool_calls=WHOLE_CALLS)
    reply, _ = read(model, server, body, False, Ask(COAT, Settings()))
    assert (reply.finish.calls, reply.reasoning, reply.text) == ((OSLO, ROME), "Two cities.", "")
    assert (reply.finish_reason, reply.finish.completion_tokens) == ("stop", 7)


def test_rows_run_their_calls_and_continue(model: Model, server: OllamaServer) -> None:
    def weather(city: str) -> str:
        return f"Dry in {city}."

    server.arm(body=whole(content=None, tool_calls=WHOLE_CALLS[:1]))
    server.arm(body=whole("stop", content="No coat."))
    asked = Ask(Conversation().user("Do I need a coat?"), Settings(), tools=tools_of([weather]))
    reply = result_of(list(run_rows(model, [Row(0, asked)])))
    assert (reply.text, reply.calls) == ("No coat.", (replace(OSLO, result="Dry in Oslo."),))
    assert reply.finish.completion_tokens == 14
    assert [message["role"] for message in server.completions()[1].body["messages"]] == ["user", "assistant", "tool"]


DEEP = f'{{"city": {"[" * 490}{"]" * 490}}}'


@pytest.mark.parametrize(
    "text", ['{"city": "Os', '["Oslo"]', "null", "Oslo\ud83d", '{"days": NaN}', '{"days": 1e999}', "[" * 99_999, DEEP]
)
def test_call_with_damaged_arguments_has_an_error_as_its_result(model: Model, server: OllamaServer, text: str) -> None:
    [call] = answer_to(model, server, stream_of({"tool_calls": [piece(text, "weather", index=0)]})).finish.calls
    assert (call.name, call.arguments) == ("weather", {})
    problem = "they have more than 100 levels of lists and objects" if text == DEEP else "not a JSON object: "
    assert call.result.startswith(f"invalid arguments: {problem}")


@pytest.mark.parametrize("call", ["weather", piece("{}", index=0)])
def test_calls_of_another_form_are_a_damaged_reply(model: Model, server: OllamaServer, call: object) -> None:
    with pytest.raises(EndpointError, match="damaged reply"):
        answer_to(model, server, stream_of({"tool_calls": [call]}))


ROUNDS = (
    Round((replace(OSLO, result="rain"), replace(ROME, result="sun")), "Let me see."),
    Round((ToolCall("weather", {"city": "Zürich", "days": [1, 2]}, ""),)),
)
BEGUN = replace(COAT, prefill=Message("assistant", "", rounds=ROUNDS))


def test_replies_are_sent_with_their_calls_and_the_tools(model: Model, server: OllamaServer) -> None:
    assert answer_to(model, server, SPOKEN, BEGUN).text == "It is 3."
    answer_to(model, server, SPOKEN, COAT.add(Message("assistant", "Yes.", rounds=ROUNDS)).user("Sure?"))
    in_progress, earlier = (asked.body for asked in server.completions())
    assert in_progress["messages"] == DATA["calls as sent"]  # of which no content is null: llama-cpp-python rejects it
    assert in_progress["tools"] == [WEATHER.openai] and "tool_choice" not in in_progress
    rest = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Sure?"}]
    assert earlier["messages"] == [*DATA["calls as sent"], *rest]


def test_reply_follows_a_schema_after_its_calls(model: Model, server: OllamaServer) -> None:
    asked = Ask(BEGUN, Settings(), schema_grammar("coat bool"))
    reply, _ = read(model, server, whole("stop", content='{"coat": false}'), False, asked)
    assert reply.text == '{"coat": false}'
    assert "response_format" in server.completions()[0].body


def test_server_that_dropped_results_of_calls_is_noticed(model: Model, server: OllamaServer) -> None:
    long = Round((replace(OSLO, result="rain " * 40),))
    asked = Ask(replace(COAT, prefill=Message("assistant", "", rounds=(long,))), Settings())
    _, notices = read(model, server, whole("stop", content="Yes."), False, asked)
    assert "read 9 tokens of a prompt with 217 characters" in notices
