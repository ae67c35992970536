"""The least certain tokens of a reply: `ask --top-logprobs`, `/why`, and the evaluation behind them."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from asking import ask, collect_replies, generate, loaded, running_engine
from chats import finish, make_chat
from command_line import Finished
from llama_engines import in_f32, options
from person import OpenTerminal, Person
from scripted_backend import END, ScriptedBackend, endless, replies, tokens
from scripted_command import SCRIPTED, run_here
from templates import TEMPLATES
from thinkers import ENDING, reply_around
from tiny_models import write_chatml

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import SessionError, UsageError
from cerebrum_cli.core.events import AlternativesEvent, Event, Forced, SequenceId, TokenEvent, TokenLogprob
from cerebrum_cli.core.inspection import MAX_ROWS, GivenReply, LeastCertain
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.devices import accelerators
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import OPENING_TOKENS, Request
from cerebrum_cli.servers.endpoint import Endpoint

TOLERANCE = 0.01 if accelerators() else 1e-4  # of a log probability; a GPU rounds by the number of rows
BYTES = {chr(byte): -byte / 1000 for byte in range(256)}  # log probabilities of the scripted model


def inspect(engine: LocalEngine, prompt: Sequence[int], reply: Sequence[int], likeliest: int = 2) -> list[Event]:
    request = Request.inspection(prompt, tuple(reply), likeliest)
    return list(generate(engine, [request]))


def reports(events: Iterable[Event]) -> list[AlternativesEvent]:
    return [event for event in events if isinstance(event, AlternativesEvent)]


def test_inspection_evaluates_only_the_reply_again() -> None:
    backend = ScriptedBackend(replies({"hello ": "world", "hello world, ": "who?"}), batch_size=4, max_outputs=3)
    with running_engine(backend) as engine:
        ask(engine, "hello ")
        backend.steps.clear()
        events = inspect(engine, tokens("hello "), tokens("world"))
        assert [[row.position for row in step] for step in backend.steps] == [[5, 6, 7], [8, 9]]
        assert all(row.output for step in backend.steps for row in step)
        found = reports(events)
        assert [event.given for event in found] == [TokenLogprob(ord(each), BYTES[each]) for each in "world"]
        assert [event.likeliest[0].token for event in found] == list(b" worl")  # the scripted model's: what was held
        assert finish(events).reason == "stop"
        assert (finish(events).cached_tokens, finish(events).completion_tokens) == (5, 0)
        [reply] = ask(engine, "hello world, ")
    assert (reply.text, reply.cached) == ("who?", len("hello worl"))


def test_inspection_that_is_cancelled_reports_what_was_evaluated() -> None:
    backend = ScriptedBackend(endless({}), max_outputs=2, holds={1: 1})
    request = Request.inspection(tokens("a"), tokens("bcde"), 1)
    with running_engine(backend) as engine:
        completions = engine.complete([request])
        assert backend.is_held.wait(10)
        engine.cancel()
        events = list(completions)
    assert [event.position for event in reports(events)] == [0, 1]
    assert finish(events).reason == "cancelled"


@pytest.mark.slow
def test_inspection_gives_the_probabilities_of_decoding(precise_model: Path) -> None:
    load_options = in_f32(options(precise_model, context_size=512))
    prompt, params = tuple(range(5, 70)), SamplingParams(max_tokens=60, temperature=1.0, seed=1)
    with loaded(LocalEngine(lambda emit, stop: open_llama(load_options, emit, stop))) as engine:
        events = list(generate(engine, [Request(prompt, params, Ask(logprobs=True, ignore_eos=True))]))
        sampled = [event for event in events if isinstance(event, TokenEvent) and event.tokens]
        decoded = [TokenLogprob(event.tokens[0], event.logprobs[0] or 0.0) for event in sampled]
        evaluated = inspect(engine, prompt, [each.token for each in decoded], 5)
        [next_turn] = collect_replies(
            generate(engine, [Request((*prompt, *(each.token for each in decoded), 5), params)])
        ).values()
        reused = len(prompt) - (1 if engine.backend.trimmable_length else OPENING_TOKENS)
    found = reports(evaluated)
    assert [event.given.token for event in found] == [each.token for each in decoded]
    expected = [each.logprob for each in decoded]
    assert [event.given.logprob for event in found] == pytest.approx(expected, abs=TOLERANCE)
    for event in found:
        assert all(one.logprob >= other.logprob for one, other in pairwise(event.likeliest))
        assert (event.given in event.likeliest) == (event.given.logprob >= event.likeliest[-1].logprob)
    assert finish(evaluated).cached_tokens == reused
    assert next_turn.cached == len(prompt) + len(decoded) - 1


def test_least_certain_leaves_out_forced_and_certain_tokens() -> None:
    reply = GivenReply(Conversation(), tuple(range(50)), (Forced(3, 2),))
    collector, likeliest = LeastCertain(reply), (TokenLogprob(99, -1.0),) * 3
    for position in range(50):
        given = TokenLogprob(position, -0.01 if position % 2 else -position / 10 - 0.1)
        collector.emit(AlternativesEvent(SequenceId(0), position, given, likeliest))
    found = collector.tokens(lambda ids: "".join(f" w{each}" for each in ids))
    assert [each.position for each in found] == list(range(48, 28, -2))
    assert len(found) == MAX_ROWS
    assert found[0].before == "w42 w43 w44 w45 w46 w47"
    assert found[0].as_object() == {
        "position": 48,
        "id": 48,
        "token": " w48",
        "logprob": -4.9,
        "top_logprobs": [{"id": 99, "token": " w99", "logprob": -1.0}] * 2,
    }
    short = LeastCertain(replace(reply, tokens=(0, 1, 2, 3, 4, 5)))
    for position in range(6):
        short.emit(AlternativesEvent(SequenceId(0), position, TokenLogprob(position, -1.0), ()))
    assert sorted(each.position for each in short.tokens(str)) == [0, 1, 2, 5]


# Chats.

FIRST_PROMPT = "S\nUser: One?\nAI:"
SECOND_PROMPT = f"{FIRST_PROMPT} First.\nUser: Two?\nAI:"
REASONING = "<think>Let me think."


@contextmanager
def chatting(store: Store, home: Path, file: Path, script: dict[str, str]) -> Iterator[Chat]:
    chat = make_chat(store, home, file, lambda: ScriptedBackend(replies(script), context_size=500), cache_gb=0)
    with closing(chat):
        yield chat


def explain(chat: Chat) -> list[AlternativesEvent]:
    """What /why finds out about every token of the last reply."""
    return reports(chat.inspect(chat.given_reply(), 1))


def spelled(events: Iterable[AlternativesEvent]) -> str:
    return bytes(event.given.token for event in events).decode()


@pytest.mark.parametrize("ending", ["", "\nUser:"])
def test_chat_after_an_inspection_evaluates_only_new_tokens(
    store: Store, tmp_path: Path, chatml_model: Path, ending: str
) -> None:
    script = {FIRST_PROMPT: f" First.{ending}", SECOND_PROMPT: " Second."}
    cached = []
    for is_inspected in (False, True):
        with chatting(store, tmp_path, chatml_model, script) as chat:
            list(chat.send("One?"))
            if is_inspected:
                assert spelled(explain(chat)) == f" First.{ending}"
                assert finish(chat.inspect(chat.given_reply(), 1)).cached_tokens == len(FIRST_PROMPT) - 1
            cached.append(finish(chat.send("Two?")).cached_tokens)
    assert cached[1] >= len(f"{FIRST_PROMPT} First.") - 1  # a reply's last token is evaluated with the next turn
    assert cached[0] - cached[1] == (0 if ending else 1)


def test_chat_inspects_the_reply_of_a_loaded_session(store: Store, tmp_path: Path, chatml_model: Path) -> None:
    script = {FIRST_PROMPT: " First.", SECOND_PROMPT: " Second."}
    with chatting(store, tmp_path, chatml_model, script) as chat:
        list(chat.send("One?"))
        list(chat.send("Two?"))
        session = chat.session
    with chatting(store, tmp_path, chatml_model, script) as chat:
        with pytest.raises(SessionError, match="no reply yet"):
            chat.given_reply()
        chat.switch_session(session)
        assert spelled(explain(chat)) == " Second."
        chat.replace_reply("Mine.")
        with pytest.raises(SessionError, match="tokens of the last reply are not known"):
            chat.given_reply()


def test_chat_leaves_forced_tokens_out_also_of_a_loaded_reply(store: Store, tmp_path: Path) -> None:
    whole = reply_around(REASONING, ENDING, "42. So.").encode()
    path = write_chatml(tmp_path / "thinker.gguf", chat_template=TEMPLATES["qwen3"])

    def model(held: tuple[int, ...], seed: int) -> int:
        at = len(bytes(held).rpartition(b"assistant\n")[2])
        return whole[at] if at < len(whole) else END

    def backend() -> ScriptedBackend:
        return ScriptedBackend(model, context_size=500)

    with closing(make_chat(store, tmp_path, path, backend, think="10", format="embedded")) as chat:
        list(chat.send("One?"))
        session, fresh = chat.session, chat.given_reply()
    with closing(make_chat(store, tmp_path, path, backend, format="embedded")) as chat:
        chat.switch_session(session)
        assert chat.given_reply() == fresh
        least_certain = LeastCertain(fresh)
        for event in chat.inspect(fresh, 1):
            least_certain.emit(event)
    assert bytes(fresh.tokens).decode() == f"{REASONING}{ENDING}42. So."
    positions = {each.position for each in least_certain.tokens(str)}
    assert positions
    assert not positions & set(range(len(REASONING), len(REASONING) + len(ENDING)))


def test_chat_on_a_server_cannot_inspect_replies(store: Store, tmp_path: Path, chatml_model: Path) -> None:
    endpoint = Endpoint("x", "http://127.0.0.1:8200")
    backend = ScriptedBackend(replies({}), context_size=500)
    with (
        closing(make_chat(store, tmp_path, chatml_model, lambda: backend, (endpoint,))) as chat,
        pytest.raises(UsageError, match="servers cannot compute the probabilities"),
    ):
        chat.given_reply()


# The command line.

ANSWER = "Well, it is 42 as it was before."


def ask_scripted(model: Path, home: Path, *arguments: str, **script: object) -> Finished:
    return run_here({"reply": ANSWER, **script}, home, "ask", "Why?", "-m", model, *arguments)


def test_ask_prints_the_least_certain_tokens_after_the_answer(chatml_model: Path, tmp_path: Path) -> None:
    done = ask_scripted(chatml_model, tmp_path, "--top-logprobs", "2")
    assert (done.code, done.out) == (0, f"{ANSWER}\n")
    head, first, *rest = done.err.splitlines()
    assert head.split() == ["position", "after", "token", "prob.", "alternatives"]
    assert " ".join(first.split()) == f"""{ANSWER.index("w")} it is 42 as it "w" 89% " " 93%, "!" 93%"""
    assert len(rest) == MAX_ROWS - 1


def test_ask_adds_the_least_certain_tokens_to_json(chatml_model: Path, tmp_path: Path) -> None:
    answer = ask_scripted(chatml_model, tmp_path, "--top-logprobs", "2", "--json").object
    assert list(answer)[-1] == "least_certain"
    first = answer["least_certain"][0]
    expected = (ANSWER.index("w"), ord("w"), "w", -0.119)
    assert tuple(first[key] for key in ("position", "id", "token", "logprob")) == expected
    assert [set(each) for each in first["top_logprobs"]] == [{"id", "token", "logprob"}] * 2
    logprobs = [each["logprob"] for each in answer["least_certain"]]
    assert logprobs == sorted(logprobs) and len(logprobs) == MAX_ROWS
    assert "least_certain" not in ask_scripted(chatml_model, tmp_path, "--json").object
    blank = ask_scripted(chatml_model, tmp_path, "--top-logprobs", "2", "--json", reply="")
    assert blank.object["least_certain"] == []


def test_ask_inspects_the_winner_of_a_vote(chatml_model: Path, tmp_path: Path) -> None:
    script = {"rows": {}, "seeds": ["The answer is 1.", "The answer is 22.", "The answer is 22."]}
    options = ("--votes", "3", "--seed", "0", "--json", "--top-logprobs", "1")
    answer = run_here(script, tmp_path, "ask", "Why?", "-m", chatml_model, *options).object
    assert answer["final_answer"] == "22"
    assert {each["token"] for each in answer["least_certain"]} <= set(answer["text"])
    assert all(answer["text"][each["position"]] == each["token"] for each in answer["least_certain"])


def open_why(
    open_terminal: OpenTerminal, model: Path, reply: str, count: int, size: tuple[int, int]
) -> tuple[Person, list[str]]:
    """A chat in a terminal of some lines and columns, and the lines that `/why` prints of a reply."""
    script = json.dumps({"rows": {}, "seeds": [reply]})
    person = open_terminal(sys.executable, SCRIPTED, script, "chat", "-m", model, size=size)
    person.wait_for("context ")
    person.type("hi\r", shows="42.")
    person.type(f"/why {count}\r", shows="prob.")
    person.wait_for("context ")
    return person, [line for line in person.screen.lines if '"' in line]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_why_prints_a_table_that_fits_the_terminal(open_terminal: OpenTerminal, chatml_model: Path) -> None:
    person, lines = open_why(open_terminal, chatml_model, "Well,\nit is <|im_end|> and 日本 42.", 20, (44, 40))
    assert len(lines) == MAX_ROWS
    assert all(line.rstrip().endswith("…") for line in lines)
    person.type("/why x\r", shows="invalid number of alternatives")
    person.leave()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_why_continues_alternatives_on_further_lines(open_terminal: OpenTerminal, chatml_model: Path) -> None:
    person, lines = open_why(open_terminal, chatml_model, "It is 42.", 5, (80, 80))
    tokens = [line for line in lines if line[0].isdecimal()]
    assert len(tokens) > 3 and not any("…" in line for line in lines)
    assert sum(line.count("%") for line in lines) == (1 + 5) * len(tokens)
    person.leave()
