"""Replies of servers that follow OpenAI's API loosely, or not at all: they are read, or told in the server's words."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chat_replies import stream_of, whole
from command_line import Finished, assert_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from installations import model_on
from remote_engines import connected, set_patience
from scripted_command import run_here
from server_kinds import OllamaServer
from templates import chosen_format

from cerebrum_cli.core.ask import Ask as Question
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.formats.choice import SERVER
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Outcome, Reply, Row

KEY, PASSWORD = "sk-secret-of-the-user", "secret-in-the-query"
HTML = "<!DOCTYPE html><html><title>504 Gateway Time-out</title></html>"
SPOKEN = stream_of({"content": "It is "}, {"content": "3."}, finish="stop")
FIRE = {"error": {"message": "GPU on fire", "code": 500}}
Ask = Callable[..., Finished]
ASKED = Question(Conversation().user("1 + 2?"))


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer(lambda held, seed: 0) as server:
        server.models = ("m",)
        yield server


@pytest.fixture
def ask(server: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
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


BATCH = ("batch", "questions.txt", "-o", "-")


def events(*values: Any) -> bytes:
    """A stream of events, of which the last may be missing."""
    return "".join(f"data: {json.dumps(value)}\n\n" for value in values).encode()


def choice(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


# What is read.

STREAMS: dict[str, bytes] = {
    "as usual": SPOKEN,
    "CRLF": SPOKEN.replace(b"\n", b"\r\n"),
    "comments": b": hello\n\n" + SPOKEN.replace(b"\n\n", b"\n: ping\n\n"),
    "names and ids": SPOKEN.replace(b"data: ", b"event: message\nid: 7\nretry: 5\ndata:"),
    "no blank lines": SPOKEN.replace(b"\n\n", b"\n"),
    "no line end at the end": SPOKEN.rstrip(),
    "no [DONE]": SPOKEN.replace(b"data: [DONE]\n\n", b""),
    "no reason": SPOKEN.replace(b'"finish_reason": "stop"', b'"finish_reason": null'),
    "a delta of null": events({"choices": [{"index": 0, "delta": None}]}) + SPOKEN,
    "events without choices": events({"choices": []}, {"choices": None}, {"id": "x"}) + SPOKEN,
    "a second choice": events(choice(content="x", index=1)) + SPOKEN,
    "a refusal": events(choice(refusal="It is "), choice("stop", content=None, refusal="3.")),
    "JSON": whole("stop", content="It is 3."),
}


@pytest.fixture
def model(server: OllamaServer) -> Iterator[Model]:
    with connected(server, messages=True) as engine:
        yield model_on(engine, chosen_format(SERVER))


def read(model: Model, server: OllamaServer, body: bytes, *, stream: bool) -> tuple[Reply, str]:
    """The reply of a body, and the notices about it."""
    server.disarm()
    server.arm(body=body)
    if stream:
        reply = model.respond(ASKED)
        seen: list[Event | Outcome] = list(reply.events())
    else:
        seen = list(run_rows(model, [Row(0, ASKED)]))
        [reply] = [event.result for event in seen if isinstance(event, Outcome) and isinstance(event.result, Reply)]
    return reply, " ".join(": ".join(event) for event in seen if isinstance(event, NoticeEvent))


def test_stream_is_read_however_a_server_writes_it(model: Model, server: OllamaServer) -> None:
    for name, body in STREAMS.items():
        reply, notices = read(model, server, body, stream=True)
        assert (reply.text, reply.finish_reason) == ("It is 3.", "stop"), name
        assert ("gave no known reason" in notices) == (name == "no reason"), name


def test_stream_is_read_though_it_is_compressed(ask: Ask) -> None:
    for body, kind in (SPOKEN, "text/event-stream"), (STREAMS["JSON"], "application/json"):
        headers = {"Content-Encoding": "gzip", "Content-Type": kind}
        done = ask(gzip.compress(body), "ask", "1 + 2?", headers=headers)
        assert (done.code, done.out) == (0, "It is 3.\n"), done.err


MESSAGES: dict[str, tuple[dict[str, Any], str, str | None, str]] = {
    "reasoning of Ollama": ({"content": "3", "reasoning": "Hm."}, "3", "Hm.", ""),
    "reasoning of others": ({"content": "3", "reasoning_content": "Hm."}, "3", "Hm.", ""),
    "reasoning alone": ({"content": None, "reasoning_content": "Hm."}, "", "Hm.", ""),
    "half a character": ({"content": "3\ud83d"}, "3\ufffd", None, ""),
    "control characters": ({"content": "a\tb\u0000c"}, "a\tb\u0000c", None, ""),
    "a call without functions": (
        {"content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        "",
        None,
        "ignored: f",
    ),
}


def test_message_is_read_whatever_its_content_is(model: Model, server: OllamaServer) -> None:
    for name, (message, text, reasoning, problem) in MESSAGES.items():
        body = whole("stop", **message).replace(b"\\t", b"\t")  # which JSON does not allow
        for stream in (True, False):
            reply, notices = read(model, server, body, stream=stream)
            assert (reply.text, reply.reasoning) == (text, reasoning), name
            assert not stream or problem in notices, name  # which is given once


def test_content_that_is_no_text_is_an_error(ask: Ask) -> None:
    parts = [{"type": "text", "text": "It is 3."}]
    done = ask(events(choice("stop", content=parts)), "ask", "1 + 2?")
    assert_error(done, 1, "the server sent content of the type list instead of text")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, deadline=None)
@given(places=st.lists(st.integers(0, 400), max_size=8))
def test_stream_is_read_however_the_network_splits_it(model: Model, server: OllamaServer, places: list[int]) -> None:
    text = "Zwölf 🙂\u2028 ist\r\n3."
    body = stream_of(*({"content": character} for character in text), finish="stop").replace(b"\n", b"\r\n")
    edges = sorted({0, len(body), *(place * len(body) // 400 for place in places)})
    server.complete = lambda _: (body[start:end] for start, end in pairwise(edges))  # type: ignore[method-assign, assignment]
    server.disarm()
    assert model.respond(ASKED).wait().text == text


# What is told.

STATED: dict[str, Any] = {
    "text": {"error": "GPU on fire"},
    "message": {"error": {"message": "GPU on fire", "code": None}},
    "detail": {"error": True, "detail": "GPU on fire"},
    "details": {"error": {"detail": [{"loc": ["body"], "msg": "GPU on fire", "type": "value_error"}]}},
    "beside a choice": {"choices": [{"delta": {"content": ""}, "finish_reason": "error"}], **FIRE},
}


@pytest.mark.parametrize("name", STATED)
def test_error_within_a_success_is_told_in_the_words_of_the_server(ask: Ask, name: str) -> None:
    body = json.dumps(STATED[name]).encode()
    failed = [(body, 400), (body, 500)]
    succeeded = [body, events(STATED[name]), events(choice(content="It is"), STATED[name])]
    for stream, status in (*failed, *((each, 200) for each in succeeded)):
        done = ask(stream, "ask", "1 + 2?", status=status)
        assert done.code == 1 and done.err.splitlines()[-2].endswith(": GPU on fire"), done.err
        assert done.out == ("It is\n" if b"It is" in stream else "")
    done = ask(body, *BATCH)
    assert (done.code, "GPU on fire" in done.err) == (6, True)


OTHER: dict[str, tuple[bytes, str]] = {
    "event of an error": (b'event: error\ndata: {"message": "GPU on fire"}\n\n', "GPU on fire"),
    "text": (b"data: GPU on fire\n\n", "the reply is not JSON: GPU on fire"),
    "page": (HTML.encode(), "the reply is not JSON: 504 Gateway Time-out"),
    "no choice": (b'{"reply": "It is 3."}', "the server sent an empty reply"),
    "nothing": (b"", "the server sent an empty reply"),
    "only [DONE]": (b"data: [DONE]\n\n", "the server sent an empty reply: its context may be too small"),
    "Latin 1": (SPOKEN.replace(b"It", b"\xe9"), "the reply is not JSON: "),
    "half an event": (SPOKEN[:30], "the reply is not JSON: "),
    "no end": (events(choice(content="It is")), "the reply is incomplete"),
    "an error as the end": (events(choice(content="It is"), choice("error")), "the server ended the reply: error"),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_reply_is_told(ask: Ask, name: str) -> None:
    body, problem = OTHER[name]
    done = ask(body, "ask", "1 + 2?")
    assert done.code == 1 and problem in done.err and "Traceback" not in done.err, done.err
    assert done.out == ("It is\n" if name in ("no end", "an error as the end") else "")


def test_text_of_a_reply_that_the_server_ends_is_in_the_row(ask: Ask) -> None:
    for finish in ("error", "content_filter"):
        done = ask(whole(finish, content="GPU on fire"), *BATCH)
        row = json.loads(done.out)
        assert (done.code, row["text"], row["final_answer"]) == (6, "GPU on fire", None)
        assert row["error"]["message"].startswith(f"the server ended the reply: {finish}")


def test_secrets_are_not_told(ask: Ask) -> None:
    told = f"wrong key {KEY} in Authorization: Bearer {KEY}"
    for body, status in ((f'{{"error": "{told}"}}', 200), (told, 500), (f'{{"detail": "{told}"}}', 400)):
        done = ask(body.encode(), "ask", "1 + 2?", status=status)
        assert "wrong key *** in" in done.err and KEY not in done.err + done.out
    location = {"Location": f"http://other.example/?key={KEY}"}
    assert "redirects to http://other.example/?key=***" in ask(b"", "ask", "x", status=307, headers=location).err
    done = ask(f'{{"error": "no such key: {PASSWORD}"}}'.encode(), "ask", "1 + 2?")
    assert "no such key: ***" in done.err and PASSWORD not in done.err


# Schemas, and replies without text.


def test_text_of_an_answer_that_does_not_match_its_schema_is_in_the_row(ask: Ask) -> None:
    schema = '{"type": "object", "required": ["age"]}'
    done = ask(whole("stop", content='{"name": "Jo"}'), *BATCH, "--schema", schema)
    row = json.loads(done.out)
    assert (done.code, row["text"], row["error"]["type"]) == (6, '{"name": "Jo"}', "incomplete_output")
    assert "'age' is a required property" in row["error"]["message"]
    vote = ask(whole("stop", content='{"name": "Jo"}'), *BATCH, "--schema", schema, "--votes", "2")
    assert json.loads(vote.out)["text"] == '{"name": "Jo"}'


@pytest.mark.slow
def test_replies_without_text_are_counted(ask: Ask) -> None:
    Path("questions.txt").write_text("1 + 2?\n" * 40)
    command = ("batch", "questions.txt", "-o", "out.jsonl")
    for _ in range(2):  # then it is complete
        done = ask(whole("stop", content=" "), *command)
        assert (done.code, "40 of 40 done, 40 empty" in done.err) == (0, True), done.err
    assert json.loads(Path("out.jsonl.meta.json").read_text())["empty"] == 40
    done = ask(whole("stop", content=""), "ask", "1 + 2?")
    assert (done.code, done.out, "the model's answer is blank" in done.err) == (0, "", True)
