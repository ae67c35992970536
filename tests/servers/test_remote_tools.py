"""Functions behind servers of chat completions: what is sent of them, and calls in replies, whole and in pieces."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from chat_replies import Piece, piece, stream_of, whole
from installations import model_on
from remote_engines import connected, events_of, notices, serving_kind
from scripted_backend import END
from server_kinds import OllamaServer
from templates import chosen_format

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import EndpointError, UsageError
from cerebrum_cli.core.events import FinishEvent, NoticeEvent, RefusedEvent
from cerebrum_cli.core.grammar import schema_grammar
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.tools import Round, ToolCall, ToolCalls, ToolSpec
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.formats.choice import SERVER
from cerebrum_cli.programs.functions import tools_of
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Outcome, Reply, Row
from cerebrum_cli.servers.remote_engine import RemoteEngine

WEATHER = ToolSpec("weather", "Forecast for a city.", {"type": "object", "properties": {"city": {"type": "string"}}})
ASKED = replace(Conversation().user("Do I need a coat?"), tools=(WEATHER,))
OSLO, ROME = (ToolCall("weather", {"city": city}) for city in ("Oslo", "Rome"))


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with serving_kind(OllamaServer, lambda held, seed: END, context_size=5000) as [server]:
        yield server


@pytest.fixture
def engine(server: OllamaServer) -> Iterator[RemoteEngine]:
    with connected(server, messages=True) as engine:
        yield engine


@pytest.fixture
def model(engine: RemoteEngine) -> Model:
    return model_on(engine, chosen_format(SERVER))


def streamed(engine: RemoteEngine, server: OllamaServer, *deltas: Piece, finish: str = "tool_calls") -> FinishEvent:
    server.arm(body=stream_of(*deltas, finish=finish))
    last = events_of(engine, Request((81,), ask=Ask(stream=True, conversation=ASKED), as_messages=True))[-1]
    assert isinstance(last, FinishEvent)
    return last


def calls_in(engine: RemoteEngine, server: OllamaServer, *pieces: Piece) -> ToolCalls:
    """The calls in a reply that is streamed, with each piece in an event of its own."""
    return streamed(engine, server, *({"tool_calls": [piece]} for piece in pieces)).calls


# Replies.

IN_PIECES = [
    [
        piece("", "weather", index=0, id="a"),
        piece('{"ci', index=0),
        piece('ty": "Os', index=0),
        piece('lo"}', index=0),
        piece("", "weather", index=1, id="b"),
        piece('{"city": "Rome"}', index=1),
    ],
    [  # with an index that is stated once
        piece("", "weather", index=0, id="a"),
        piece('{"city": "Oslo"}'),
        piece("", "weather", index=1, id="b"),
        piece('{"city": "Rome"}'),
    ],
    [  # with everything repeated
        piece('{"city"', "weather", index=0, id="a"),
        piece(': "Oslo"}', "weather", index=0, id="a"),
        piece('{"city"', "weather", index=1, id="b"),
        piece(': "Rome"}', "weather", index=1, id="b"),
    ],
    [  # with a new id for each piece
        piece("", "weather", index=0, id="a"),
        piece('{"city": "Oslo"}', index=0, id="b"),
        piece("", "weather", index=1, id="c"),
        piece('{"city": "Rome"}', index=1, id="d"),
    ],
    # Whole: with one index for all, without an index, and without an id.
    [piece('{"city": "Oslo"}', "weather", index=0, id="a"), piece('{"city": "Rome"}', "weather", index=0, id="b")],
    [piece('{"city": "Oslo"}', "weather", id="a"), piece('{"city": "Rome"}', "weather", id="b")],
    [piece('{"city": "Oslo"}', "weather", id=""), piece('{"city": "Rome"}', "weather", id="")],
    [  # without an index, in pieces
        piece("", "weather", id="a"),
        piece('{"city": "Oslo"}'),
        piece('{"city":', "weather", id="b"),
        piece(' "Rome"}', "weather", id="b"),
    ],
]


@pytest.mark.parametrize("pieces", IN_PIECES)
def test_remote_calls_are_collected_from_a_stream(
    engine: RemoteEngine, server: OllamaServer, pieces: list[Piece]
) -> None:
    assert calls_in(engine, server, *pieces) == (OSLO, ROME)
    together = streamed(engine, server, {"content": "", "tool_calls": pieces})
    assert (together.calls, together.reason) == ((OSLO, ROME), "stop")
    assert together.timings.decode_s > 0  # since the first piece


def test_remote_calls_of_whole_replies_are_read(model: Model, server: OllamaServer) -> None:
    calls = [piece('{"city": "Oslo"}', "weather", id="a"), piece('{"city": "Rome"}', "weather", id="b")]
    server.arm(body=whole(content=None, reasoning="Two cities.", tool_calls=calls))
    [reply] = [
        event.result for event in run_rows(model, [Row(0, Ask(ASKED, Settings()))]) if isinstance(event, Outcome)
    ]
    assert isinstance(reply, Reply)
    assert (reply.finish.calls, reply.reasoning, reply.text) == ((OSLO, ROME), "Two cities.", "")
    assert (reply.finish_reason, reply.finish.completion_tokens) == ("stop", 7)


def test_remote_rows_run_their_calls_and_continue(model: Model, server: OllamaServer) -> None:
    def weather(city: str) -> str:
        return f"Dry in {city}."

    server.arm(body=whole(content=None, tool_calls=[piece('{"city": "Oslo"}', "weather", id="a")]))
    server.arm(body=whole("stop", content="No coat."))
    asked = Ask(Conversation().user("Do I need a coat?"), Settings(), tools=tools_of([weather]))
    [reply] = [event.result for event in run_rows(model, [Row(0, asked)]) if isinstance(event, Outcome)]
    assert isinstance(reply, Reply)
    assert (reply.text, reply.calls) == ("No coat.", (replace(OSLO, result="Dry in Oslo."),))
    assert reply.finish.completion_tokens == 14
    assert [message["role"] for message in server.completions()[1].body["messages"]] == ["user", "assistant", "tool"]


def test_remote_reply_follows_a_schema_after_its_calls(model: Model, server: OllamaServer) -> None:
    server.arm(body=whole("stop", content='{"coat": false}'))
    asked = Ask(
        replace(ASKED, prefill=Message("assistant", "", rounds=ROUNDS)), Settings(), schema_grammar("coat bool")
    )
    [reply] = [event.result for event in run_rows(model, [Row(0, asked)]) if isinstance(event, Outcome)]
    assert isinstance(reply, Reply), reply
    assert reply.text == '{"coat": false}'
    assert "response_format" in server.completions()[0].body


def test_remote_reply_of_calls_alone_is_not_blank(model: Model, server: OllamaServer) -> None:
    deltas = {"reasoning": "A coat?"}, {"tool_calls": [piece('{"city": "Oslo"}', "weather", index=0, id="a")]}
    server.arm(body=stream_of(*deltas))
    reply = model.respond(Ask(ASKED, Settings())).wait()
    assert (reply.finish.calls, reply.text, reply.reasoning) == ((OSLO,), "", "A coat?")
    assert (reply.finish.completion_tokens, reply.finish.in_reasoning) == (2, False)
    assert reply.notice("a larger context") is None
    server.arm(body=stream_of({"content": " "}))
    blank = model.respond(Ask(ASKED, Settings())).wait()
    notice = blank.notice("a larger context")
    assert notice and notice.message == "the model's answer is blank"


@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_remote_reply_with_calls_has_ended_by_itself(engine: RemoteEngine, server: OllamaServer, finish: str) -> None:
    server.arm(body=stream_of({"content": "See."}, {"tool_calls": [piece("", "weather", index=0)]}, finish=finish))
    *_, last = events = events_of(engine, Request((81,), ask=Ask(stream=True, conversation=ASKED), as_messages=True))
    assert isinstance(last, FinishEvent) and (last.reason, last.calls) == ("stop", (ToolCall("weather", {}),))
    assert not notices(events)


@pytest.mark.parametrize(
    "text", ['{"city": "Os', '["Oslo"]', "null", "Oslo\ud83d", '{"days": NaN}', '{"days": 1e999}', "[" * 99_999]
)
def test_remote_call_with_damaged_arguments_has_an_error_as_its_result(
    engine: RemoteEngine, server: OllamaServer, text: str
) -> None:
    [call] = calls_in(engine, server, piece(text, "weather", index=0))
    assert (call.name, call.arguments) == ("weather", {})
    assert call.result.startswith("invalid arguments: not a JSON object: ")


def test_remote_calls_have_well_formed_arguments(engine: RemoteEngine, server: OllamaServer) -> None:
    arrived = piece('{"city": "\\ud83d \\u00fc"}', "weather", index=0)
    assert calls_in(engine, server, arrived) == (ToolCall("weather", {"city": "\ufffd ü"}),)


@pytest.mark.parametrize("call", ["weather", piece("{}", index=0), piece({"city": "Oslo"}, "weather")])
def test_remote_calls_of_another_form_are_a_damaged_reply(
    engine: RemoteEngine, server: OllamaServer, call: object
) -> None:
    server.arm(body=stream_of({"tool_calls": [call]}), times=None)
    with pytest.raises(EndpointError, match="damaged reply"):
        events_of(engine, Request((81,), ask=Ask(stream=True, conversation=ASKED), as_messages=True))


# Requests.

ROUNDS = (
    Round((replace(OSLO, result="rain"), replace(ROME, result="sun")), "Let me see."),
    Round((ToolCall("weather", {"city": "Zürich", "days": [1, 2]}, ""),)),
)
WIRE = [
    {"role": "user", "content": "Do I need a coat?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"id": f"call0000{at}", "type": "function", "function": {"name": "weather", "arguments": arguments}}
            for at, arguments in enumerate(('{"city": "Oslo"}', '{"city": "Rome"}'), 1)
        ],
    },
    {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "call00001"},
    {"role": "tool", "content": "sun", "name": "weather", "tool_call_id": "call00002"},
    {
        "role": "assistant",
        "content": "",  # llama-cpp-python's server rejects null
        "tool_calls": [
            {
                "id": "call00003",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Zürich", "days": [1, 2]}'},
            }
        ],
    },
    {"role": "tool", "content": "", "name": "weather", "tool_call_id": "call00003"},
]


def test_remote_reply_in_progress_is_sent_with_its_calls_and_the_tools(model: Model, server: OllamaServer) -> None:
    server.arm(body=stream_of({"content": "Yes, "}, {"content": "in Oslo."}, finish="stop"))
    begun = replace(ASKED, prefill=Message("assistant", "", rounds=ROUNDS))
    reply = model.respond(Ask(begun, Settings()))
    assert "".join(reply) == "Yes, in Oslo."
    [asked] = server.completions()
    assert asked.body["messages"] == WIRE
    assert asked.body["tools"] == [WEATHER.openai] and "tool_choice" not in asked.body


def test_remote_earlier_replies_are_sent_with_their_calls(model: Model, server: OllamaServer) -> None:
    server.arm(body=stream_of({"content": "Yes."}, finish="stop"))
    conversation = ASKED.add(Message("assistant", "Yes.", rounds=ROUNDS)).user("Sure?")
    model.respond(Ask(conversation, Settings())).wait()
    rest = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Sure?"}]
    assert server.completions()[0].body["messages"] == [*WIRE, *rest]


def test_remote_reply_with_text_after_its_calls_cannot_be_continued(model: Model, server: OllamaServer) -> None:
    begun = replace(ASKED, prefill=Message("assistant", "Yes, ", rounds=ROUNDS))
    with pytest.raises(UsageError, match="a server that builds the prompt cannot continue a reply"):
        model.respond(Ask(begun, Settings())).wait()
    assert not server.completions()


def test_remote_server_that_dropped_results_of_calls_is_noticed(model: Model, server: OllamaServer) -> None:
    server.arm(body=whole("stop", content="Yes."))
    long = Round((replace(OSLO, result="rain " * 40),))
    asked = Ask(replace(ASKED, prefill=Message("assistant", "", rounds=(long,))), Settings())
    [notice] = [event.message for event in run_rows(model, [Row(0, asked)]) if isinstance(event, NoticeEvent)]
    assert "read 9 tokens of a prompt with 217 characters" in notice


# Servers that call no functions.


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "tools param requires --jinja flag"),
        (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        (400, "registry.ollama.ai/library/gemma3:4b does not support tools"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_remote_server_that_rejects_tools_is_an_error_with_its_reason(
    engine: RemoteEngine, server: OllamaServer, status: int, message: str, stream: bool
) -> None:
    server.arm(status=status, message=message, times=None)
    [refused] = events_of(engine, Request((81,), ask=Ask(stream=stream, conversation=ASKED), as_messages=True))[-1:]
    assert isinstance(refused, RefusedEvent)
    assert refused.error.message == f"server 1: {message}"
    assert len(server.completions()) == 1  # it is not asked again
