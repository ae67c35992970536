"""The loop check on servers of chat completions: it counts estimated tokens, however the text is cut into parts."""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chat_replies import stream_of, whole
from command_line import Finished, assert_error
from hypothesis import example, given
from hypothesis import strategies as st
from installations import model_on
from model_servers import ModelServer
from remote_engines import (
    QUICK,
    connected,
    local_replies,
    replies_of,
    request_of,
    serving_kind,
    set_timeouts,
    summaries,
)
from repetitive_documents import DOCUMENTS
from scripted_backend import END
from scripted_command import run_here
from server_kinds import LlamaServer, OllamaServer, VllmServer
from templates import chosen_format
from thinkers import speaker

from cerebrum_cli.core.events import FinishEvent, SequenceId, TokenEvent
from cerebrum_cli.formats.choice import SERVER
from cerebrum_cli.formats.reply_text import ReplyRules
from cerebrum_cli.servers.kind import ReplyChunk
from cerebrum_cli.servers.replies import MessageSample

Run = Callable[..., Finished]
BEGINNING, SENTENCE = "I begin well. ", "Then I say the same again, and again. "
LOOP = BEGINNING + SENTENCE * 600
LIST = "[" + "0, 1, " * 1000 + "0]"
SCHEMA = '{"type": "array", "items": {"enum": [0, 1]}}'


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with serving_kind(OllamaServer, lambda held, seed: END, context_size=5000) as [server]:
        yield server


@pytest.fixture
def run(server: OllamaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    set_timeouts(monkeypatch, QUICK)
    (tmp_path / "questions.txt").write_text("Why?\n")

    def run(command: str, question: str | Path, *options: str) -> Finished:
        return run_here({"reply": ""}, tmp_path, command, question, "--endpoint", server.url, *options)

    return run


def in_parts(text: str, size: int, key: str = "content") -> Iterator[dict[str, Any]]:
    for at in range(0, len(text), size):
        yield {key: text[at : at + size]}


def test_documents_of_a_server_come_whole(server: OllamaServer) -> None:
    with connected(server, messages=True) as engine:
        model = model_on(engine, chosen_format(SERVER))
        for name, text in DOCUMENTS.items():
            server.arm(body=stream_of(*in_parts(text, 40), finish="stop"))
            reply = model.reply("Write it.").wait()
            assert (reply.finish_reason, reply.text.strip()) == ("stop", text.strip()), name


@pytest.mark.parametrize("size", [1, 5, len(LOOP)])
def test_reply_of_a_server_that_repeats_without_end_is_stopped(server: OllamaServer, run: Run, size: int) -> None:
    server.arm(body=stream_of(*in_parts(LOOP, size), finish="stop"))
    done = run("ask", "Why?", "--json")
    found = done.object
    assert (done.code, found["finish_reason"], found["completion_tokens"]) == (0, "repetition", 2080)
    assert LOOP.startswith(found["text"]) and len(SENTENCE) * 200 < len(found["text"]) < len(SENTENCE) * 250
    assert "the reply repeats itself and was stopped after 2080 tokens" in done.err


def test_whole_reply_of_a_server_is_stopped_where_a_stream_is(server: OllamaServer, run: Run, tmp_path: Path) -> None:
    server.arm(body=stream_of(*in_parts(LOOP, 5), finish="stop"))
    streamed = run("ask", "Why?", "--json").object
    server.arm(body=whole("stop", content=LOOP))
    done = run("batch", tmp_path / "questions.txt", "-o", "-")
    assert (done.object["text"], done.object["finish_reason"]) == (streamed["text"], "repetition")
    assert "1 truncated" in done.err


def test_answer_of_a_server_under_a_schema_repeats_what_it_has_to(
    server: OllamaServer, run: Run, tmp_path: Path
) -> None:
    server.arm(body=stream_of(*in_parts(LIST, 5), finish="stop"))
    done = run("ask", "Why?", "--schema", SCHEMA)
    assert (done.code, done.out, "repeats" in done.err) == (0, f"{LIST}\n", False)
    server.arm(body=whole("stop", content=LIST))
    done = run("batch", tmp_path / "questions.txt", "-o", "-", "--schema", SCHEMA)
    assert (done.code, done.object["text"], done.object["finish_reason"]) == (0, LIST, "stop")


def test_reasoning_before_an_answer_under_a_schema_may_not_repeat_without_end(server: OllamaServer, run: Run) -> None:
    server.arm(body=stream_of(*in_parts(LOOP, 5, "reasoning"), {"content": LIST}, finish="stop"))
    done = run("ask", "Why?", "--schema", SCHEMA)
    assert_error(done, 5, "the reply repeats itself", "try a higher --temperature")


@pytest.mark.parametrize(("kind", "stream"), [(LlamaServer, False), (LlamaServer, True), (VllmServer, False)])
def test_servers_of_tokens_end_a_repetition_as_this_machine_does(kind: type[ModelServer], stream: bool) -> None:
    model = speaker(lambda seed: "over " * 500)
    request = request_of("go", stream=stream, max_tokens=None, loop_check=True)
    with serving_kind(kind, model, context_size=3000) as servers, connected(*servers) as engine:
        replies = replies_of(engine, request)
        assert summaries(replies) == summaries(local_replies(model, request, context_size=3000))
    assert [reply.reason for reply in replies.values()] == ["repetition"]


def outcome(chunks: Iterable[ReplyChunk]) -> tuple[str, str, str, int]:
    """Reasoning, answer, reason and number of tokens of a streamed reply."""
    request = request_of("Why?", stream=True, max_tokens=None, loop_check=True, rules=ReplyRules())
    sample = MessageSample(SequenceId(0), request, 0)
    texts = {"thinking": "", "answer": ""}
    for chunk in chunks:
        for event in sample.add(chunk):
            if isinstance(event, TokenEvent):
                texts[event.channel] += event.text
            if isinstance(event, FinishEvent):
                tokens = event.completion_tokens if event.reason == "repetition" else 0
                return texts["thinking"], texts["answer"], event.reason, tokens
    raise AssertionError("the reply did not end")


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


units = st.text(st.sampled_from("ab Z9_-|.\n<é我🙂"), min_size=1, max_size=30)
places = st.lists(st.integers(0, 50_000), max_size=20)


@given(reasoning=st.sampled_from(["", BEGINNING, LOOP]), before=st.text(max_size=50), unit=units, places=places)
@example(reasoning=BEGINNING, before="", unit=SENTENCE, places=list(range(9_000)))
def test_parts_of_a_text_do_not_change_where_it_is_stopped(
    reasoning: str, before: str, unit: str, places: list[int]
) -> None:
    text = before + (unit * 40_000)[:40_000]
    parts = [ReplyChunk(reasoning=part) for part in cut(reasoning, places)]
    parts += [ReplyChunk(text=part) for part in cut(text, places)]
    found = outcome([*parts, ReplyChunk(end="eos")])
    assert found == outcome([ReplyChunk(reasoning=reasoning, text=text, end="eos")])
    assert found[2] == "repetition" and (reasoning + text).startswith(found[0] + found[1])


@given(before=st.text(max_size=50), unit=units, count=st.integers(0, 60), after=st.text(max_size=50), places=places)
def test_bounded_repetition_of_any_text_passes(
    before: str, unit: str, count: int, after: str, places: list[int]
) -> None:
    text = before + unit * count + after
    parts = [ReplyChunk(text=part) for part in cut(text, places)]
    assert outcome([*parts, ReplyChunk(end="eos")]) == ("", text, "stop", 0)
